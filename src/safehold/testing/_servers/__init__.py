"""The parts of the real servers. What tests use stands in ``safehold.testing.servers``.

``place`` is where a server lives and what ends it with its owner. ``binary`` finds a Redis that runs here,
``resp`` talks to it, and ``redis`` starts and breaks it. ``routes`` says who answers a request, and ``api``
is the server that takes it.
"""
