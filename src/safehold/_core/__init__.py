"""Decides. Pure values and machines: `now` comes in, values come out.

Nothing in this package does I/O, takes a lock, reads a clock, starts a thread or writes a log line.
"""
