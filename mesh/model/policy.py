"""L4 authorization in the shape the wire carries it (istio.security.Authorization).

Rules OR, clauses AND, matches OR, kinds inside a match AND, values OR. Networks are text
("10.0.0.0/8"). Evaluation is mesh.authz.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Scope(IntEnum):
    """Where a policy applies."""

    GLOBAL = 0
    NAMESPACE = 1
    WORKLOAD_SELECTOR = 2


class Action(IntEnum):
    """What a match means."""

    ALLOW = 0
    DENY = 1


@dataclass(frozen=True, slots=True)
class StringMatch:
    """kind is "exact", "prefix", "suffix" or "presence" (any non-empty value)."""

    kind: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """Every non-empty field must match; a not_ field must not."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    service_accounts: tuple[tuple[str, str], ...] = ()  # (namespace, name)
    not_service_accounts: tuple[tuple[str, str], ...] = ()
    source_ips: tuple[str, ...] = ()
    not_source_ips: tuple[str, ...] = ()
    destination_ips: tuple[str, ...] = ()
    not_destination_ips: tuple[str, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Clause:
    """Matches, OR'ed."""

    matches: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """Clauses, AND'ed."""

    clauses: tuple[Clause, ...] = ()


@dataclass(frozen=True, slots=True)
class Authorization:
    """One policy; key is the xDS resource name."""

    name: str
    namespace: str
    scope: Scope
    action: Action
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False

    @property
    def key(self) -> str:
        """namespace/name."""
        return f"{self.namespace}/{self.name}"
