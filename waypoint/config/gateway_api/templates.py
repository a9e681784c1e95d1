"""Routes of Gateway API, read but not yet attached to services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.manifest import Key
from waypoint.config.reading import Report
from waypoint.config.routing import HeaderChange, HttpRule, Rewrite, RouteMatch

NO_CHANGE: Final = HeaderChange()

HTTP_ROUTE: Final = "HTTPRoute"
GRPC_ROUTE: Final = "GRPCRoute"
TLS_ROUTE: Final = "TLSRoute"
TCP_ROUTE: Final = "TCPRoute"
# Of several kinds at one port of a service only the first counts (GEP-1294).
PRECEDENCE: Final = (GRPC_ROUTE, HTTP_ROUTE, TLS_ROUTE, TCP_ROUTE)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something is not so: a condition's reason and message."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Parent:
    """A parentRef to a service. `ref` is as written; `problem` is what no service can mend."""

    ref: Mapping[str, Any]
    service: str  # its key, "namespace/hostname"
    port: int | None = None
    section: str = ""  # name of a port
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """A service that is sent to. `problem`: it can never be one."""

    path: str
    service: str = ""
    namespace: str = ""
    port: int | None = None
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """A backendRef with a weight; 0 takes nothing."""

    ref: Reference
    weight: int = 1
    request: HeaderChange = NO_CHANGE
    response: HeaderChange = NO_CHANGE
    rewrite: Rewrite | None = None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A match, and its precedence: the greater rank is tried first."""

    match: RouteMatch
    rank: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HttpTemplate:
    """One rule of an HTTPRoute or GRPCRoute; `rule` is all of it that needs no looking up."""

    path: str
    rule: HttpRule
    matches: tuple[Ranked, ...]
    shares: tuple[Share, ...] = ()
    mirrors: tuple[tuple[Reference, float], ...] = ()
    problem: Problem | None = None  # of a filter that may not be passed over: answered with 500


@dataclass(frozen=True, slots=True)
class L4Template:
    """One rule of a TLSRoute or TCPRoute."""

    path: str
    name: str
    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """One object, read. `dropped`: rules that cannot be used, with what is wrong with them."""

    key: Key
    created: str
    parents: tuple[Parent, ...]
    http: tuple[HttpTemplate, ...] = ()
    l4: tuple[L4Template, ...] = ()
    hostnames: tuple[str, ...] = ()  # of a TLSRoute: what clients ask for
    dropped: tuple[str, ...] = ()
    incompatible: bool = False  # a rule was dropped for filters that exclude each other
    report: Report = field(default_factory=Report, compare=False)  # what is not about rules

    @property
    def age(self) -> tuple[str, str]:
        """Order routes: the oldest first, then by "namespace/name"."""
        return self.created, f"{self.key.namespace}/{self.key.name}"

    @property
    def usable(self) -> bool:
        """Say whether any of its rules can be used."""
        return bool(self.http or self.l4)

    @property
    def references(self) -> tuple[Reference, ...]:
        """All services that it sends to."""
        http = [s.ref for t in self.http for s in t.shares]
        l4 = [s.ref for t in self.l4 for s in t.shares]
        return (*http, *l4, *(ref for t in self.http for ref, _ in t.mirrors))
