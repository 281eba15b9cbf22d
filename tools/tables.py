"""Write the tables of the documentation that are made from the code: what each condition or rule means.

    python tools/tables.py [--check]

A table stands between the marks `<!-- table: NAME -->` and `<!-- end table -->`. With `--check` nothing is
written, and the exit status is 1 if a page is not up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from safehold import Outcome, health
from safehold._runtime import log
from safehold.callsites import _conversation, _http, _redis_table, process
from safehold.callsites._table import MISCONFIGURED, Row
from safehold.surfaces._metrics import METRICS

DOCS: Final = Path(__file__).parents[1] / "docs"
_BLOCK: Final = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end table -->)", re.DOTALL)


def conditions(rows: Iterable[Row]) -> str:
    """Give what happens to a call as a Markdown table; there is a column for facets where a row has one."""
    rows = list(rows)
    faceted = any(row.judgement.facets for row in rows)
    columns = ["what happens", "counts as a failure", *(["facet"] if faceted else []), "may have run"]
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        facets = [", ".join(f"`{facet}`" for facet in row.judgement.facets)] if faceted else []
        lines.append([row.what, _counts(row), *facets, str(row.sent)])
    return _table(lines)


def rules() -> str:
    """Give the rules of the gate as a Markdown table, as `safehold ops` tells them."""
    lines = [["code", "automatic", "requested", "grant", "meaning"], ["---"] * 5]
    lines += [
        [f"`{rule.code}`", rule.automatic, rule.requested, rule.grant, rule.meaning]
        for rule in health.inventory().rules
    ]
    return _table(lines)


def log_lines() -> str:
    """Give the kinds of log lines, with their severities and fields."""
    lines = [["kind", "severity", "says", "fields"], ["---"] * 4]
    for kind, line in log.KINDS.items():
        lines.append([f"`{kind}`", line.severity, line.says, ", ".join(f"`{name}`" for name in line.fields)])
    return _table(lines)


def metrics() -> str:
    """Give what is exported, under both names."""
    lines = [["Prometheus", "OpenTelemetry", "kind", "unit", "labels", "what it is"], ["---"] * 6]
    for metric in METRICS:
        labels = ", ".join(
            f"`{label}` (`{name}`)" for label, name in zip(metric.labels, metric.attributes, strict=True)
        )
        names = [f"`{metric.shown}`", f"`{metric.name}`"]
        lines.append([*names, str(metric.kind), f"`{metric.unit}`", labels, metric.help])
    return _table(lines)


def _table(lines: Iterable[Iterable[str]]) -> str:
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _counts(row: Row) -> str:
    judgement = row.judgement
    if judgement.outcome is Outcome.FAILURE:
        by_hand = judgement.cause is not None and judgement.cause.code == MISCONFIGURED
        return "yes, and a person has to mend it" if by_hand else "yes"
    if judgement.facets:
        return "of its facet only"
    return "no, but it is a miss" if judgement.missed else "no"


TABLES: Final[Mapping[str, str]] = {
    "redis": conditions(_redis_table.TABLE),
    "http": conditions(_http.rows()),
    "streams": conditions(_conversation.TABLE),
    "process": conditions(process.TABLE),
    "rules": rules(),
    "log-lines": log_lines(),
    "metrics": metrics(),
}


def fill(page: str) -> str:
    """Give a page with its tables as the code has them; raise `KeyError` for a name that there is not."""
    return _BLOCK.sub(lambda found: found[1] + "\n" + TABLES[found[2]] + "\n" + found[3], page)


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say what is not up to date")
    check: bool = parser.parse_args(arguments).check
    late = [page for page in sorted(DOCS.rglob("*.md")) if fill(page.read_text()) != page.read_text()]
    for page in late:
        sys.stdout.write(f"{'not up to date' if check else 'written'}: {page.relative_to(DOCS.parent)}\n")
        if not check:
            page.write_text(fill(page.read_text()))
    return 1 if check and late else 0


if __name__ == "__main__":
    sys.exit(main())
