"""Adapters: one third party a file. Each wraps calls of its client in permits and raises refusals in its tree."""
