"""What the documentation shows is what happens, and what exists is documented."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import safehold
from safehold import errors
from safehold._core.gate import RULES
from safehold._runtime.budgets import BudgetHandle
from safehold._runtime.inventory import BudgetReport, OperationReport, RuleReport
from safehold._runtime.ledger import Ledger
from safehold.testing.clock import ManualClock
from safehold.testing.proxy import FaultProxy

from .pages import COMMANDS, ROOT, Block, PageError, blocks, compare, in_code, pages, programs, run, spoken

SOURCE = ROOT / "src" / "safehold"
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
PAGES = pages()


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- the pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_a_page_does_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    """Every code block runs, and prints exactly what stands below it."""
    for program in programs(blocks(page.read_text())):
        run(program, name_of(page), tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    """A link to another page of the project names a file, and a heading, that exist."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target


def test_the_index_lists_every_page() -> None:
    """A page that nobody links is a page that nobody reads."""
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES:
        if page.parent != ROOT and page.name != "index.md":
            assert f"({page.relative_to(ROOT / 'docs')})" in index


@pytest.mark.parametrize("mark", COMMANDS)
def test_the_command_of_the_readme_is_the_one_that_is_run(mark: str) -> None:
    """The README's command is one line, and `.ci/run` runs this very line or takes it from there."""
    (block,) = (b for b in blocks((ROOT / "README.md").read_text()) if b.mark == mark)
    (line,) = block.source.splitlines()
    script = (ROOT / ".ci" / "run").read_text()
    assert line in script or ("README.md" in script and " command -->" in script)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_one_word_for_each_concept(page: Path) -> None:
    """The pages use the library's words, and no synonyms of them."""
    synonyms = (
        r"circuits?|quarantine\w*|approvals?|health.?checks?|fallbacks?|bulkheads?|throttl\w+|fuses?|"
        r"cool.?offs?|heal|blacklist\w*|kill.?switch\w*|guard.?rails?|audit logs?|downtimes?|half.open state|"
        r"tokens?|watchdogs?|veto\w*|den(?:y|ied|ies)|reject\w*|short.circuit\w*|upstreams?"
    )
    met = re.findall(rf"\b(?:{synonyms})\b", spoken(page.read_text()), re.IGNORECASE)
    assert not met


# --- the reference ------------------------------------------------------------------------------------


def public(thing: object) -> list[str]:
    return [name for name in dir(thing) if not name.startswith("_")]


@pytest.mark.parametrize("name", safehold.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    """Whatever can be imported from `safehold` can be looked up."""
    assert name in in_code(REFERENCE)


@pytest.mark.parametrize(
    "module",
    [
        "callsites.redis",
        "callsites.httpx",
        "callsites.httpx2",
        "callsites.requests",
        "callsites.aiohttp",
        "callsites.streams",
        "callsites.process",
        "testing.proxy",
        "testing.servers",
        "surfaces.otel",
        "surfaces.prometheus",
        "witnesses",
        "tenacity",
        "grants",
        "probes",
    ],
)
def test_every_public_name_of_a_module_is_in_the_reference(module: str) -> None:
    """What a module exports can be looked up."""
    names = importlib.import_module(f"safehold.{module}").__all__
    assert set(names) - in_code(REFERENCE) == set()


@pytest.mark.parametrize(
    "kind",
    [
        safehold.Safehold,
        safehold.Dependency,
        safehold.Permit,
        safehold.Scope,
        safehold.Subscription,
        safehold.Clock,
        safehold.Budget,
        BudgetHandle,
        Ledger,
        safehold.Grant,
        safehold.Plan,
        safehold.Sweep,
        safehold.AsyncSweep,
        safehold.SweepReport,
        safehold.Pace,
        safehold.Limiter,
        safehold.RetryBudget,
        safehold.Subsystem,
        ManualClock,
        FaultProxy,
        errors.ConfigurationError,
        errors.OperationBlocked,
    ],
    ids=lambda kind: kind.__name__,
)
def test_every_method_is_in_the_reference(kind: type) -> None:
    """What a person may call can be looked up. (Those for the rest of the library are not for people.)"""
    inner = {"declare", "provide", "sharing", "taint", "begin", "end", "facts", "lineage", "take", "reborn"}
    inner |= {"keep", "intent", "outcome", "note", "blocked"} if kind is Ledger else set()
    inherited = {"args", "with_traceback", "add_note"}
    assert set(public(kind)) - inner - inherited - in_code(REFERENCE) == set()


@pytest.mark.parametrize(
    "kind",
    [
        safehold.BreakerPolicy,
        safehold.ProbePolicy,
        safehold.GatePolicy,
        safehold.LogPolicy,
        safehold.Backoff,
        safehold.CountWindow,
        safehold.TimeWindow,
        safehold.Transition,
        safehold.ForcedAct,
        safehold.Timeline,
        safehold.TimelineEntry,
        safehold.Decision,
        safehold.Verdict,
        safehold.Reason,
        safehold.Operation,
        safehold.DependencyReport,
        safehold.HealthReport,
        safehold.Refusal,
        safehold.Evidence,
        safehold.Budget,
        safehold.EpochReading,
        safehold.GrantRequest,
        safehold.Plan,
        safehold.SweepReport,
        safehold.Swept,
        safehold.Tick,
        safehold.PaceReport,
        safehold.LimiterReport,
        safehold.SubsystemReport,
        safehold.Entry,
        safehold.Inventory,
        OperationReport,
        BudgetReport,
        RuleReport,
    ],
    ids=lambda kind: kind.__name__,
)
def test_every_field_is_in_the_reference(kind: type) -> None:
    """Every setting and every member of what is reported can be looked up."""
    assert set(kind.__annotations__) - {"model_config"} - in_code(REFERENCE) == set()


@pytest.mark.parametrize(
    "kind",
    [safehold.BreakerPolicy, safehold.ProbePolicy, safehold.GatePolicy, safehold.LogPolicy, safehold.Backoff],
    ids=lambda kind: kind.__name__,
)
def test_the_reference_names_the_defaults_that_there_are(kind: type) -> None:
    """A default that has changed is a page that has to."""
    section = REFERENCE.split(f"\n### {kind.__name__}\n", 1)[1].split("\n#", 1)[0]
    made = kind()
    for field in kind.__annotations__:
        if field != "model_config":
            value = getattr(made, field)
            shown = f"{value:g}" if isinstance(value, int | float) else str(value)
            (row,) = re.findall(rf"^\| `{field}` \|.*$", section, re.MULTILINE)
            default = row.split("|")[4].strip(' `"')
            assert default in {shown, "CountWindow(100)", "Backoff()"}, field


def codes() -> set[str]:
    """Every stable code that the source can produce."""
    found = set(RULES)
    for path in SOURCE.rglob("*.py"):
        if "drill" in path.parts or "testing" in path.parts:
            continue
        text = path.read_text()
        for pattern in (
            r'\bcode="(\w+)"',
            r'\bcode(?:: ClassVar\[str\])? = "(\w+)"',
            r'(?:blocked_by|_missed|log\.fault)\(\s*"(\w+)"',
            r"_by_hand\(self\._breaker\.(\w+)",
        ):
            found.update(re.findall(pattern, text))
        for line in re.findall(r"self\.reason = (.*)", text):
            found.update(re.findall(r'"(\w+)"', line))
        for line in re.findall(r"self\.state, self\.reason = (.*)", text):
            found.update(re.findall(r'"(\w+)"', line))
    return found


def test_every_code_is_in_the_reference() -> None:
    """Whoever meets a code in a log, a report or an error finds out what it means."""
    known = codes()
    some = {"scope_tainted", "gate_fault", "startup_grace", "lease_expired", "probe_interrupted", "held"}
    assert some | {"breaker_open", "dependency_recovering", "operation_blocked", "hold"} <= known
    assert known - in_code(REFERENCE) == set()


def test_for_every_rule_the_reference_says_what_helps() -> None:
    """Whoever is blocked finds a way out, in the order of the decision."""
    table = REFERENCE.split("\nWhat helps:\n", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^\| `(\w+)` \| \S", table, re.MULTILINE) == list(RULES)


# --- the test of the tests ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        "```yaml\na: 1\n```\n",  # a language that nobody runs
        "```\na\n```\n",
        "```text\na\n```\n",  # output of nothing
        "- item\n\n  ```python\n  1\n  ```\n",  # fenced where the fence is not seen
        "~~~\na\n~~~\n",
        "word\n\n    indented\n",
        "```python\nprint(1)\n",  # without end
        "<!-- outptu -->\n```text\n1\n```\n",
    ],
)
def test_no_block_is_skipped_silently(page: str) -> None:
    """A block that would not be run is a mistake in the page."""
    with pytest.raises(PageError):
        blocks(page)


@pytest.mark.parametrize(
    "page",
    [
        "```python\nprint(1)\n```\n",  # printed and not shown
        "```python\nprint(1)\n```\n\n<!-- output -->\n```text\n2\n```\n",
        "```python\npass\n```\n\n<!-- output -->\n```text\n2\n```\n",
        "```python\n1 / 0\n```\n",
        "```sh\nfalse\n```\n",
        "```python\nx = 1\n```\n\n<!-- alone -->\n```python\nx\n```\n",
        "```python\nimport sys; print(1, file=sys.stderr)\n```\n",
    ],
)
def test_a_page_that_is_wrong_fails(page: str, tmp_path: Path) -> None:
    """What is not as the page says is found."""
    with pytest.raises(PageError):
        for program in programs(blocks(page)):
            run(program, "page", tmp_path)


def test_a_page_that_is_right_passes(tmp_path: Path) -> None:
    """Blocks share what they make, also across one that stands alone; `...` matches anything."""
    page = (
        "```python\nx = 1\n```\n\n<!-- alone -->\n```python\nprint('alone')\n```\n\n"
        "<!-- output -->\n```text\nalone\n```\n\n```python\nprint(x, 'and more')\n```\n\n"
        "<!-- output -->\n```text\n1 ...\n```\n\n```sh\necho a\n```\n\n<!-- output -->\n```text\na\n```\n"
    )
    found = blocks(page)
    assert found[0] == Block(line=1, language="python", mark="", source="x = 1\n")
    for program in programs(found):
        run(program, "page", tmp_path)


def test_dots_match_only_where_they_stand() -> None:
    """An ellipsis excuses what it stands for, and nothing else."""
    compare("a ... c", "a b c", "here")
    with pytest.raises(PageError):
        compare("a ... c", "a b c d", "here")
