"""Every scenario, and every rule against itself: with any one switched off, a scenario fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from safehold._core.gate import RULES

from .catalogue import SCENARIOS, Scenario
from .world import World

Make = Callable[..., World]

MUTATIONS = [(code, scenario) for scenario in SCENARIOS for code in scenario.without]
ELSEWHERE = {
    "not_registered": "tests/runtime/test_gate.py",
    "gate_fault": "tests/runtime/test_gate_faults.py",
    "ledger_unavailable": "tests/runtime/test_durable_ledger.py",
    "grant_invalid": "tests/runtime/test_grants.py",
    "no_ticket": "tests/callsites/test_redis_destructive.py",
    "observer_sick": "tests/e2e/test_sick_observer.py",
    "budget_state_lost": "tests/runtime/test_budgets.py",
}
"""Rules that cannot be switched off, or that need a process of their own: where they are shown to matter."""
PAGE = Path(__file__).parents[2] / "docs" / "rules-against-themselves.md"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.id)
def test_scenario(scenario: Scenario, make: Make) -> None:
    """Nothing is destroyed that should not be, and with complete proof it is."""
    scenario.happen(make)


@pytest.mark.parametrize(("code", "scenario"), MUTATIONS, ids=[f"{code}-{s.id}" for code, s in MUTATIONS])
def test_without_the_rule_the_scenario_fails(code: str, scenario: Scenario, make: Make) -> None:
    """A rule that nobody would miss is no rule."""
    with pytest.raises(AssertionError):
        scenario.happen(partial(make, off={code}))


def test_every_rule_is_missed_by_a_scenario() -> None:
    """Or is shown to matter elsewhere, by name."""
    missed = {code for code, _ in MUTATIONS}
    assert missed | set(ELSEWHERE) == set(RULES)
    assert not missed & set(ELSEWHERE)
    for place in ELSEWHERE.values():
        assert (Path(__file__).parents[2] / place).exists(), place


def test_the_table_in_the_docs_is_this_one() -> None:
    """What a reader sees is what was run."""
    page = PAGE.read_text()
    assert table() in page, f"put this into {PAGE.name}:\n{table()}"


def table() -> str:
    """Give the table of rules and scenarios, and the list of scenarios, as the page has them."""
    by_code = {code: [s.id for other, s in MUTATIONS if other == code] for code in RULES}
    rows = [f"| `{code}` | {', '.join(by_code[code]) or f'`{ELSEWHERE[code]}`'} |" for code in RULES]
    told = [f"| {scenario.id} | {scenario.told} |" for scenario in SCENARIOS]
    return "\n".join(
        [
            "| rule | what fails without it |",
            "|---|---|",
            *rows,
            "",
            "| scenario | what happens |",
            "|---|---|",
            *told,
        ]
    )


def test_no_two_scenarios_have_one_id() -> None:
    """Else one of them would be hidden behind the other."""
    ids = [scenario.id for scenario in SCENARIOS]
    assert len(ids) == len(set(ids))
