"""VirtualServices of one service, bound to its ports: rules in the order they are tried."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from mesh.manifest import Key
from mesh.model import Service
from waypoint.config.istio.delegates import expand
from waypoint.config.istio.templates import (
    ANY,
    Destination,
    HttpTemplate,
    Match,
    Target,
    TcpMatch,
    TcpTemplate,
    VirtualService,
)
from waypoint.config.istio.virtual_service import MAX_RULES
from waypoint.config.reading import Report
from waypoint.config.routing import (
    BackendRef,
    HttpRule,
    Mirror,
    Redirect,
    Rewrite,
    Routes,
    TcpRule,
    WeightedBackend,
)


class Catalogue(Protocol):
    """What rules refer to."""

    def find(self, hostname: str, namespace: str) -> Service | None:
        """Find a service by hostname, one of this namespace before others."""

    def has_subset(self, service: str, name: str) -> bool:
        """Say whether a DestinationRule gives a service this subset."""

    def lookup(self, key: Key) -> VirtualService | None:
        """Find a VirtualService."""


@dataclass(frozen=True, slots=True)
class Bindings:
    """What became of VirtualServices at one service: rules by port, and findings by object."""

    ports: dict[int, Routes]
    reports: dict[Key, Report]


class _Binder:
    """Binds rules to one service."""

    def __init__(self, service: Service, catalogue: Catalogue) -> None:
        self._service = service
        self._catalogue = catalogue
        self.reports: dict[Key, Report] = {}

    def note(self, owner: VirtualService) -> Report:
        return self.reports.setdefault(owner.key, Report())

    # ---- where requests go -------------------------------------------------------------------

    def ref(self, d: Destination, owner: VirtualService, port: int) -> BackendRef | None:
        """Look a destination up; None, with a finding, if it is not there."""
        report = self.note(owner)
        service = self._catalogue.find(d.host, owner.key.namespace)
        if service is None:
            hint = "" if d.host.count(".") != 1 else f" (a full name ends in .svc: {d.host}.svc...)"
            report.bad(f"{d.path}.host", f"there is no service {d.host}{hint}")
            return None
        known = [p.service_port for p in service.ports]
        number = d.port
        if number is None:
            number = known[0] if len(known) == 1 else port
        if number not in known:
            have = ", ".join(map(str, known)) or "none"
            report.bad(f"{d.path}.port", f"{d.host} has no port {number} (it has {have})")
            return None
        if d.subset and not self._catalogue.has_subset(service.key, d.subset):
            report.bad(
                f"{d.path}.subset",
                f"no DestinationRule gives {d.host} a subset {d.subset[:80]!r}",
            )
            return None
        return BackendRef(service.key, number, d.subset)

    def backends(
        self, targets: Iterable[Target], owner: VirtualService, port: int, host: str = ""
    ) -> tuple[WeightedBackend, ...]:
        """Look destinations up; one that is not there keeps its share, and answers 500."""
        out = []
        for t in targets:
            ref = self.ref(t.destination, owner, port) if t.destination is not None else None
            rewrite = Rewrite(host=t.host) if t.host and not host else None
            out.append(WeightedBackend(ref, t.weight, t.request, t.response, rewrite))
        return tuple(out)

    # ---- HTTP --------------------------------------------------------------------------------

    def _redirect(self, t: HttpTemplate, port: int) -> Redirect | None:
        if t.redirect is None or not t.redirect_to_request_port:
            return t.redirect
        scheme = t.redirect.scheme or "http"
        own = {"http": 80, "https": 443}[scheme]
        return replace(t.redirect, scheme=scheme, port=None if port == own else port)

    def http_rule(
        self, t: HttpTemplate, match: Match, owner: VirtualService, port: int
    ) -> HttpRule:
        """Bind one match of one rule to a port."""
        rewrite = t.rewrite
        host = rewrite.host if rewrite is not None else ""
        if t.host and not host:
            host = t.host
            rewrite = replace(rewrite or Rewrite(), host=host)
        mirrors = []
        for destination, percent in t.mirrors:
            ref = self.ref(destination, owner, port)
            if ref is not None:
                mirrors.append(Mirror(ref, percent))
        name = t.name or f"{owner.key.namespace}.{owner.key.name}.{t.path.rpartition('.')[2]}"
        return HttpRule(
            origin=owner.key,
            name=f"{name}.{match.name}" if match.name else name,
            match=match.match,
            backends=self.backends(t.targets, owner, port, host),
            redirect=self._redirect(t, port),
            response=t.response,
            rewrite=rewrite,
            request_headers=t.request_headers,
            response_headers=t.response_headers,
            mirrors=tuple(mirrors),
            timeout=t.timeout or None,
            retry=t.retry,
            cors=t.cors,
            fault=t.fault,
        )

    def http(self, services: Sequence[VirtualService], port: int) -> tuple[HttpRule, ...] | None:
        """Bind the http rules of several objects to a port, in order; None if there is none."""
        rules: list[HttpRule] = []
        last = ""  # what takes every request that comes to it
        for service in services:
            for delegate in service.delegates:
                self.reports.setdefault(delegate, Report())
            for owner, template in expand(service, self._catalogue.lookup, self.reports):
                for match in template.matches or (Match(template.path),):
                    if match.port not in (None, port):
                        continue
                    if last or len(rules) >= MAX_RULES:
                        self.note(owner).bad(
                            template.path,
                            f"never reached on port {port}: "
                            + (last or f"{MAX_RULES} rules come before it, and no more are used"),
                        )
                        break
                    rules.append(self.http_rule(template, match, owner, port))
                    if match.match == ANY:
                        last = f"{owner.key} takes every request in {template.path}"
        return tuple(rules) or None

    # ---- TCP and TLS -------------------------------------------------------------------------

    def tcp(self, services: Sequence[VirtualService], port: int) -> tuple[TcpRule, ...] | None:
        """Bind tls and tcp rules to a port: those for TLS are tried first, as in Istio."""
        rules: list[TcpRule] = []
        for owner, template in _tcp_templates(services):
            for match in template.matches or (TcpMatch(template.path),):
                if match.port in (None, port) and len(rules) < MAX_RULES:
                    rules.append(
                        TcpRule(
                            origin=owner.key,
                            name=f"{owner.key.namespace}.{owner.key.name}"
                            f".{template.path.removeprefix('spec.')}",
                            backends=self.backends(template.targets, owner, port),
                            sni=match.sni,
                            source_namespaces=match.source_namespaces,
                        )
                    )
        return tuple(rules) or None


def _tcp_templates(
    services: Sequence[VirtualService],
) -> Iterable[tuple[VirtualService, TcpTemplate]]:
    for part in ("tls", "tcp"):
        for service in services:
            yield from ((service, t) for t in getattr(service, part) if not t.closed)


def bind(service: Service, objects: Sequence[VirtualService], catalogue: Catalogue) -> Bindings:
    """Bind the VirtualServices of one service to its ports, the first that takes a request counts.

    A port without rules is not in the result: its traffic goes to the service itself.
    """
    binder = _Binder(service, catalogue)
    for found in objects:
        binder.note(found)
    ports = {}
    for port in (p.service_port for p in service.ports):
        routes = Routes(binder.http(objects, port), binder.tcp(objects, port))
        if routes != Routes():
            ports[port] = routes
    return Bindings(ports, binder.reports)


def combine(gateway_api: Routes, istio: Routes) -> Routes:
    """Put both kinds of routes of one port together: Gateway API's win, protocol by protocol.

    Where only consumers have routes, theirs end at the service itself for everybody else: there its
    VirtualServices go on.
    """
    return Routes(_after(gateway_api.http, istio.http), _after(gateway_api.tcp, istio.tcp))


_Rule = TypeVar("_Rule", HttpRule, TcpRule)


def _after(
    first: tuple[_Rule, ...] | None, then: tuple[_Rule, ...] | None
) -> tuple[_Rule, ...] | None:
    if first is None:
        return then
    if then is not None and first and first[-1].origin.kind == "Service":
        return first[:-1] + then
    return first
