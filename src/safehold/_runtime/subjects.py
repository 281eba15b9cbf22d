"""Which of a function's parameters says what it is about, and how to read it from a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .._core.configuration import ConfigurationError
from . import log


def subject_parameter(function: Any, name: str, subject: str | None) -> str:
    """Check the parameter that was named; without a name, choose the first one that is not `self`."""
    if subject is not None:
        check_subject(function, name, subject)
        return subject
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in {"self", "cls"} and parameter.kind in {
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        }:
            return parameter.name
    msg = f"{name!r} needs a parameter that says which subject it is about"
    raise ConfigurationError(msg)


def check_subject(function: Any, name: str, subject: str) -> None:
    """Raise `ConfigurationError` unless `subject` names one parameter of the function."""
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    starred = subject in parameters and parameters[subject].kind in {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    if starred or (subject not in parameters and not takes_any):
        msg = f"subject={subject!r} of {name!r} is no parameter of the function; it has {list(parameters)!r}"
        raise ConfigurationError(msg)


def subject_reader(
    function: Any, subject: str | None
) -> Callable[[tuple[Any, ...], dict[str, Any]], str | None]:
    """Find the subject among the arguments of a call. One that cannot be read is `None`; the gate decides."""
    if subject is None:
        return lambda _, __: None
    parameters = inspect.signature(function).parameters
    parameter = parameters.get(subject)
    kind = inspect.Parameter.KEYWORD_ONLY if parameter is None else parameter.kind  # one of `**kwargs`
    default = None if parameter is None else parameter.default
    by_name = kind is not inspect.Parameter.POSITIONAL_ONLY
    by_place = kind is not inspect.Parameter.KEYWORD_ONLY
    index = list(parameters).index(subject) if by_place else -1

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        value: Any = default
        if by_name and subject in kwargs:
            value = kwargs[subject]
        elif by_place and index < len(args):
            value = args[index]
        try:
            return None if value is None or value is inspect.Parameter.empty else str(value)
        except Exception as error:  # noqa: BLE001 - the caller's object; the gate decides without it
            log.fault("subject_unreadable", error)
            return None

    return read
