"""Who answers a request: routes with placeholders, exact paths first."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """What a handler is given: ``params`` from the path's placeholders; ``body`` is parsed, or ``None``."""

    method: str
    path: str
    query: Mapping[str, str]
    params: Mapping[str, str]
    body: Any


Handler: TypeAlias = Callable[[ApiRequest], tuple[int, object]]


class _Route(NamedTuple):
    name: str
    method: str
    pattern: re.Pattern[str]
    handler: Handler


def compile_routes(routes: Mapping[str, Handler]) -> list[_Route]:
    """Put exact paths before those with placeholders."""
    compiled: list[_Route] = []
    for name, handler in sorted(routes.items(), key=lambda item: item[0].count("{")):
        method, _, path = name.partition(" ")
        if not (method.isupper() and path.startswith("/")):
            msg = f'a route reads like "GET /sessions/{{id}}", got {name!r}'
            raise ValueError(msg)
        parts = re.split(r"\{(\w+)\}", path)
        pattern = "".join(f"(?P<{part}>[^/]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
        compiled.append(_Route(name, method, re.compile(pattern), handler))
    return compiled


def no_such_path(request: ApiRequest) -> tuple[int, object]:
    return 404, {"error": f"there is no {request.path}"}


def no_such_method(request: ApiRequest) -> tuple[int, object]:
    return 405, {"error": f"{request.path} does not take {request.method}"}
