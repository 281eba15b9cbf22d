"""`safehold ops TARGET`: the destructive operations of an application, and what holds them back."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ._core.configuration import ConfigurationError

if TYPE_CHECKING:
    from ._runtime.inventory import Inventory
    from ._runtime.safehold import Safehold

_UP_TO_DATE, _DIFFERS, _USAGE = 0, 1, 2


def main(argv: list[str]) -> int:
    """Print the inventory of an application, or compare it with one on disk."""
    parser = argparse.ArgumentParser(
        prog="safehold ops",
        description="List the destructive operations that an application registers when it is imported.",
        epilog="exit codes: 0 fine, 1 the inventory on disk is out of date, 2 TARGET or FILE cannot be read",
        allow_abbrev=False,
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="a module (`app.main`), or a Safehold in one (`app.main:health`); by default the module's own "
        "Safehold, or the default one",
    )
    parser.add_argument("--format", choices=("text", "json", "markdown"), default="text")
    parser.add_argument(
        "--check",
        metavar="FILE",
        type=Path,
        help="compare with an inventory on disk, written with --format json",
    )
    options = parser.parse_args(argv)
    try:
        inventory = _safehold(options.target).inventory()
        if options.check is not None:
            return _compare(inventory, options.check)
    except ConfigurationError as error:
        print(f"safehold ops: {error}", file=sys.stderr)  # noqa: T201 - a command speaks to a person
        return _USAGE
    match options.format:
        case "json":
            told = inventory.to_json()
        case "markdown":
            told = inventory.to_markdown()
        case _:
            told = _text(inventory)
    print(told, end="")  # noqa: T201 - a command speaks to a person
    return _UP_TO_DATE


def _safehold(target: str) -> Safehold:
    from ._runtime.safehold import Safehold  # noqa: PLC0415 - lazily, like the commands

    name, _, attribute = target.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except Exception as error:
        msg = f"{name!r} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigurationError(msg) from error
    if attribute:
        found = getattr(module, attribute, None)
        if not isinstance(found, Safehold):
            msg = f"{target!r} is no Safehold but {found!r}"
            raise ConfigurationError(msg)
        return found
    own = {id(value): value for value in vars(module).values() if isinstance(value, Safehold)}
    if len(own) > 1:
        names = sorted(key for key, value in vars(module).items() if isinstance(value, Safehold))
        msg = f"{name!r} has several Safeholds; name one: {', '.join(f'{name}:{key}' for key in names)}"
        raise ConfigurationError(msg)
    if own:
        return own.popitem()[1]
    from . import health  # noqa: PLC0415 - the default one

    return health


def _compare(inventory: Inventory, file: Path) -> int:
    from pydantic import ValidationError  # noqa: PLC0415 - lazily, like the commands

    try:
        known = type(inventory).model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        msg = f"{file} is no inventory; write one with --format json ({type(error).__name__})"
        raise ConfigurationError(msg) from error
    differences = inventory.differences(known)
    for difference in differences:
        print(difference)  # noqa: T201 - a command speaks to a person
    print(f"{file} is {'out of date' if differences else 'up to date'}")  # noqa: T201 - as above
    return _DIFFERS if differences else _UP_TO_DATE


def _text(inventory: Inventory) -> str:
    lines = [f"{len(inventory.operations)} destructive operations of {inventory.name}", ""]
    for operation in inventory.operations:
        budget = operation.budget
        lines += [
            f"{operation.name}  ({operation.trigger})",
            f"    code      {operation.module}:{operation.line} {operation.function}",
            f"    owner     {operation.owner or '-'}",
            f"    requires  {_names(operation.requires)}",
        ]
        if operation.subject is not None:
            lines.append(f"    subject   {operation.subject}, of type {operation.subject_type}")
        if operation.evidence is not None:
            lines.append(f"    evidence  {operation.evidence}, at most {operation.evidence_age:g} s old")
        if budget is not None:
            share = budget.share if budget.population is not None else None
            told = {"an hour": budget.per_hour, "share": share, "hard cap": budget.hard_cap}
            limits = ", ".join(f"{value:g} {what}" for what, value in told.items() if value is not None)
            lines.append(f"    budget    {limits}")
    width = max(len(rule.code) for rule in inventory.rules)
    lines += ["", f"{'rule':<{width}}  {'automatic':<9}  {'requested':<20}  {'grant':<11}  meaning"]
    lines += [
        f"{rule.code:<{width}}  {rule.automatic:<9}  {rule.requested:<20}  {rule.grant:<11}  {rule.meaning}"
        for rule in inventory.rules
    ]
    return "\n".join(lines) + "\n"


def _names(requires: tuple[str, ...] | None) -> str:
    return "every critical dependency" if requires is None else ", ".join(requires) or "nothing"
