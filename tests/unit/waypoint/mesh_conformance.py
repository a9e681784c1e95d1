"""The mesh of the Gateway API's conformance suite, and where its requests go by the rules.

Requests are answered here as waypoint.config.routing says that rules are to be read: the first
rule that matches takes a request. No proxy runs; tests/netns asks a real one the same things.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import yaml

from mesh.manifest import Key
from mesh.model import Port, Service
from waypoint.config.gateway_api import GatewayApiIndex
from waypoint.config.istio import ServiceState
from waypoint.config.routing import (
    HeaderChange,
    HttpRule,
    PathMatch,
    Redirect,
    Rewrite,
    RouteMatch,
    Routes,
    TextMatch,
    WeightedBackend,
)
from waypoint.config.status import ParentStatus, Status

NS = "gateway-conformance-mesh"
CONSUMER = "gateway-conformance-mesh-consumer"
WAYPOINT = f"{NS}/waypoint"

# istio.workload.AppProtocol: 1 HTTP11, 2 HTTP2; 0 is undeclared.
_PORTS = (
    Port(80, 8080, 1),
    Port(8080, 8080, 1),
    Port(443, 8443),
    Port(9090, 9090),
    Port(7070, 7070, 2),
)


def service(name: str, namespace: str = NS, ports: tuple[Port, ...] = _PORTS) -> Service:
    return Service(
        name=name,
        namespace=namespace,
        hostname=f"{name}.{namespace}.svc.cluster.local",
        vips=("/10.0.0.1",),
        ports=ports,
    )


def service_key(name: str, namespace: str = NS) -> str:
    return f"{namespace}/{name}.{namespace}.svc.cluster.local"


@dataclass(frozen=True)
class Answer:
    """What became of a request. `backend`: name:port of the service; "" is none."""

    status: int
    backend: str = ""
    path: str = ""  # as the backend sees it
    host: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    location: str = ""
    added: Mapping[str, str] = field(default_factory=dict)  # headers that the answer gains
    rule: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)  # of all backends with a weight


class Mesh:
    """echo, echo-v1 and echo-v2 of the suite; objects are given as text."""

    def __init__(self, *more: Service) -> None:
        self.index = GatewayApiIndex()
        for each in (service("echo"), service("echo-v1"), service("echo-v2"), *more):
            self.index.put_service(each.key, each)

    def apply(self, text: str) -> list[Key]:
        """Apply objects; returns their keys."""
        keys = []
        for obj in yaml.safe_load_all(text):
            metadata = obj["metadata"]
            metadata.setdefault("namespace", NS)
            key = Key(obj["kind"], metadata["namespace"], metadata["name"])
            self.index.put(key, obj)
            keys.append(key)
        return keys

    def routes(self, name: str, namespace: str = NS) -> dict[int, Routes]:
        return self.index.routes(service_key(name, namespace))

    def ask(
        self,
        to: str,
        path: str = "/",
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        caller: str = NS,
        grpc: bool = False,
    ) -> Answer:
        """Send a request to "name" or "name:port" from a pod of the namespace `caller`."""
        name, _, port = to.partition(":")
        number = int(port or 80)
        request = Request(to, path, {k.lower(): v for k, v in (headers or {}).items()}, method)
        request.caller, request.grpc = caller, grpc
        routes = self.routes(name).get(number, Routes())
        if routes.http is None:
            return Answer(200, f"{name}:{number}", path, request.host, request.headers)
        taken = next((rule for rule in routes.http if matches(rule.match, request)), None)
        return Answer(404) if taken is None else answer(taken, request)

    def status(self, key: Key, bound: Iterable[str] = (WAYPOINT,)) -> Status:
        """What an object is told, where the waypoints of every service are `bound`."""
        return self.index.status(key, lambda _: ServiceState(bound=tuple(bound)))

    def parent(self, key: Key, at: int = 0, **state: Any) -> dict[str, tuple[bool, str]]:
        """What one parent of a route says: type -> (status, reason)."""
        found: ParentStatus = self.status(key, **state).parents[at]
        return {c.type: (c.status, c.reason) for c in found.conditions}


@dataclass
class Request:
    host: str
    path: str
    headers: dict[str, str]
    method: str
    caller: str = NS
    grpc: bool = False

    @property
    def plain(self) -> str:
        """The path without its query."""
        return self.path.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        pairs = parse_qsl(self.path.partition("?")[2], keep_blank_values=True)
        return dict(reversed(pairs))  # the first of a name counts


# ---- matching --------------------------------------------------------------------------------


def matches(match: RouteMatch, request: Request) -> bool:
    """Say whether a rule's match takes a request."""
    of_request = {":method": request.method, ":authority": request.host}
    return (
        (not match.source_namespaces or request.caller in match.source_namespaces)
        and (not match.grpc or request.grpc)
        and (match.path is None or _path(match.path, request.plain))
        and (match.method is None or _text(match.method, request.method))
        and (match.authority is None or _text(match.authority, request.host))
        and all(_text(m, {**request.headers, **of_request}.get(n)) for n, m in match.headers)
        and all(_text(m, request.query.get(n)) for n, m in match.query)
    )


def _path(match: PathMatch, path: str) -> bool:
    value = match.value
    if match.ignore_case:
        path, value = path.lower(), value.lower()
    if match.kind == "exact":
        return path == value
    if match.kind == "prefix":
        return path.startswith(value)
    if match.kind == "regex":
        return re.fullmatch(value, path) is not None
    return path == value or path.startswith(value.rstrip("/") + "/")


def _text(match: TextMatch, value: str | None) -> bool:
    if value is None:
        return match.invert
    wanted = match.value
    if match.ignore_case:
        value, wanted = value.lower(), wanted.lower()
    found = {
        "exact": value == wanted,
        "prefix": value.startswith(wanted),
        "suffix": value.endswith(wanted),
        "regex": match.kind == "regex" and re.fullmatch(wanted, value) is not None,
        "present": True,
    }[match.kind]
    return found != match.invert


# ---- answering -------------------------------------------------------------------------------


def answer(rule: HttpRule, request: Request) -> Answer:
    """Say what a rule does with a request that it took."""
    added = _changed({}, rule.response_headers)
    if rule.redirect is not None:
        location = _location(rule, rule.redirect, request)
        return Answer(rule.redirect.code, location=location, added=added, rule=rule.name)
    if rule.response is not None:
        return Answer(rule.response.code, added=added, rule=rule.name)
    shares = _shares(rule.backends)
    live = [b for b in rule.backends if b.weight > 0]
    if not live:
        return Answer(500, added=added, rule=rule.name)
    first = max(live, key=lambda b: b.weight)
    if first.ref is None:
        return Answer(500, added=added, rule=rule.name, shares=shares)
    rewrite = first.rewrite or rule.rewrite
    return Answer(
        status=200,
        backend=_name(first),
        path=_rewritten(rule, rewrite, request.path),
        host=(rewrite.host if rewrite else "") or request.host,
        headers=_changed(_changed(request.headers, rule.request_headers), first.request),
        added=_changed(added, first.response),
        rule=rule.name,
        shares=shares,
    )


def _name(backend: WeightedBackend) -> str:
    if backend.ref is None:
        return "500"
    return f"{backend.ref.service.partition('/')[2].partition('.')[0]}:{backend.ref.port}"


def _shares(backends: tuple[WeightedBackend, ...]) -> dict[str, float]:
    total = sum(b.weight for b in backends)
    return {_name(b): b.weight / total for b in backends if b.weight}


def _changed(headers: Mapping[str, str], change: HeaderChange) -> dict[str, str]:
    gone = {name.lower() for name in change.remove}
    out = {name: value for name, value in headers.items() if name not in gone}
    out.update((name.lower(), value) for name, value in change.set)
    for name, value in change.add:
        here = out.get(name.lower())
        out[name.lower()] = value if here is None else f"{here},{value}"
    return out


def _rewritten(rule: HttpRule, rewrite: Rewrite | None, path: str) -> str:
    if rewrite is None or not rewrite.path:
        return path
    return _replaced(rule, path, rewrite.path, rewrite.full)


def _replaced(rule: HttpRule, path: str, new: str, full: bool) -> str:
    plain, mark, query = path.partition("?")
    if not full:
        assert rule.match.path is not None
        rest = plain[len(rule.match.path.value.rstrip("/")) :].lstrip("/")
        new = f"{new.rstrip('/')}/{rest}" if rest else new or "/"
    return new + mark + query


def _location(rule: HttpRule, redirect: Redirect, request: Request) -> str:
    path = request.path
    if redirect.path:
        path = _replaced(rule, path, redirect.path, redirect.full)
    host, _, asked = request.host.partition(":")
    of_scheme = "" if redirect.scheme else asked
    port = of_scheme if redirect.port is None else str(redirect.port)
    shown = f":{port}" if port else ""
    return f"{redirect.scheme or 'http'}://{redirect.host or host}{shown}{path}"
