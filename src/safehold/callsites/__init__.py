"""Adapters, one third party a file: permits around its calls, refusals in its own exception tree."""
