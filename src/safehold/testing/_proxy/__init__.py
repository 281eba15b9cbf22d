"""The parts of the fault proxy. What tests use stands in ``safehold.testing.proxy``.

``faults`` says what can go wrong, ``address`` where, ``journal`` what happened. ``pumps`` moves the bytes of
one connection, ``poller`` waits for sockets, and ``reactor`` is the thread in which all of that runs.
"""
