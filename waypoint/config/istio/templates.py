"""VirtualService, read but not yet bound to a service: what its rules say before ports, services
and delegates are looked up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mesh.manifest import Key
from waypoint.config.reading import Report
from waypoint.config.routing import (
    Cors,
    DirectResponse,
    Fault,
    HeaderChange,
    Redirect,
    Retry,
    Rewrite,
    RouteMatch,
)

NO_CHANGE: Final = HeaderChange()
ANY: Final = RouteMatch()


@dataclass(frozen=True, slots=True)
class Match:
    """One match of a rule; `port` None is any."""

    path: str
    match: RouteMatch = ANY
    name: str = ""
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Destination:
    """A host as resolved from the object's namespace, and perhaps a port and a subset."""

    path: str
    host: str
    port: int | None = None
    subset: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A share of requests; no destination is one that cannot be read: it is answered with 500."""

    destination: Destination | None
    weight: int = 1
    request: HeaderChange = NO_CHANGE
    response: HeaderChange = NO_CHANGE
    host: str = ""  # what the request's Host becomes


@dataclass(frozen=True, slots=True)
class HttpTemplate:
    """One entry of spec.http. None (and empty) is not written, so that a delegate inherits it."""

    path: str
    name: str = ""
    # () with `closed` False takes every request; with `closed` True none: no match was usable.
    matches: tuple[Match, ...] = ()
    closed: bool = False
    delegate: tuple[str, str] | None = None  # namespace, name
    targets: tuple[Target, ...] = ()
    redirect: Redirect | None = None
    redirect_to_request_port: bool = False
    response: DirectResponse | None = None
    rewrite: Rewrite | None = None
    host: str = ""  # set by headers.request.set of Host
    request_headers: HeaderChange = NO_CHANGE
    response_headers: HeaderChange = NO_CHANGE
    mirrors: tuple[tuple[Destination, float], ...] = ()
    timeout: float | None = None  # 0: none
    retry: Retry | None = None
    cors: Cors | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class TcpMatch:
    """One match of a tcp or tls rule."""

    path: str
    port: int | None = None
    sni: tuple[str, ...] = ()
    source_namespaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TcpTemplate:
    """One entry of spec.tls or spec.tcp."""

    path: str
    matches: tuple[TcpMatch, ...] = ()
    closed: bool = False
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True)
class VirtualService:
    """One object, read. No hosts and not refused: a delegate, in effect where others name it."""

    key: Key
    hosts: tuple[str, ...]
    created: str
    export: frozenset[str]
    http: tuple[HttpTemplate, ...]
    tls: tuple[TcpTemplate, ...]
    tcp: tuple[TcpTemplate, ...]
    report: Report = field(compare=False)

    @property
    def delegates(self) -> set[Key]:
        """The objects that it hands requests to."""
        return {Key(self.key.kind, *t.delegate) for t in self.http if t.delegate}

    @property
    def destinations(self) -> set[str]:
        """The hosts that it sends requests to."""
        targets = [target for rule in self.http for target in rule.targets]
        targets += [target for rule in (*self.tls, *self.tcp) for target in rule.targets]
        found = {target.destination.host for target in targets if target.destination is not None}
        return found | {d.host for rule in self.http for d, _ in rule.mirrors}
