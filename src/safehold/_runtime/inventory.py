"""The inventory: everything destructive that a service has registered, to be read, reviewed and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict

from .._core.gate import RULES, Trigger

if TYPE_CHECKING:
    from .operations import Operation
    from .safehold import Safehold

_HOLDS: Final = {True: "blocks", False: "passes", None: "blocks unless closed"}


class BudgetReport(BaseModel):
    """What a budget allows; `population` names the function that counts, `None` where none does."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    per_hour: int | None
    share: float | None
    population: str | None
    zero_ok: bool
    hard_cap: int | None


class OperationReport(BaseModel):
    """One registered operation. `requires` is `None` where every critical dependency is required."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    owner: str | None
    trigger: Trigger
    module: str
    function: str
    line: int
    requires: tuple[str, ...] | None
    writes: tuple[str, ...]
    tolerates: tuple[str, ...]
    subject: str | None
    subject_type: str
    evidence: str | None
    evidence_age: float
    budget: BudgetReport | None


class RuleReport(BaseModel):
    """What one rule does to an automatic and to a requested operation, and whether a grant may lift it."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    code: str
    meaning: str
    automatic: str
    requested: str
    grant: str


class Inventory(BaseModel):
    """All operations of one Safehold, by name, and the rules that they are judged by."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    operations: tuple[OperationReport, ...]
    rules: tuple[RuleReport, ...]

    def to_json(self) -> str:
        """Give it as JSON that differs where the inventory does, and nowhere else."""
        return self.model_dump_json(indent=2) + "\n"

    def to_markdown(self) -> str:
        """Give it as two tables."""
        return "\n".join(
            [
                f"# Destructive operations of {self.name}",
                "",
                *_table(_HEAD, [_row(operation) for operation in self.operations]),
                "",
                "## What holds them back",
                "",
                *_table(_RULES_HEAD, [_rule_row(rule) for rule in self.rules]),
                "",
            ]
        )

    def differences(self, other: Inventory) -> list[str]:
        """Say in words in what `other` differs, which was written down before. A line that moved is none."""
        mine = {operation.name: operation for operation in self.operations}
        theirs = {operation.name: operation for operation in other.operations}
        told = [f"{name} is new" for name in mine if name not in theirs]
        told += [f"{name} is gone" for name in theirs if name not in mine]
        for name, operation in mine.items():
            if name in theirs:
                was, now = _flat(theirs[name]), _flat(operation)
                told += [
                    f"{name}: {field} was {was.get(field)!r} and is {now.get(field)!r}"
                    for field in dict.fromkeys([*was, *now])
                    if field != "line" and was.get(field) != now.get(field)
                ]
        if self.rules != other.rules:
            told.append("the rules are others: another version of Safehold wrote it")
        return told


def _flat(operation: OperationReport) -> dict[str, Any]:
    """Give the fields of a report as they are written, and those of its budget one by one."""
    report = operation.model_dump(mode="json")
    budget = report.pop("budget") or {}
    return {**report, **{f"budget.{name}": value for name, value in budget.items()}}


def inventory_of(home: Safehold) -> Inventory:
    """Take the inventory."""
    rules = tuple(
        RuleReport(
            code=rule.code,
            meaning=rule.meaning,
            automatic="blocks",
            requested=_HOLDS[rule.holds_requested],
            grant="may lift it" if rule.may_be_forced else "never",
        )
        for rule in RULES.values()
    )
    return Inventory(
        name=home.name, operations=tuple(_report(operation) for operation in home.operations), rules=rules
    )


def _report(operation: Operation) -> OperationReport:
    budget = operation.budget
    return OperationReport(
        name=operation.name,
        owner=operation.owner,
        trigger=operation.trigger,
        module=operation.module,
        function=operation.qualname,
        line=operation.line,
        requires=operation.requires,
        writes=tuple(sorted(operation.writes)),
        tolerates=tuple(sorted(operation.tolerates)),
        subject=operation.subject,
        subject_type=operation.subject_type,
        evidence=operation.evidence,
        evidence_age=operation.evidence_age,
        budget=None
        if budget is None
        else BudgetReport(
            per_hour=budget.per_hour,
            share=budget.share,
            population=None if budget.population is None else _name(budget.population),
            zero_ok=budget.zero_ok,
            hard_cap=budget.hard_cap,
        ),
    )


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


_HEAD: Final = ("operation", "trigger", "requires", "subject", "evidence", "budget", "owner", "code")
_RULES_HEAD: Final = ("rule", "automatic", "requested", "grant", "meaning")


def _row(operation: OperationReport) -> tuple[str, ...]:
    requires = "all critical" if operation.requires is None else ", ".join(operation.requires) or "nothing"
    if operation.writes:
        requires += f"; writes {', '.join(operation.writes)}"
    if operation.tolerates:
        requires += f"; tolerates {', '.join(operation.tolerates)}"
    subject = "-" if operation.subject is None else f"{operation.subject} ({operation.subject_type})"
    evidence = "-" if operation.evidence is None else f"{operation.evidence}, {operation.evidence_age:g} s"
    return (
        operation.name,
        str(operation.trigger),
        requires,
        subject,
        evidence,
        _limits(operation.budget),
        operation.owner or "-",
        f"{operation.module}:{operation.line}",
    )


def _limits(budget: BudgetReport | None) -> str:
    if budget is None:
        return "-"
    limits = [] if budget.per_hour is None else [f"{budget.per_hour} an hour"]
    if budget.share is not None and budget.population is not None:
        limits.append(f"{budget.share:.0%} of {budget.population}")
    return ", ".join(limits)


def _rule_row(rule: RuleReport) -> tuple[str, ...]:
    return rule.code, rule.automatic, rule.requested, rule.grant, rule.meaning


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]
