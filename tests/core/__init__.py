"""Tests of the part that decides. Nothing here waits, and nothing here has a clock."""
