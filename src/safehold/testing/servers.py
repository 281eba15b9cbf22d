"""Real servers for tests and drills: a Redis in a child process, a JSON API in a thread.

    with RedisServer() as redis, ApiServer({"GET /sessions": sessions}) as api:
        redis.command("SET", "session:1", "alive")
        redis.pause()       # hangs: clients connect, then time out
        redis.resume()
        redis.kill()        # crashes: clients are refused
        redis.restart()     # back on the same address, and empty

Both take the same verbs, so a drill can break either without knowing which one it holds. One thread drives a
server; ``RedisServer.command`` and the counters of ``ApiServer`` may be used from any.

**Nothing outlives its owner.** Each server has a private directory and a *warden*: a shell that waits on a
pipe whose other end only this process holds. When the process ends, in whatever way, the kernel closes that
end; the warden then kills the server and removes the directory. ``PR_SET_PDEATHSIG`` would be shorter, but it
fires when the *thread* that started the child ends, it needs ``preexec_fn``, and it leaves the directory
behind. The limit: a child forked without exec holds the pipe as well, so after a crash the warden waits for
that child too. Such a child cannot stop its parent's servers: there, ``stop`` does nothing.

**A port is never lent out.** A TCP address is reserved by a bound socket that does not listen, and held until
``stop``. Linux lets a server listen on it (both sides set ``SO_REUSEADDR``) but hands the number to nobody
else, so a killed server can always come back. Other systems forbid that: there the port is only a guess, and
a server that finds its first port taken tries another.

    RuntimeError
      + ServerUnavailable   there is no binary that runs here
      + ServerNotReady      the server did not come up, or it is not running
      |   + PortTaken       somebody else listens on its port
      + ErrorReply          Redis answered a command with an error
"""

from __future__ import annotations

from ._servers.api import ApiServer
from ._servers.binary import Found, ServerUnavailable, find_redis_server
from ._servers.place import ServerNotReady
from ._servers.redis import RedisServer
from ._servers.resp import ErrorReply
from ._servers.routes import ApiRequest, Handler

__all__ = [
    "ApiRequest",
    "ApiServer",
    "ErrorReply",
    "Found",
    "Handler",
    "RedisServer",
    "ServerNotReady",
    "ServerUnavailable",
    "find_redis_server",
]

# Tracebacks and reprs name the public module. The values stay where their annotations can be resolved.
for _named in (ApiServer, ErrorReply, RedisServer, ServerNotReady, ServerUnavailable):
    _named.__module__ = __name__
