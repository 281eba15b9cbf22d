"""The guard decorator: one wrapper per kind of callable, all with the same admission.

The wrapper of a function or coroutine function is generated with the function's own parameters, because
forwarding `*args, **kwargs` costs more than everything else a guarded call does. Generating costs a
tenth of a millisecond, so it waits for the first call: until then the wrapper holds a stub's code, and
on the first call its `__code__` is replaced. What is compiled is the fixed text of `_FAST` below, with
nothing of the caller's in it but identifiers taken from the function's own code object.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from types import CellType, CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from .._core.configuration import ConfigurationError
from ..errors import Refused
from .kinds import Kinds, around_async_generator, around_generator, named
from .permit import Permit, missed, refusal, turned_away
from .scope import innermost, scopes_open

if TYPE_CHECKING:
    from .dependency import Dependency

_FAST = """\
def factory(sh_breaker, sh_call, sh_missed, sh_refusal, sh_refused, sh_slow):
    {a}def guarded({parameters}):
        sh_era = sh_breaker.era
        if sh_era.ask or sh_scopes and sh_scope() is not None:
            if sh_era.generation.refuses and sh_refused(sh_era.generation):
                raise sh_refusal(sh_era.generation)
            return {w}sh_slow({arguments})
        try:
            sh_result = {w}sh_call({arguments})
            sh_next(sh_era.generation.tally)
            return sh_result
        except sh_everything as sh_error:
            sh_missed(sh_era, sh_error)
            raise
    return guarded
"""
_STUB = """\
def factory(sh_breaker, sh_call, sh_missed, sh_refusal, sh_refused, sh_slow):
    {a}def guarded(*args, **kwargs):
        sh_breaker, sh_call, sh_missed, sh_refusal, sh_refused
        return {w}sh_slow(*args, **kwargs)
    return guarded
"""
_NAMES = ("sh_breaker", "sh_call", "sh_missed", "sh_refusal", "sh_refused", "sh_slow")

# what the compiled code finds among this module's names
sh_everything, sh_next, sh_scope, sh_scopes = BaseException, next, innermost, scopes_open


def wrap(function: Any, dependency: Dependency, *, long: bool) -> Any:
    """Give the guarded form of what is decorated."""
    if isinstance(function, staticmethod | classmethod):
        return type(function)(wrap(function.__func__, dependency, long=long))
    if isinstance(function, type) or not callable(function):
        kind = "a class: guard its methods" if isinstance(function, type) else f"not callable: {function!r}"
        msg = f"guard({dependency.name!r}) decorates functions and methods, and this is {kind}"
        raise ConfigurationError(msg)
    kinds = Kinds(function)
    if kinds.is_generator or kinds.is_async_generator:
        around = around_generator if kinds.is_generator else around_async_generator
        return named(around(function, lambda *_: Permit(dependency, long=long, stepwise=True)), function)
    return named(_lazily(function, dependency, long=long, is_async=kinds.is_async), function)


# --- functions and coroutine functions ----------------------------------------------------------------


def _code(template: str, *, is_async: bool, parameters: str = "", arguments: str = "") -> CodeType:
    """Compile a template and give the code of its inner function."""
    text = template.format(
        a="async " if is_async else "",
        w="await " if is_async else "",
        parameters=parameters,
        arguments=arguments,
    )
    code: CodeType = compile(text, "<safehold guard>", "exec")
    for name in ("factory", "guarded"):
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
    return code


@cache
def _stub(*, is_async: bool) -> CodeType:
    return _code(_STUB, is_async=is_async)


def _lazily(function: Any, dependency: Dependency, *, long: bool, is_async: bool) -> FunctionType:
    permit = partial(dependency.permit, long=long)

    async def ended(coroutine: Any) -> Any:
        try:
            with permit():
                return await coroutine
        finally:
            coroutine.close()  # refused, it was never begun

    def awaits(coroutine: Any) -> Any:
        _switch(wrapper, _slow_async(function, permit))
        return ended(coroutine)

    slow = _slow_async(function, permit) if is_async else _slow(function, permit, awaits)
    specialise = partial(_specialise, function=function, slow=slow, is_async=is_async)

    def first(*args: Any, **kwargs: Any) -> Any:
        generation = dependency._breaker.era.generation
        if turned_away(dependency, generation):  # nothing is learnt of the function; so it is refused cheaply
            raise refusal(dependency, generation)
        with suppress(ValueError):  # some builtins do not say what they take
            inspect.signature(function).bind(*args, **kwargs)  # arguments that do not fit end here, uncounted
        try:
            result = slow(*args, **kwargs)
        except Refused:
            raise  # it was not called, so what it gives is not known yet
        except BaseException:
            specialise(wrapper)
            raise
        if is_async or not inspect.iscoroutine(result):
            specialise(wrapper)
        return result

    values = (
        dependency._breaker,
        function,
        partial(missed, dependency),
        partial(refusal, dependency),
        partial(turned_away, dependency),
        first,
    )
    cells = tuple(CellType(value) for value in values)
    wrapper = FunctionType(_stub(is_async=is_async), globals(), closure=cells)
    return wrapper


def _slow(function: Any, permit: Callable[[], Permit], awaits: Callable[[Any], Any]) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        entered = permit().__enter__()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            entered.fail(error)
            raise
        if inspect.iscoroutine(result):
            entered.withdraw()
            return awaits(result)
        entered.succeed()
        return result

    return guarded


def _slow_async(function: Any, permit: Callable[[], Permit]) -> Callable[..., Any]:
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        with permit():
            return await function(*args, **kwargs)

    return guarded


# A plain function that gives a coroutine (an `async def` under a decorator that is none) shows on its first
# call what it is. From then on its wrapper guards the coroutine and not the making of it.


def _switch(wrapper: FunctionType, to: Callable[..., Any]) -> None:
    cells = dict(zip(_NAMES, wrapper.__closure__ or (), strict=True))
    cells["sh_slow"].cell_contents = to
    wrapper.__code__ = _stub(is_async=False).replace(
        co_name=wrapper.__name__, co_qualname=wrapper.__qualname__
    )


def _specialise(wrapper: FunctionType, function: Any, slow: Callable[..., Any], *, is_async: bool) -> None:
    """Replace the stub by code with the function's own parameters. Two threads may do so at once."""
    parameters, arguments = _signature(function)
    code = _code(_FAST, is_async=is_async, parameters=parameters, arguments=arguments)
    cells = dict(zip(_NAMES, wrapper.__closure__ or (), strict=True))
    if parameters != _ANY:
        wrapper.__defaults__, wrapper.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    wrapper.__code__ = code.replace(co_name=wrapper.__name__, co_qualname=wrapper.__qualname__)
    cells["sh_slow"].cell_contents = slow


_ANY = "*args, **kwargs"


def _signature(function: Any) -> tuple[str, str]:
    """Write the parameters and the arguments that pass them on; `*args, **kwargs` where names would clash."""
    if not isinstance(function, FunctionType):
        return _ANY, _ANY
    code = function.__code__
    counts = (code.co_argcount, code.co_kwonlyargcount)
    names = code.co_varnames
    positional, only = names[: counts[0]], names[counts[0] : sum(counts)]
    rest = names[sum(counts) :]
    if any(
        not n.isidentifier() or keyword.iskeyword(n) or n.startswith("sh_") for n in names[: sum(counts) + 2]
    ):
        return _ANY, _ANY
    parameters, arguments = list(positional), list(positional)
    if code.co_posonlyargcount:
        parameters.insert(code.co_posonlyargcount, "/")
    if code.co_flags & inspect.CO_VARARGS:
        parameters.append(f"*{rest[0]}")
        arguments.append(f"*{rest[0]}")
        rest = rest[1:]
    elif only:
        parameters.append("*")
    parameters += only
    arguments += [f"{name}={name}" for name in only]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        parameters.append(f"**{rest[0]}")
        arguments.append(f"**{rest[0]}")
    return ", ".join(parameters), ", ".join(arguments)
