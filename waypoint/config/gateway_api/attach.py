"""Routes of one service, attached to its ports: the rules that its waypoint tries in order.

Routes of the service's own namespace are its producer's and are for all callers; those of another
namespace are a consumer's and are for that namespace's callers, who then have nothing but these
(GEP-1294). Within each of these groups and each port, one kind of route counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeVar

from mesh.manifest import Key
from mesh.model import Port, Service
from waypoint.config.gateway_api.templates import (
    GRPC_ROUTE,
    HTTP_ROUTE,
    PRECEDENCE,
    TCP_ROUTE,
    TLS_ROUTE,
    HttpTemplate,
    Parent,
    Problem,
    Reference,
    Route,
    Share,
)
from waypoint.config.routing import (
    BackendRef,
    DirectResponse,
    HttpRule,
    Mirror,
    RouteMatch,
    Routes,
    Session,
    TcpRule,
    WeightedBackend,
)
from waypoint.config.status import listed

# istio.workload.AppProtocol: 0 unknown (found out by looking), 1 HTTP/1.1, 2 HTTP/2, 3 gRPC, 4 TCP,
# 5 TLS.
_HTTP_PROTOCOLS: Final = frozenset({0, 1, 2, 3})
_L4_PROTOCOLS: Final = frozenset({0, 4, 5})
_HTTP_KINDS: Final = (GRPC_ROUTE, HTTP_ROUTE)
MAX_RULES: Final = 10_000  # of one group at one port; Envoy tries them one by one


class Catalogue(Protocol):
    """What routes refer to."""

    def service(self, key: str) -> Service | None:
        """Find a service."""

    def port_name(self, service: str, port: int) -> str:
        """Name a port of a service, or ""."""

    def is_granted(self, route: Key, service: Service) -> bool:
        """Say whether a ReferenceGrant lets a route send to a service."""

    def session(self, service: str) -> Session | None:
        """Find the session persistence that a policy asks of a service."""


@dataclass(slots=True)
class Attached:
    """What became of the routes of one service."""

    ports: dict[int, Routes] = field(default_factory=dict)
    # Of each route: the ports that it counts at, and those where another kind counts instead.
    counting: dict[Key, set[int]] = field(default_factory=dict)
    losing: dict[Key, dict[int, str]] = field(default_factory=dict)
    cut: dict[Key, Counter[int]] = field(default_factory=dict)  # rules beyond MAX_RULES, by port
    producers: dict[int, str] = field(default_factory=dict)  # names (a few of them), by port


def allows(kind: str, protocol: int) -> bool:
    """Say whether a kind of route can count at a port."""
    is_http = kind in _HTTP_KINDS
    return protocol in (_HTTP_PROTOCOLS if is_http else _L4_PROTOCOLS)


def ports_of(parent: Parent, kind: str, service: Service, catalogue: Catalogue) -> list[int]:
    """Find the ports of a service that a parentRef is about."""
    return [
        p.service_port
        for p in service.ports
        if parent.port in (None, p.service_port)
        and (
            not parent.section or catalogue.port_name(service.key, p.service_port) == parent.section
        )
        and allows(kind, p.app_protocol)
    ]


def check(ref: Reference, route: Route, catalogue: Catalogue) -> Problem | None:
    """Say why a route may not send somewhere, or cannot.

    A route may send to its parents and within its namespace; elsewhere a ReferenceGrant is needed:
    requests arrive there as the waypoint's, past what protects that service from its callers.
    """
    if ref.problem is not None:
        return ref.problem
    service = catalogue.service(ref.service)
    parents = {p.service for p in route.parents}
    at_home = ref.namespace == route.key.namespace or ref.service in parents
    if not at_home and (service is None or not catalogue.is_granted(route.key, service)):
        return Problem(
            "RefNotPermitted",
            f"{ref.path}: no ReferenceGrant of namespace {ref.namespace} lets an"
            f" {route.key.kind} of namespace {route.key.namespace} send to its services",
        )
    if service is None:
        return Problem("BackendNotFound", f"{ref.path}: there is no Service {ref.service}")
    known = [p.service_port for p in service.ports]
    if ref.port not in known:
        have = ", ".join(map(str, known)) or "none"
        return Problem(
            "BackendNotFound", f"{ref.path}.port: {ref.service} has no port {ref.port} (has {have})"
        )
    return None


class _Binder:
    def __init__(self, service: Service, catalogue: Catalogue) -> None:
        self._service = service
        self._catalogue = catalogue

    def _ref(self, ref: Reference, route: Route) -> BackendRef | None:
        if check(ref, route, self._catalogue) is not None or ref.port is None:
            return None
        return BackendRef(ref.service, ref.port)

    def backends(self, shares: Iterable[Share], route: Route) -> tuple[WeightedBackend, ...]:
        return tuple(
            WeightedBackend(self._ref(s.ref, route), s.weight, s.request, s.response, s.rewrite)
            for s in shares
            if s.weight
        )

    def _bind(self, t: HttpTemplate, route: Route) -> HttpRule:
        """Fill a rule's services in, all but its match."""
        mirrors = []
        for reference, percent in t.mirrors:
            ref = self._ref(reference, route)
            if ref is not None and percent:
                mirrors.append(Mirror(ref, percent))
        backends = self.backends(t.shares, route)
        session = t.rule.session
        if session is None and len(backends) == 1 and backends[0].ref is not None:
            session = self._catalogue.session(backends[0].ref.service)
        return replace(t.rule, backends=backends, mirrors=tuple(mirrors), session=session)

    def http(self, routes: Sequence[Route], namespace: str) -> list[HttpRule]:
        """Bind the rules of routes of one kind, by precedence; `namespace`: of their callers."""
        found = []
        for route in routes:
            for number, template in enumerate(route.http):
                rule = self._bind(template, route)
                for i, ranked in enumerate(template.matches):
                    order = (tuple(-n for n in ranked.rank), route.age, number, i)
                    match = ranked.match
                    if namespace:
                        match = replace(match, source_namespaces=(namespace,))
                    found.append((order, replace(rule, match=match)))
        found.sort(key=lambda item: item[0])
        return [rule for _, rule in found]

    def l4(self, routes: Sequence[Route], namespace: str) -> list[TcpRule]:
        """Bind the rules of TLSRoutes or TCPRoutes; a TLSRoute's exact names come first."""
        found = []
        for route in routes:
            for number, template in enumerate(route.l4):
                for sni in route.hostnames or ("",):
                    rule = TcpRule(
                        origin=route.key,
                        name=template.name,
                        backends=self.backends(template.shares, route),
                        sni=(sni,) if sni else (),
                        source_namespaces=(namespace,) if namespace else (),
                    )
                    order = (sni.startswith("*"), -len(sni), route.age, number)
                    found.append((order, rule))
        found.sort(key=lambda item: item[0])
        return [rule for _, rule in found]

    # ---- what is there without routes --------------------------------------------------------

    @property
    def has_session(self) -> bool:
        return self._catalogue.session(self._service.key) is not None

    @property
    def _own(self) -> Key:
        return Key("Service", self._service.namespace, self._service.name)

    def itself(self, port: int) -> tuple[WeightedBackend, ...]:
        return (WeightedBackend(BackendRef(self._service.key, port)),)

    def default_http(self, port: int) -> HttpRule:
        """Send to the service itself, as if it had no routes."""
        return HttpRule(
            origin=self._own,
            name="default",
            backends=self.itself(port),
            session=self._catalogue.session(self._service.key),
        )

    def default_tcp(self, port: int) -> TcpRule:
        return TcpRule(origin=self._own, name="default", backends=self.itself(port))


_Group = list[tuple[Route, frozenset[int]]]


def _winners(port: int, group: _Group, out: Attached) -> tuple[str, list[Route]]:
    """Choose the kind of route that counts at a port, of one group; "" if there is none."""
    here = [route for route, ports in group if port in ports and route.usable]
    kinds = {route.key.kind for route in here}
    kind = next((k for k in PRECEDENCE if k in kinds), "")
    chosen = []
    for route in here:
        if route.key.kind == kind:
            chosen.append(route)
            out.counting.setdefault(route.key, set()).add(port)
        else:
            out.losing.setdefault(route.key, {})[port] = kind
    return kind, sorted(chosen, key=lambda route: route.age)


def is_default(rule: HttpRule | TcpRule) -> bool:
    """Say whether a rule stands for the service itself, where the routes of consumers end."""
    return rule.origin.kind == "Service"


def _nothing_else(origin: Key, namespace: str) -> HttpRule:
    """End a consumer's rules: its callers do not fall through to the producer's."""
    return HttpRule(
        origin=origin,
        name="none",
        match=RouteMatch(source_namespaces=(namespace,)),
        response=DirectResponse(404),
    )


_Rule = TypeVar("_Rule", HttpRule, TcpRule)


def _bounded(rules: list[_Rule], port: int, out: Attached) -> list[_Rule]:
    """Keep the first MAX_RULES of a group, and note whose the others are."""
    for rule in rules[MAX_RULES:]:
        out.cut.setdefault(rule.origin, Counter())[port] += 1
    return rules[:MAX_RULES]


def _at_port(
    port: Port, binder: _Binder, producers: _Group, consumers: Mapping[str, _Group], out: Attached
) -> Routes:
    """Put the rules of one port together: every consumer's, then the producer's."""
    number = port.service_port
    http: list[HttpRule] = []
    tcp: list[TcpRule] = []
    for namespace, group in sorted(consumers.items()):
        kind, chosen = _winners(number, group, out)
        if kind in _HTTP_KINDS:
            http += _bounded(binder.http(chosen, namespace), number, out)
            http.append(_nothing_else(chosen[0].key, namespace))
        elif kind:
            tcp += _bounded(binder.l4(chosen, namespace), number, out)
            tcp.append(TcpRule(chosen[0].key, "none", source_namespaces=(namespace,)))
    kind, chosen = _winners(number, producers, out)
    if chosen:
        out.producers[number] = listed({str(route.key) for route in chosen})
    if kind in _HTTP_KINDS:
        http += _bounded(binder.http(chosen, ""), number, out)
    elif http or (binder.has_session and allows(HTTP_ROUTE, port.app_protocol)):
        http.append(binder.default_http(number))
    if kind in (TLS_ROUTE, TCP_ROUTE):
        tcp += _bounded(binder.l4(chosen, ""), number, out)
    elif tcp:
        tcp.append(binder.default_tcp(number))
    return Routes(tuple(http) or None, tuple(tcp) or None)


def attach(service: Service, routes: Iterable[Route], catalogue: Catalogue) -> Attached:
    """Attach routes to the ports of a service.

    A port without routes is not in the result: its traffic goes to the service itself.
    """
    out = Attached()
    groups: dict[str, _Group] = {}
    for route in routes:
        parents = [p for p in route.parents if p.service == service.key]
        ports = {n for p in parents for n in ports_of(p, route.key.kind, service, catalogue)}
        groups.setdefault(route.key.namespace, []).append((route, frozenset(ports)))
    producers = groups.pop(service.namespace, [])
    binder = _Binder(service, catalogue)
    for port in service.ports:
        found = _at_port(port, binder, producers, groups, out)
        if found != Routes():
            out.ports[port.service_port] = found
    return out
