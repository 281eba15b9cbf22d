"""An answer that proves nothing: what it says, and what it does to the dependency."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from safehold import Presence, SafeholdError
from safehold.witnesses import Unproven

from .support import Service


def says(why: str, *, miss: bool = False) -> Any:
    def there(subject: str) -> Presence:
        raise Unproven(why, miss=miss)

    return there


def test_its_text_says_why(service: Service) -> None:
    """In the evidence, and in the reason for which the operation is blocked."""
    assert service.why(says("it was redirected")) == "it was redirected"
    blocked = service.health.check("belongings.remove", "s1").reasons
    assert any("it was redirected" in reason.text for reason in blocked)


def test_absence_is_acted_upon(service: Service) -> None:
    """The positive twin: the same sweep removes what is gone, and only that."""
    left = service.sweep(lambda subject: subject == "s1", "s1", "s2")
    assert left == {"s1"}


def test_it_moves_no_breaker_and_taints_nothing(service: Service) -> None:
    """The dependency has answered: one subject of which nothing can be told does not stop the others."""

    def there(subject: str) -> bool:
        if subject.startswith("odd"):
            raise Unproven("odd")
        return False

    odd = [f"odd{number}" for number in range(10)]
    assert service.sweep(there, *odd, "s1") == set(odd)
    assert service.source.status().failures == 0


def test_it_resolves_no_miss(service: Service) -> None:
    """Nor is it a success: what failed before it has still failed."""
    service.source.report("failure")
    service.why(says("odd"))
    assert service.source.status().unresolved_miss


def test_a_miss_taints_and_moves_no_breaker(service: Service) -> None:
    """No answer at all: nothing else in this sweep is acted upon, and the reason says why."""

    def there(subject: str) -> bool:
        if subject == "s1":
            raise Unproven("answered 503", miss=True)
        return False

    with service.health.scope("round") as scope:
        assert service.sweep(there, "s1", "s0") == {"s0", "s1"}
    assert dict(scope.taints) == {"source": "answered 503"}
    assert service.seen["s0"].presence == "absent"
    assert "scope_tainted" in service.blocked["s0"]
    assert "unresolved_miss" in service.blocked["s1"]
    assert service.source.status().failures == 0


def test_a_trial_that_proves_nothing_gives_its_permit_back(service: Service) -> None:
    """It neither closes the breaker nor opens it again."""
    service.source.trip()
    service.clock.advance(10.0)
    service.why(says("odd"))
    assert service.source.breaker == "half_open"
    with service.source.permit():
        pass
    assert service.source.breaker == "closed"


def test_a_classifier_is_not_asked(service: Service) -> None:
    """It says itself what it is."""
    other = service.health.dependency("other", classify=Exception)
    service.health.witness("other", name="odd")(says("odd"))("s1")
    assert other.status().failures == 0


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_it_travels(again: Any) -> None:
    """Like every error of ours: between processes, with all that it says."""
    error = again(Unproven("why", miss=True))
    assert (type(error), str(error), error.miss, error.code) == (Unproven, "why", True, "unproven")
    assert isinstance(error, SafeholdError)
    assert not isinstance(error, OSError | ValueError)
