"""The decision in front of every destructive operation, as a function of the facts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safehold._core.budget import Finding
from safehold._core.evidence import Demand, Evidence, Presence
from safehold._core.gate import (
    RULES,
    SELF,
    DependencyFacts,
    GateSettings,
    Reason,
    ScopeFacts,
    Situation,
    Trigger,
    Verdict,
    blocked_by,
    decide,
)
from safehold._core.health import WORST_FIRST, BreakerState, HealthState

AUTOMATIC, REQUESTED = Trigger.AUTOMATIC, Trigger.REQUESTED
SETTINGS = GateSettings(startup_grace=30.0, implicit_scope=60.0)


def redis(**facts: Any) -> DependencyFacts:
    return DependencyFacts(**{"name": "redis", "probe_timeout": 1.0, **facts})


DEGRADED = redis(state=HealthState.DEGRADED)
UNKNOWN = redis(state=HealthState.UNKNOWN)
SETTLING = redis(state=HealthState.RECOVERING, settle_left=40.0)
HALF_OPEN = redis(state=HealthState.RECOVERING, breaker=BreakerState.HALF_OPEN, retry_after=3.0)
OPEN = redis(state=HealthState.UNHEALTHY, breaker=BreakerState.OPEN, retry_after=7.0, unresolved_miss=True)
HELD = OPEN._replace(retry_after=None)
MISSED = redis(state=HealthState.DEGRADED, unresolved_miss=True, since_miss=100.0)


def situation(trigger: Trigger = AUTOMATIC, **facts: Any) -> Situation:
    """All is well, but for what is said."""
    return Situation(**{"operation": "session.reap", "trigger": trigger, "requires": (redis(),), **facts})


def verdict(trigger: Trigger = AUTOMATIC, **facts: Any) -> Verdict:
    reasons, remarks = decide(situation(trigger, **facts), SETTINGS)
    return Verdict(operation="session.reap", trigger=trigger, reasons=reasons, remarks=remarks)


def codes(reasons: tuple[Reason, ...]) -> list[str]:
    return [reason.code for reason in reasons]


def scope(**facts: Any) -> ScopeFacts:
    return ScopeFacts(**{"name": "sweep", **facts})


def evidence(presence: Presence) -> Evidence:
    return Evidence(
        presence=presence,
        subject="s1",
        witness="there",
        dependency="redis",
        asked=0,
        answered=0,
        generation=1,
    )


def demand(**facts: Any) -> Demand:
    """Complete proof, but for what is said."""
    complete = {"witness": "there", "subject": "s1", "known": True, "max_age": 5.0}
    return Demand(**{**complete, "seen": evidence(Presence.ABSENT), **facts})


FINDINGS = [
    Finding(code, "too many", None)
    for code in (
        "population_unknown", "population_collapsed", "budget_exceeded", "budget_tripped", "budget_state_lost",
        "small_population", "last_member", "hard_cap",
    )
]  # fmt: skip


# --- the table of triggers -----------------------------------------------------------------------------

BLOCK, REMARK = "blocks", "passes with a remark"

TABLE: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("undeclared", "undeclared_dependency", {"requires": (redis(declared=False),)}, BLOCK, BLOCK),
    ("unknown", "dependency_unknown", {"requires": (UNKNOWN,)}, BLOCK, REMARK),
    ("degraded by its rates", "dependency_degraded", {"requires": (DEGRADED,)}, BLOCK, REMARK),
    ("settling", "dependency_recovering", {"requires": (SETTLING,)}, BLOCK, REMARK),
    ("half-open", "dependency_recovering", {"requires": (HALF_OPEN,)}, BLOCK, BLOCK),
    ("open", "dependency_unhealthy", {"requires": (OPEN,)}, BLOCK, BLOCK),
    ("held", "dependency_unhealthy", {"requires": (HELD,)}, BLOCK, BLOCK),
    ("unresolved miss", "unresolved_miss", {"requires": (MISSED,)}, BLOCK, REMARK),
    ("recent miss", "recent_miss", {"requires": (redis(since_miss=59.0),)}, BLOCK, REMARK),
    ("tainted scope", "scope_tainted", {"scope": scope(taints={"redis": "timed out"})}, BLOCK, REMARK),
    ("call in flight", "call_in_flight", {"scope": scope(in_flight={"redis": 2})}, BLOCK, REMARK),
    ("handling", "handling_failure", {"handling": "TimeoutError from redis"}, BLOCK, BLOCK),
    ("cancellation", "interrupted", {"interrupted": "a cancellation"}, BLOCK, BLOCK),
    ("finaliser", "finalising", {"finalising": "in a finaliser"}, BLOCK, BLOCK),
    ("start-up", "startup_grace", {"startup_left": 12.0}, BLOCK, REMARK),
    ("nothing required", "nothing_required", {"requires": ()}, BLOCK, REMARK),
    ("sick observer", "observer_sick", {"observer": ("did not run for 12 s", 20.0)}, BLOCK, BLOCK),
    ("unread epoch", "epoch_unknown", {"requires": (redis(epoch_unknown="timed out"),)}, BLOCK, BLOCK),
    ("new data", "epoch_unexplained", {"requires": (redis(epoch_unexplained="no canary"),)}, BLOCK, BLOCK),
    ("no witness", "evidence_missing", {"evidence": demand(known=False)}, BLOCK, BLOCK),
    ("no subject", "evidence_missing", {"evidence": demand(subject=None)}, BLOCK, BLOCK),
    ("not asked", "evidence_missing", {"evidence": demand(seen=None)}, BLOCK, BLOCK),
    ("present", "evidence_present", {"evidence": demand(seen=evidence(Presence.PRESENT))}, BLOCK, BLOCK),
    ("cannot tell", "evidence_unknown", {"evidence": demand(seen=evidence(Presence.UNKNOWN))}, BLOCK, BLOCK),
    ("other scope", "evidence_foreign", {"evidence": demand(same_scope=False)}, BLOCK, BLOCK),
    ("other generation", "evidence_overtaken", {"evidence": demand(same_generation=False)}, BLOCK, BLOCK),
    ("other epoch", "evidence_overtaken", {"evidence": demand(same_epoch=False)}, BLOCK, BLOCK),
    ("miss since", "evidence_overtaken", {"evidence": demand(miss_since=True)}, BLOCK, BLOCK),
    ("sick since", "evidence_overtaken", {"evidence": demand(sick_since=True)}, BLOCK, BLOCK),
    ("old", "evidence_stale", {"evidence": demand(age=5.1)}, BLOCK, BLOCK),
    *[
        (
            finding.code,
            finding.code,
            {"budget": (finding,)},
            BLOCK,
            BLOCK if finding.code == "hard_cap" else REMARK,
        )
        for finding in FINDINGS
    ],
]


@pytest.mark.parametrize(
    ("code", "facts", "automatic", "requested"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_each_row_of_the_table_of_triggers(
    code: str, facts: dict[str, Any], automatic: str, requested: str
) -> None:
    """What holds an automatic operation back, holds a person's wish back only where it speaks of the act itself."""
    for trigger, effect in ((AUTOMATIC, automatic), (REQUESTED, requested)):
        given_ = verdict(trigger, **facts)
        assert given_.allowed is (effect == REMARK)
        assert bool(given_) is given_.allowed
        assert codes(given_.reasons if effect == BLOCK else given_.remarks) == [code]
        assert codes(given_.remarks if effect == BLOCK else given_.reasons) == []


TWINS: dict[str, list[dict[str, Any]]] = {
    "undeclared_dependency": [{}],
    "dependency_unknown": [
        {"requires": (redis(state=HealthState.HEALTHY),)},
        {"requires": (), "requires_nothing": True},
    ],
    "dependency_degraded": [{}, {"states": {"other": HealthState.DEGRADED}}],
    "dependency_recovering": [{"states": {"other": HealthState.RECOVERING}}],
    "dependency_unhealthy": [{"states": {"other": HealthState.UNHEALTHY}}],
    "unresolved_miss": [{"requires": (redis(since_miss=60.0),)}, {"scope": scope()}],
    "recent_miss": [
        {"requires": (redis(since_miss=60.0),)},
        {"requires": (redis(since_miss=1e9),)},
        {"requires": (redis(since_miss=0.0),), "scope": scope()},
        {"requires": (redis(since_miss=None),)},
    ],
    "scope_tainted": [
        {"scope": scope()},
        {"scope": scope(taints={"cache": "refused"}), "tolerates": frozenset({"cache"})},
    ],
    "call_in_flight": [
        {"scope": scope()},
        {"scope": scope(in_flight={"cache": 1}), "tolerates": frozenset({"cache"})},
    ],
    "handling_failure": [{"handling": None}],
    "interrupted": [{"interrupted": None}],
    "finalising": [{"finalising": None}],
    "startup_grace": [{"startup_left": 0.0}],
    "nothing_required": [{"requires": (), "requires_nothing": True}],
    "observer_sick": [{"observer": None}],
    "epoch_unknown": [{"requires": (redis(epoch_unknown=""),)}],
    "epoch_unexplained": [{"requires": (redis(epoch_unexplained=""),)}],
    **{
        f"evidence_{code}": [{"evidence": demand()}, {"evidence": demand(age=5.0)}]
        for code in ("missing", "present", "unknown", "foreign", "overtaken", "stale")
    },
    **{finding.code: [{"budget": ()}] for finding in FINDINGS},
}


@pytest.mark.parametrize("trigger", Trigger)
@pytest.mark.parametrize(("code", "facts"), [(code, facts) for code, rows in TWINS.items() for facts in rows])
def test_each_reason_has_a_twin_that_is_allowed(code: str, facts: dict[str, Any], trigger: Trigger) -> None:
    """Next to every situation that blocks lies one that does not, and there nothing is even remarked."""
    given_ = verdict(trigger, **facts)
    assert given_.allowed
    assert given_.reasons == given_.remarks == ()


def test_the_table_and_its_twins_name_every_code() -> None:
    """No reason without a test; those that the shell adds, and the facet, have theirs elsewhere."""
    elsewhere = {
        "not_registered", "gate_fault", "ledger_unavailable", "grant_invalid", "no_ticket", "writes_refused",
    }  # fmt: skip
    assert {row[1] for row in TABLE} == set(TWINS) == set(RULES) - elsewhere


@pytest.mark.parametrize(("code", "facts"), [row[1:3] for row in TABLE], ids=[r[0] for r in TABLE])
def test_a_grant_lifts_the_rules_that_it_names_and_a_test_build_switches_them_off(
    code: str, facts: dict[str, Any]
) -> None:
    """What a grant lifts is remarked on; what it does not name still blocks. A rule that is off says nothing."""
    for trigger in Trigger:
        lifted = verdict(trigger, overrides=frozenset({code}), **facts)
        assert lifted.allowed
        assert codes(lifted.remarks) == [code]
        other = frozenset(RULES) - {code}
        assert verdict(trigger, overrides=other, **facts).allowed == verdict(trigger, **facts).allowed
        off = decide(situation(trigger, **facts), SETTINGS._replace(off=frozenset({code})))
        assert off == ((), ())


# --- what a reason says --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "retry_after"),
    [
        ({"requires": (OPEN,)}, 7.0),
        ({"requires": (OPEN._replace(retry_after=0.0),)}, 1.0),
        ({"requires": (OPEN._replace(retry_after=0.0, probe_timeout=None),)}, 0.0),
        ({"requires": (HALF_OPEN,)}, 3.0),
        ({"requires": (HELD,)}, None),
        ({"requires": (UNKNOWN,)}, 1.0),
        ({"requires": (UNKNOWN._replace(probe_timeout=2.5),)}, 2.5),
        ({"requires": (SETTLING,)}, 40.0),
        ({"requires": (SETTLING._replace(settle_left=0.0),)}, 1.0),
        ({"requires": (MISSED,)}, 1.0),
        ({"requires": (redis(since_miss=18.0),)}, 42.0),
        ({"requires": (redis(declared=False),)}, None),
        ({"requires": ()}, None),
        ({"scope": scope(taints={"redis": "timed out"})}, 0.0),
        ({"scope": scope(in_flight={"redis": 1})}, 0.0),
        ({"handling": "TimeoutError"}, 0.0),
        ({"interrupted": "a cancellation"}, 0.0),
        ({"finalising": "at exit"}, None),
        ({"startup_left": 12.0}, 12.0),
        ({}, 0.0),
    ],
)
def test_retry_after_of_each_reason(facts: dict[str, Any], retry_after: float | None) -> None:
    """The breaker's own wait, or the time-out of the probe that the block orders; `None` where a person must act."""
    assert verdict(**facts).retry_after == retry_after


@pytest.mark.parametrize(
    ("facts", "retry_after"),
    [
        ({"requires": (OPEN,), "startup_left": 5.0}, 7.0),
        ({"requires": (OPEN,), "startup_left": 9.0}, 9.0),
        ({"requires": (OPEN,), "finalising": "at exit", "startup_left": 9.0}, None),
        ({"requires": (HELD, redis(name="api", state=HealthState.UNKNOWN))}, None),
        ({"requires": (redis(since_miss=1.0),), "handling": "OSError"}, 59.0),
    ],
)
def test_retry_after_is_the_longest_and_none_wins(facts: dict[str, Any], retry_after: float | None) -> None:
    """Several reasons are over when the last of them is; one that needs a person outweighs them all."""
    assert verdict(**facts).retry_after == retry_after


def test_every_reason_is_told() -> None:
    """Not just the first: what holds back is told as a whole."""
    told = verdict(
        requires=(
            OPEN,
            redis(name="api", declared=False),
            redis(name="db", since_miss=1.0),
            MISSED._replace(name="mq"),
        ),
        handling="OSError",
        interrupted="a cancellation",
        finalising="at exit",
        startup_left=1.0,
    )
    assert codes(told.reasons) == [
        "dependency_unhealthy",
        "undeclared_dependency",
        "unresolved_miss",
        "recent_miss",
        "finalising",
        "interrupted",
        "handling_failure",
        "startup_grace",
    ]


def test_the_worst_dependency_comes_first_then_the_order_of_declaration() -> None:
    """Unhealthy, recovering, unknown, degraded; equals as they were declared; nobody's fault last."""
    facts = {
        "d1": DEGRADED,
        "u1": UNKNOWN,
        "r1": HALF_OPEN,
        "o1": OPEN,
        "d2": DEGRADED,
        "o2": OPEN,
        "u2": UNKNOWN,
        "r2": SETTLING,
    }
    told = verdict(requires=tuple(f._replace(name=name) for name, f in facts.items()), startup_left=1.0)
    assert [r.dependency for r in told.reasons] == ["o1", "o2", "r1", "r2", "u1", "u2", "d1", "d2", SELF]


def test_a_taint_is_told_with_the_health_that_its_dependency_has() -> None:
    """A dependency that is not required may taint a scope; what is known of it is said, else unknown."""
    told = verdict(
        scope=scope(taints={"cache": "refused", "search": "timed out"}),
        states={"search": HealthState.UNHEALTHY},
    )
    assert [(r.dependency, r.state) for r in told.reasons] == [
        ("search", HealthState.UNHEALTHY),
        ("cache", HealthState.UNKNOWN),
    ]
    assert "begin a new scope" in told.reasons[0].text
    assert "timed out" in told.reasons[0].text
    assert "'sweep'" in told.reasons[0].text


def test_tolerance_covers_what_it_names_and_nothing_else() -> None:
    """`tolerates` lets the misses of a named dependency pass, not those of others and not its health."""
    tainted = scope(taints={"cache": "refused", "redis": "timed out"}, in_flight={"cache": 1})
    assert codes(verdict(scope=tainted, tolerates=frozenset({"cache"})).reasons) == ["scope_tainted"]
    assert verdict(requires=(OPEN,), tolerates=frozenset({"redis"})).reasons != ()


@pytest.mark.parametrize("facts", [UNKNOWN, DEGRADED, SETTLING, MISSED])
def test_a_block_says_what_helps_where_nothing_probes(facts: DependencyFacts) -> None:
    """No block without an exit: without a probe the reason says what to do."""
    text = verdict(requires=(facts._replace(probe_timeout=None),)).reasons[0].text
    assert "nothing probes it: call it, give it a probe, or leave redis out of requires" in text
    assert "nothing probes" not in verdict(requires=(facts,)).reasons[0].text


def test_reasons_name_the_dependency_its_state_since_when_and_why() -> None:
    """A person reads the reason and knows what is the matter."""
    told = verdict(requires=(OPEN._replace(since="12:00:01 UTC", cause="connection refused"),)).reasons[0]
    assert told.text == "redis is unhealthy since 12:00:01 UTC (connection refused)"
    assert (told.dependency, told.state) == ("redis", HealthState.UNHEALTHY)
    assert (
        verdict(requires=(redis(since_miss=1.5),))
        .reasons[0]
        .text.endswith("open a scope around the work that decides")
    )


def test_an_unresolved_miss_says_what_has_answered_since() -> None:
    """Nothing; or, after an outage, the trial that closed the breaker and no other call."""
    assert "did not answer and none has answered since" in verdict(requires=(MISSED,)).reasons[0].text
    told = verdict(requires=(SETTLING._replace(unresolved_miss=True),)).reasons
    assert codes(told) == ["dependency_recovering", "unresolved_miss"]
    assert "only a trial has answered since" in told[1].text


def test_nobody_is_to_blame_for_a_reason_of_our_own() -> None:
    """A reason without a dependency carries the reserved name."""
    reason = blocked_by("hard_cap", "too many", retry_after=None)
    assert (reason.dependency, reason.state, reason.holds_requested) == ("self", HealthState.UNKNOWN, True)


def test_the_implicit_scope_is_inclusive() -> None:
    """A miss exactly `implicit_scope` seconds ago is over, one just under is not; of the breaker's state it says nothing."""
    assert not verdict(requires=(redis(since_miss=59.999),))
    assert verdict(requires=(redis(since_miss=60.0),))
    no_wait = GateSettings(startup_grace=0.0, implicit_scope=0.0)
    assert decide(situation(requires=(redis(since_miss=0.0),)), no_wait) == ((), ())


# --- no failure adds permission ------------------------------------------------------------------------

NAMES = st.sampled_from(["redis", "api", "cache"])
SECONDS = st.sampled_from([0.0, 0.5, 59.0, 60.0, 1000.0])
WAITS = st.none() | SECONDS

DEPENDENCIES = st.builds(
    DependencyFacts,
    name=NAMES,
    declared=st.booleans(),
    state=st.sampled_from(HealthState),
    breaker=st.sampled_from(BreakerState),
    unresolved_miss=st.booleans(),
    since_miss=WAITS,
    retry_after=WAITS,
    settle_left=SECONDS,
    probe_timeout=st.none() | st.just(1.0),
    writes_refused=st.none() | st.just("READONLY"),
    epoch_unknown=st.sampled_from(["", "timed out"]),
    epoch_unexplained=st.sampled_from(["", "the canary is missing"]),
)
DEMANDS = st.builds(
    Demand,
    witness=st.just("there"),
    subject=st.sampled_from([None, "s1"]),
    known=st.booleans(),
    max_age=st.just(5.0),
    seen=st.none() | st.sampled_from(Presence).map(evidence),
    age=SECONDS,
    same_scope=st.booleans(),
    same_generation=st.booleans(),
    same_epoch=st.booleans(),
    miss_since=st.booleans(),
    sick_since=st.booleans(),
)
SITUATIONS = st.builds(
    Situation,
    operation=st.just("reap"),
    trigger=st.sampled_from(Trigger),
    requires=st.lists(DEPENDENCIES, max_size=3).map(tuple),
    requires_nothing=st.booleans(),
    tolerates=st.frozensets(NAMES, max_size=1),
    scope=st.none()
    | st.builds(
        ScopeFacts,
        name=st.just("sweep"),
        taints=st.dictionaries(NAMES, st.just("timed out"), max_size=2),
        in_flight=st.dictionaries(NAMES, st.integers(1, 3), max_size=2),
    ),
    states=st.dictionaries(NAMES, st.sampled_from(HealthState), max_size=2),
    writes=st.frozensets(NAMES, max_size=1),
    evidence=st.none() | DEMANDS,
    observer=st.none() | st.just(("this process did not run for 12 s", 20.0)),
    budget=st.lists(st.sampled_from(FINDINGS), max_size=2).map(tuple),
    overrides=st.just(frozenset()),
    handling=st.none() | st.just("OSError"),
    interrupted=st.none() | st.just("a cancellation"),
    finalising=st.none() | st.just("at exit"),
    startup_left=SECONDS,
)


def failures_in(before: Situation, name: str) -> list[Situation]:
    """The same situation with one failure more, each way."""
    worse = [before._replace(handling="TimeoutError"), before._replace(interrupted="a generator's close")]
    worse += [
        before._replace(finalising="in a finaliser"),
        before._replace(startup_left=before.startup_left + 1),
    ]
    worse += [
        before._replace(observer=("stalled", 1.0)),
        before._replace(budget=(*before.budget, *FINDINGS)),
    ]
    if (demand := before.evidence) is not None:
        worse += [
            before._replace(evidence=turned)
            for turned in (
                demand._replace(seen=None),
                demand._replace(seen=evidence(Presence.UNKNOWN)),
                demand._replace(same_generation=False),
                demand._replace(same_epoch=False),
                demand._replace(miss_since=True),
                demand._replace(sick_since=True),
                demand._replace(age=demand.age + 1000),
            )
        ]
    for index, facts in enumerate(before.requires):
        turned = [
            facts._replace(unresolved_miss=True),
            facts._replace(since_miss=0.0),
            facts._replace(unresolved_miss=True, since_miss=0.0),
            facts._replace(declared=False),
            facts._replace(epoch_unknown="timed out"),
            facts._replace(epoch_unexplained="the canary is missing"),
            facts._replace(state=HealthState.UNHEALTHY, breaker=BreakerState.OPEN),
            facts._replace(state=HealthState.UNHEALTHY, breaker=BreakerState.OPEN, unresolved_miss=True),
        ]
        if facts.state is HealthState.HEALTHY and facts.breaker is BreakerState.CLOSED:
            turned += [facts._replace(state=HealthState.DEGRADED, unresolved_miss=True, since_miss=0.0)]
        worse += [
            before._replace(requires=(*before.requires[:index], fact, *before.requires[index + 1 :]))
            for fact in turned
        ]
    if (scope := before.scope) is not None:
        worse.append(before._replace(scope=scope._replace(taints={**scope.taints, name: "refused"})))
        worse.append(before._replace(scope=scope._replace(in_flight={**scope.in_flight, name: 4})))
    return worse


@given(before=SITUATIONS, name=NAMES)
@example(
    before=situation(REQUESTED, requires=(redis(state=HealthState.DEGRADED, breaker=BreakerState.OPEN),)),
    name="redis",
)
@example(
    before=situation(
        requires=(redis(state=HealthState.DEGRADED, breaker=BreakerState.HALF_OPEN),), scope=scope()
    ),
    name="redis",
)
def test_a_failure_never_turns_blocked_into_allowed(before: Situation, name: str) -> None:
    """Insert a failure into any situation, also one that should not be: what was blocked stays blocked."""
    reasons, _ = decide(before, SETTINGS)
    for after in failures_in(before, name):
        worse, _ = decide(after, SETTINGS)
        assert worse or not reasons


@given(before=SITUATIONS)
def test_what_is_allowed_automatically_is_allowed_on_request(before: Situation) -> None:
    """The automatic trigger is the stricter one, and both see the same facts."""
    automatic, none = decide(before._replace(trigger=AUTOMATIC), SETTINGS)
    requested, remarks = decide(before._replace(trigger=REQUESTED), SETTINGS)
    assert none == ()
    assert sorted([*requested, *remarks], key=repr) == sorted(automatic, key=repr)


@given(before=SITUATIONS)
def test_an_automatic_operation_runs_only_if_all_that_it_requires_is_healthy(before: Situation) -> None:
    """Whatever else is said: one required dependency that is not healthy, or not declared, blocks."""
    reasons, _ = decide(before._replace(trigger=AUTOMATIC), SETTINGS)
    if not reasons:
        assert all(f.declared and f.state is HealthState.HEALTHY for f in before.requires)
        assert before.requires or before.requires_nothing


@given(before=SITUATIONS)
def test_reasons_are_in_order_and_say_something(before: Situation) -> None:
    """The worst dependency first, our own reasons last; none is empty, no wait is negative."""
    for reasons in decide(before, SETTINGS):
        assert all(
            reason.text and (reason.retry_after is None or reason.retry_after >= 0) for reason in reasons
        )
    ranks = [(r.dependency == SELF, WORST_FIRST.index(r.state)) for r in decide(before, SETTINGS)[0]]
    assert ranks == sorted(ranks)
