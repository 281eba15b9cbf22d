"""Owns: locks, clocks, threads, tasks and context variables. Calls the core, tells the listeners."""
