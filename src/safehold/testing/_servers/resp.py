"""Talk to Redis: as much of its protocol, RESP2, as a command and its reply need."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import BinaryIO, TypeAlias

from .place import Address

Word: TypeAlias = str | bytes | int | float
Reply: TypeAlias = "str | int | ErrorReply | list[Reply] | None"


class ErrorReply(RuntimeError):
    """Redis answered a command with an error; ``code`` is its first word, such as ``LOADING``."""

    @property
    def code(self) -> str:
        """Whatever stands before the first blank."""
        return str(self).partition(" ")[0]


def converse(address: Address, timeout: float, *commands: Sequence[Word]) -> Reply:
    """Send each command when the one before it is answered; the last reply is the result."""
    reply: Reply = None
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(address)
        with sock.makefile("rb") as stream:
            for words in commands:
                sock.sendall(_encoded(words))
                reply = _reply(stream)
                if isinstance(reply, ErrorReply):
                    raise reply
    return reply


def _encoded(words: Sequence[Word]) -> bytes:
    raw = [word if isinstance(word, bytes) else str(word).encode(errors="surrogateescape") for word in words]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw)


def _reply(stream: BinaryIO) -> Reply:
    line = _whole(stream.readline())
    rest = line[1:].decode(errors="surrogateescape")
    match line[:1]:
        case b"+":
            return rest
        case b"-":
            return ErrorReply(rest)
        case b":":
            return int(rest)
        case b"$" if (size := int(rest)) >= 0:
            return _whole(stream.read(size + 2), size).decode(errors="surrogateescape")
        case b"*" if (size := int(rest)) >= 0:
            return [_reply(stream) for _ in range(size)]
        case b"$" | b"*":
            return None
        case _:
            msg = f"not a RESP2 reply: {line[:40]!r}"
            raise ValueError(msg)


def _whole(raw: bytes, size: int = 0) -> bytes:
    if len(raw) < size + 2 or not raw.endswith(b"\r\n"):
        msg = "the connection ended before the reply was complete"
        raise ConnectionResetError(msg)
    return raw[:-2]
