"""Who may do what at a waypoint: AuthorizationPolicy and RequestAuthentication, read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Security:
    """What protects one service or workload at its waypoint. Nothing: everything may pass."""


OPEN: Final = Security()
