"""VirtualService (networking.istio.io/v1), read.

A match that cannot be used is left out, a rule without a usable match too; a rule whose action
cannot be used answers 500 to what it matches; parts of an action that cannot be used are not done.
All of it is in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mesh.errors import BadInput
from mesh.manifest import Key, make_key
from waypoint.config.istio import hosts
from waypoint.config.istio.destination_rule import SUBSET_NAME
from waypoint.config.istio.http_action import (
    read_cors,
    read_fault,
    read_headers,
    read_percent,
    read_redirect,
    read_response,
    read_retry,
    read_rewrite,
)
from waypoint.config.istio.http_match import is_for_mesh, read_matches, read_source
from waypoint.config.istio.templates import (
    NO_CHANGE,
    Destination,
    HttpTemplate,
    Target,
    TcpMatch,
    TcpTemplate,
    VirtualService,
)
from waypoint.config.reading import Fields, Report

MAX_RULES: Final = 10_000  # of one object, and of one port; Envoy tries them one by one
_MAX_TARGETS: Final = 256  # of one rule
_MAX_WEIGHT: Final = 1_000_000
_MAX_MIRRORS: Final = 16
_MAX_HOSTS: Final = 1000
_MESH: Final = "mesh"
_NO_SUBNETS: Final = (
    "not supported: a waypoint sees services, not networks, so this match never matches"
)
_ACTIONS: Final = ("redirect", "directResponse", "route", "delegate")
_NOTHING_TO_DO: Final = "must have one of route, redirect, directResponse and delegate"


class _Reader:
    """Reads one object; `namespace` and `domain` complete its hosts."""

    def __init__(self, key: Key, domain: str) -> None:
        self._key = key
        self._domain = domain

    def destination(self, f: Fields) -> Destination | None:
        host, subset = f.text("host"), f.text("subset")
        port = f.inner("port", _read_port)
        why = hosts.fault(host)
        if why:
            f.bad("host", why)
        if subset and not SUBSET_NAME.fullmatch(subset):
            f.bad("subset", f"{subset[:80]!r} is not a name (letters, digits, '-')")
            return None
        f.done()
        if why or (f.has("port") and port is None):
            return None
        return Destination(
            f.path, hosts.resolve(host, self._key.namespace, self._domain), port, subset
        )

    def targets(self, f: Fields, *, http: bool) -> tuple[Target, ...]:
        """Read weighted destinations. One alone takes all; among several, no weight is none."""
        entries = f.items("route")
        if len(entries) > _MAX_TARGETS:
            f.bad("route", f"more than {_MAX_TARGETS} destinations: the rest is not used")
            entries = entries[:_MAX_TARGETS]
        out = []
        for path, value in entries:
            entry = Fields(value, path, f.report)
            weight = entry.integer("weight", 0, _MAX_WEIGHT)
            if not entry.has("destination"):
                entry.bad("destination", "must be set")
            destination = entry.inner("destination", self.destination)
            headers = read_headers(entry) if http else (NO_CHANGE, NO_CHANGE, "")
            entry.done()
            if len(entries) == 1:
                weight = 1
            if weight:
                out.append(Target(destination, weight, *headers))
        if entries and not out:
            f.bad("route", "no destination has a weight: there is nowhere to go")
        return tuple(out)

    def mirrors(self, f: Fields) -> tuple[tuple[Destination, float], ...]:
        old = f.number("mirrorPercent", 0, 100)  # deprecated, still written
        percent = read_percent(f, "mirrorPercentage", 100.0 if old is None else old)
        found = []
        one = f.inner("mirror", self.destination)
        if one is not None:
            found.append((one, percent))
        for entry in f.each("mirrors"):
            share = read_percent(entry, "percentage", 100.0)
            if not entry.has("destination"):
                entry.bad("destination", "must be set")
            more = entry.inner("destination", self.destination)
            entry.done()
            if more is not None:
                found.append((more, share))
        if len(found) > _MAX_MIRRORS:
            f.bad("mirrors", f"more than {_MAX_MIRRORS}: the rest is not used")
        return tuple((d, share) for d, share in found[:_MAX_MIRRORS] if share)

    def delegate(self, f: Fields) -> tuple[str, str] | None:
        name, namespace = f.text("name"), f.text("namespace") or self._key.namespace
        f.done()
        try:
            key = make_key(self._key.kind, namespace, name)
        except BadInput as e:
            f.report.bad(f.path, str(e))
            return None
        return key.namespace, key.name

    def http(self, f: Fields) -> HttpTemplate:
        """Read one entry of spec.http."""
        matches, closed = read_matches(f)
        # An empty list is an unset one (proto3).
        actions = [n for n in _ACTIONS if f.has(n) and f.raw(n) != []]
        if not actions:
            f.report.bad(f.path, _NOTHING_TO_DO)
            closed = True
        elif len(actions) > 1:
            f.report.bad(
                f.path, f"{' and '.join(actions)} exclude each other: {actions[0]} is done"
            )
        redirect, from_request = f.inner("redirect", read_redirect) or (None, False)
        response = f.inner("directResponse", read_response)
        targets = self.targets(f, http=True)
        delegate = f.inner("delegate", self.delegate)
        first = actions[0] if actions else ""
        request, answer, host = read_headers(f)
        template = HttpTemplate(
            path=f.path,
            name=f.text("name"),
            matches=matches,
            closed=closed or (first == "delegate" and delegate is None),
            delegate=delegate if first == "delegate" else None,
            targets=targets if first == "route" else (),
            redirect=redirect if first == "redirect" else None,
            redirect_to_request_port=from_request,
            response=response if first == "directResponse" else None,
            rewrite=f.inner("rewrite", read_rewrite),
            host=host,
            request_headers=request,
            response_headers=answer,
            mirrors=self.mirrors(f),
            timeout=f.duration("timeout", zero=True),
            retry=f.inner("retries", read_retry),
            cors=f.inner("corsPolicy", read_cors),
            fault=f.inner("fault", read_fault),
        )
        f.done()
        return template

    def tcp(self, f: Fields, *, tls: bool) -> TcpTemplate:
        """Read one entry of spec.tls or spec.tcp."""
        entries = f.items("match")
        matches = [_read_tcp_match(v, path, f.report, tls=tls) for path, v in entries]
        usable = tuple(m for m in matches if m is not None)
        if tls and not entries:
            f.bad("match", "must have sniHosts: the rule is left out")
        targets = self.targets(f, http=False)
        if not f.has("route"):
            f.bad("route", "must be set")
        f.done()
        closed = f.has("match") and not usable
        return TcpTemplate(f.path, usable, closed or (tls and not entries), targets)


def _read_port(f: Fields) -> int | None:
    number = f.integer("number", 1, 65535)
    if not f.has("number"):
        f.bad("number", "must be set")
    f.done()
    return number


def _read_tcp_match(value: Any, path: str, report: Report, *, tls: bool) -> TcpMatch | None:
    """Read one match; None is one that is left out, as in http."""
    found = Report()
    f = Fields(value, path, found)
    sni: list[str] = []
    if tls:
        for host in f.texts("sniHosts"):
            why = hosts.fault(host)
            if why:
                f.bad("sniHosts", why)
            sni.append(host.lower())
        if not sni:
            f.bad("sniHosts", "must name the hosts that clients ask for")
    else:
        f.skip(_NO_SUBNETS, "sourceSubnet")
    f.skip(_NO_SUBNETS, "destinationSubnets")
    match = TcpMatch(
        path=f.path,
        port=f.integer("port", 0, 65535) or None,
        sni=() if "*" in sni else tuple(sni),
        source_namespaces=read_source(f),
    )
    for_mesh = is_for_mesh(f)
    f.done()
    report.take(found)
    return match if for_mesh and not found else None


def _bounded(spec: Fields, name: str) -> list[Fields]:
    entries = spec.items(name)
    if len(entries) > MAX_RULES:
        spec.bad(name, f"more than {MAX_RULES} rules: the rest is not used")
    return [Fields(value, path, spec.report) for path, value in entries[:MAX_RULES]]


def _read_hosts(spec: Fields, key: Key, domain: str) -> tuple[str, ...]:
    found = []
    for i, host in enumerate(spec.texts("hosts")):
        why = hosts.fault(host)
        if why:
            spec.bad(f"hosts[{i}]", why)
        elif i >= _MAX_HOSTS:
            spec.bad("hosts", f"more than {_MAX_HOSTS}: the rest is not used")
        else:
            found.append(hosts.resolve(host, key.namespace, domain))
    return tuple(dict.fromkeys(found))


def read_virtual_service(key: Key, obj: Mapping[str, Any], domain: str) -> VirtualService:
    """Read one object; what is wrong is in its report, what is right is kept."""
    report = Report()
    spec = Fields(obj.get("spec"), "spec", report)
    reader = _Reader(key, domain)
    names = _read_hosts(spec, key, domain)
    gateways = spec.texts("gateways")
    if gateways and _MESH not in gateways:
        report.refused = (
            "spec.gateways: it is for gateways only; to route traffic at a waypoint too, add"
            f" {_MESH!r} or leave gateways out"
        )
    elif spec.has("hosts") and not names and spec.raw("hosts") != []:
        report.refused = "spec.hosts: names no host that could be one"
    http = tuple(reader.http(f) for f in _bounded(spec, "http"))
    tls = tuple(reader.tcp(f, tls=True) for f in _bounded(spec, "tls"))
    tcp = tuple(reader.tcp(f, tls=False) for f in _bounded(spec, "tcp"))
    if not names and not report.refused:
        for part in ("gateways", "tls", "tcp"):
            if spec.has(part):
                spec.bad(part, "without hosts it is a delegate, which has http rules alone")
    if not (http or tls or tcp):
        report.refused = report.refused or "spec: has no rules (http, tls or tcp)"
    created = obj["metadata"].get("creationTimestamp")
    export = frozenset(spec.texts("exportTo"))
    spec.done()
    return VirtualService(
        key=key,
        hosts=() if report.refused else names,
        created=created if isinstance(created, str) else "",
        export=export,
        http=http,
        tls=tls,
        tcp=tcp,
        report=report,
    )
