"""A guarded redis-py client beside a plain one: a long table of calls, and not one difference."""
