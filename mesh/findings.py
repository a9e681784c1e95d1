"""What a translation has to say about an object, and the status conditions made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_MAX_MESSAGE: Final = 4096  # an API server takes 32 KiB; nobody reads more than this

ZTUNNEL_ACCEPTED: Final = "ZtunnelAccepted"
WAYPOINT_ACCEPTED: Final = "WaypointAccepted"


@dataclass(frozen=True, slots=True)
class Condition:
    """One status condition, without its times and generation."""

    type: str
    status: bool
    reason: str
    message: str


@dataclass(slots=True)
class Findings:
    """Findings about one object. `invalid`: the value is wrong; `unsupported`: right, but not L4.

    `consequences` say what is enforced in spite of them.
    """

    invalid: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    consequences: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Take over another's findings."""
        self.invalid += other.invalid
        self.unsupported += other.unsupported
        self.consequences += other.consequences

    def __bool__(self) -> bool:
        """Say whether anything was found."""
        return bool(self.invalid or self.unsupported)

    def condition(self, accepted: str = "attached to ztunnel") -> Condition:
        """Sum up as ZtunnelAccepted: False for invalid values, True with a reason for the rest."""
        if not self:
            return Condition(ZTUNNEL_ACCEPTED, True, "Accepted", accepted)
        parts = list(self.invalid)
        if self.unsupported:
            names = ", ".join(dict.fromkeys(self.unsupported))
            parts.append(f"not enforceable by ztunnel (needs a waypoint): {names}")
        message = "; ".join([*parts, *dict.fromkeys(self.consequences)])
        if len(message) > _MAX_MESSAGE:
            message = message[:_MAX_MESSAGE] + "..."
        reason = "Invalid" if self.invalid else "UnsupportedValue"
        return Condition(ZTUNNEL_ACCEPTED, not self.invalid, reason, message)


def mapping(value: Any, path: str, findings: Findings) -> Mapping[str, Any]:
    """Read a mapping; anything else is a finding and reads as empty."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    findings.invalid.append(f"{path}: must be a mapping")
    return {}


def sequence(value: Any, path: str, findings: Findings) -> list[Any]:
    """Read a list; anything else is a finding and reads as empty."""
    if value is None:
        return []
    if isinstance(value, list):
        return value
    findings.invalid.append(f"{path}: must be a list")
    return []


def unknown_fields(
    value: Mapping[str, Any], known: Iterable[str], path: str, findings: Findings
) -> None:
    """Report fields that do not exist: a misspelt constraint must not vanish."""
    names = sorted(known)
    for name in sorted(set(value) - set(names)):
        findings.invalid.append(f"{path}.{name}: no such field (known: {', '.join(names)})")


def read_selector(spec: Mapping[str, Any], findings: Findings) -> dict[str, str] | None:
    """Read spec.selector.matchLabels; None when there is no selector, {} selects all."""
    if spec.get("selector") is None:
        return None
    found = Findings()
    selector = mapping(spec["selector"], "spec.selector", found)
    unknown_fields(selector, ("matchLabels",), "spec.selector", found)
    path = "spec.selector.matchLabels"
    labels = {}
    for k, v in mapping(selector.get("matchLabels"), path, found).items():
        if isinstance(v, str) and "*" not in v and "*" not in k:
            labels[k] = v
        else:
            found.invalid.append(f"{path}.{k}: {v!r} is not a label value")
    if found:
        found.consequences.append("it applies to all workloads that the rest of it selects")
    findings.add(found)
    return labels


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Say whether every label of the selector is there; an empty selector selects all."""
    return all(labels.get(k) == v for k, v in selector.items())
