"""What is more than one call. Each case is one body for both sides, and gives what it has seen."""

from __future__ import annotations

from typing import Final

from .clients import clients
from .lines import lines
from .locks import locks
from .objects import objects
from .pipelines import pipelines
from .scans import scans
from .scripts import scripts
from .subscriptions import subscriptions
from .users import users
from .waits import waits

CASES: Final = (pipelines, subscriptions, scripts, scans, locks, waits, clients, lines, objects, users)
"""All calls that are more than one."""
