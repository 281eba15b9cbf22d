"""A JSON API over HTTP/1.1 in threads, which can be killed, paused and started again."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import parse_qsl, unquote

from .place import LINUX, LOOPBACK, Address, Listen, Server, ServerNotReady
from .routes import ApiRequest, Handler, compile_routes, no_such_method, no_such_path

if TYPE_CHECKING:
    from socketserver import BaseServer


class ApiServer(Server):
    """A small JSON API over HTTP/1.1, with a thread for each connection.

    ``routes`` maps ``"DELETE /sessions/{id}"`` and the like to handlers, or is one handler for everything. A
    handler returns a status and what to send as JSON (``bytes`` go out as they are), and may block. If it
    raises, the client gets a 500 and `errors` gets the exception.
    """

    _name = "api"

    def __init__(self, routes: Mapping[str, Handler] | Handler, *, listen: Listen = "unix") -> None:
        super().__init__(listen)
        self._default: Handler | None = routes if callable(routes) else None
        self._routes = [] if callable(routes) else compile_routes(routes)
        self._listener: socket.socket | None = None  # a request that came by an older one is void
        self._doorman: threading.Thread | None = None
        self._going = threading.Event()
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()  # guarded by _lock
        self._errors: list[Exception] = []  # guarded by _lock
        self._guests: dict[threading.Thread, socket.socket] = {}  # guarded by _lock

    @property
    def url(self) -> str:
        """A client's base URL; on a unix socket the client needs `path` as well."""
        return "http://localhost" if isinstance(self.address, str) else f"http://{LOOPBACK}:{self.port}"

    @property
    def requests(self) -> Counter[str]:
        """How many requests each route got so far; what has no route counts as ``"GET /its/path"``."""
        with self._lock:
            return Counter(self._requests)

    @property
    def errors(self) -> tuple[Exception, ...]:
        """What handlers raised so far."""
        with self._lock:
            return tuple(self._errors)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Listen; after `kill`, on the same address again."""
        if self._listener is not None:
            msg = "the api server is running already"
            raise ServerNotReady(msg)
        try:
            self._settle()
            listener = self._listener = _listening(self.address)
            self._going.set()
            doorman = threading.Thread(target=self._admit, args=(listener,), name="safehold-api", daemon=True)
            doorman.start()
            self._doorman = doorman
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End every connection and remove the socket. Harmless when repeated.

        A handler that does not return within two seconds is left to itself; its answer goes nowhere.
        """
        if not self._mine():
            return
        try:
            self._close()
            deadline = time.monotonic() + 2
            for thread in self._present():
                thread.join(timeout=max(0.0, deadline - time.monotonic()))
        finally:
            self._abandon()

    def kill(self) -> None:
        """Drop every connection and refuse new ones, as a crash would: the socket's file stays."""
        self._place()
        self._close()

    def restart(self) -> Self:
        """Come back on the same address."""
        self.kill()
        return self.start()

    def pause(self) -> None:
        """Take connections and requests, and answer none; what was asked meanwhile is done after `resume`."""
        self._place()
        self._going.clear()

    def resume(self) -> None:
        """Go on; harmless for one that is not paused."""
        self._place()
        self._going.set()

    def _admit(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                guest, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            thread = threading.Thread(
                target=self._attend, args=(listener, guest), name="safehold-api", daemon=True
            )
            with self._lock:
                self._guests[thread] = guest
            thread.start()

    def _attend(self, listener: socket.socket, guest: socket.socket) -> None:
        try:
            with guest, contextlib.suppress(OSError):  # the client left, or we did
                _Conversation(guest, partial(self._answer, listener))
        except Exception as error:  # noqa: BLE001 - a thread has nobody else to tell
            self._note(error)
        finally:
            with self._lock:
                del self._guests[threading.current_thread()]

    def _answer(self, listener: socket.socket, method: str, target: str, raw: bytes) -> tuple[int, bytes]:
        self._going.wait()
        if self._listener is not listener:
            msg = "killed before the request was carried out"
            raise ConnectionAbortedError(msg)
        path, _, query = target.partition("?")
        name, handler, params = self._lookup(method, path)
        with self._lock:
            self._requests[name] += 1
        try:
            body = json.loads(raw) if raw else None
        except ValueError as error:
            return 400, _json({"error": f"the body is not JSON: {error}"})
        fields = dict(parse_qsl(query, keep_blank_values=True))
        return self._handled(
            handler, ApiRequest(method=method, path=unquote(path), query=fields, params=params, body=body)
        )

    def _handled(self, handler: Handler, request: ApiRequest) -> tuple[int, bytes]:
        try:
            status, answer = handler(request)
            return status, answer if isinstance(answer, bytes) else _json(answer)
        except Exception as error:  # noqa: BLE001 - whatever a handler does, the server goes on
            self._note(error)
            return 500, _json({"error": repr(error)})

    def _lookup(self, method: str, path: str) -> tuple[str, Handler, dict[str, str]]:
        if self._default is not None:
            return f"{method} {unquote(path)}", self._default, {}
        fitting = [(route, match) for route in self._routes if (match := route.pattern.fullmatch(path))]
        for route, match in fitting:
            if route.method == method:
                params = {name: unquote(text) for name, text in match.groupdict().items()}
                return route.name, route.handler, params
        return f"{method} {unquote(path)}", no_such_method if fitting else no_such_path, {}

    def _note(self, error: Exception) -> None:
        with self._lock:
            self._errors.append(error)

    def _present(self) -> dict[threading.Thread, socket.socket]:
        with self._lock:
            return dict(self._guests)

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is None:
            return
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        if self._doorman is not None:
            self._doorman.join(timeout=5)
        listener.close()
        self._going.set()  # requests that were held up see that their listener is gone, and give up
        for guest in self._present().values():
            with contextlib.suppress(OSError):
                guest.shutdown(socket.SHUT_RDWR)


class _Conversation(BaseHTTPRequestHandler):
    """The requests of one connection; it is over when the constructor returns."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: two would wait for each other (Nagle), 40 ms each time

    def __init__(self, guest: socket.socket, answer: Callable[[str, str, bytes], tuple[int, bytes]]) -> None:
        self._answer = answer
        super().__init__(guest, ("", 0), cast("BaseServer", None))  # the base class only stores it

    def do_GET(self) -> None:
        """Answer, whatever the method is."""
        status, payload = self._answer(self.command, self.path, self._body())
        empty = status in (204, 304)
        self.send_response(status)
        if not empty:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if not empty and self.command != "HEAD":
            self.wfile.write(payload)

    do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_POST = do_PUT = do_GET  # noqa: N815 - names of the base

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's parameter
        """Keep quiet: whoever drives the server reads its counters."""

    def _body(self) -> bytes:
        size = self.headers.get("Content-Length", "0")
        if not size.isdecimal() or "Transfer-Encoding" in self.headers:
            msg = "only bodies with a plain length are understood"
            raise ConnectionAbortedError(msg)
        raw = self.rfile.read(int(size))
        if len(raw) < int(size):
            msg = "the client left in the middle of its request"
            raise ConnectionAbortedError(msg)
        return raw


def _listening(address: Address) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if isinstance(address, str):
            Path(address).unlink(missing_ok=True)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
        if not LINUX:
            listener.settimeout(0.5)  # elsewhere shutdown() does not wake accept()
    except BaseException:
        listener.close()
        raise
    return listener


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
