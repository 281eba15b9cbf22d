"""`safehold drill`: a real outage, once without protection and once with three lines of Safehold.

Two copies of one session service (`service`) run side by side on real sockets. Their clients reach Redis
and an API only through fault proxies (`lab`), which follow a seeded script (`script`). What is alive is
known to the drill alone (`world`); it counts what each service destroys (`drill`, `result`) and tells it
to a person (`view`, `verdict`) or a machine.

The sessions send their heartbeats through the same fault proxy as the services read them, because real
sessions share the network with whoever watches them. An outage that outlasts the heartbeats' time to live
therefore makes real heartbeats expire while every session lives on: after the repair Redis answers, and
what it answers is wrong. That is what the settle time is for, and why it has to be longer than the
heartbeats need to come back.
"""
