"""HTTPRoute, GRPCRoute, TLSRoute and TCPRoute, read.

A rule with anything wrong in it is dropped whole, and its requests go where the other rules say
(the specification's "Dropped Rule"); a backend that is not there keeps its share.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from mesh.manifest import Key
from waypoint.config.gateway_api.filters import Filters, read_filters
from waypoint.config.gateway_api.matches import read_grpc_matches, read_http_matches
from waypoint.config.gateway_api.references import created, read_parents, read_reference
from waypoint.config.gateway_api.templates import (
    GRPC_ROUTE,
    HTTP_ROUTE,
    TLS_ROUTE,
    HttpTemplate,
    L4Template,
    Route,
    Share,
)
from waypoint.config.reading import Fields, Report, show
from waypoint.config.routing import (
    DEFAULT_ATTEMPTS,
    DEFAULT_RETRY_ON,
    DirectResponse,
    HttpRule,
    Retry,
    Session,
)

MAX_RULES: Final = 1000  # of one route; the API takes 16
_MAX_MATCHES: Final = 1000  # of one route; the API takes 128
_MAX_BACKENDS: Final = 256
_MAX_WEIGHT: Final = 1_000_000
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_COOKIE_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HOSTNAME: Final = re.compile(
    r"(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
)

_GRPC_FILTERS: Final = (
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "ExtensionRef",
)
_HTTP_FILTERS: Final = (*_GRPC_FILTERS, "RequestRedirect", "URLRewrite", "CORS", "ExternalAuth")
# Of one backend among several, Envoy changes headers and Host, and nothing else.
_BACKEND_FILTERS: Final = ("RequestHeaderModifier", "ResponseHeaderModifier", "URLRewrite")


def read_session(f: Fields, owner: str) -> Session | None:
    """Read sessionPersistence; `owner` makes a name where none is written."""
    kind = f.choice("type", "Cookie", "Header") or "Cookie"
    cookie, header = f.mapping("cookie"), f.mapping("header")
    name = f.text("sessionName")  # before v1.6, with cookieConfig
    lifetime, path = "", "/"
    for config in (f.mapping("cookieConfig"), cookie):
        if config is not None:
            lifetime = config.choice("lifetimeType", "Permanent", "Session")
            path = config.text("path") or "/"
            name = config.text("name") or name
            config.done()
    if header is not None:
        name = header.text("name") or name
        header.done()
    absolute = f.duration("absoluteTimeout", zero=True)
    idle = f.duration("idleTimeout", zero=True)
    f.done()
    if lifetime == "Permanent" and not absolute:
        f.bad("absoluteTimeout", "must be set for a Permanent cookie")
    if name and not _COOKIE_NAME.fullmatch(name):
        f.report.bad(f.path, f"{show(name)} is not a name for a cookie or header")
        return None
    if not path.startswith("/") or any(c in path for c in ";\r\n\0") or len(path) > 1024:
        f.report.bad(f.path, f"{show(path)} is not the path of a cookie")
        return None
    if kind == "Header" and (cookie is not None or lifetime):
        f.bad("cookie", "goes with type Cookie")
    if not name:
        name = f"session-{hashlib.sha256(owner.encode()).hexdigest()[:12]}"
    return Session(
        kind="header" if kind == "Header" else "cookie",
        name=name.lower() if kind == "Header" else name,
        path=path,
        absolute_timeout=absolute or 0.0,
        idle_timeout=idle or 0.0,
        permanent=lifetime == "Permanent",
    )


def _read_timeouts(f: Fields) -> tuple[float | None, float | None]:
    request = f.duration("request", zero=True)
    backend = f.duration("backendRequest", zero=True)
    f.done()
    if request and backend and backend > request:
        f.bad("backendRequest", "must not be longer than request")
    return request or None, backend or None


def _read_retry(f: Fields) -> Retry:
    codes = []
    for path, value in f.items("codes"):
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
            codes.append(value)
        else:
            f.report.bad(path, f"{show(value)} is not between 400 and 599")
    attempts = f.integer("attempts", 0, 100)
    backoff = f.duration("backoff")
    f.done()
    return Retry(
        attempts=DEFAULT_ATTEMPTS if attempts is None else attempts,
        codes=tuple(dict.fromkeys(codes)),
        conditions=DEFAULT_RETRY_ON,
        backoff=backoff,
    )


class _Reader:
    """Reads the rules of one route."""

    def __init__(self, key: Key, domain: str) -> None:
        self._key = key
        self._domain = domain
        self.dropped: list[str] = []
        self.incompatible = False

    def shares(self, f: Fields, *, filters: bool) -> tuple[Share, ...]:
        """Read backendRefs, those of weight 0 too: what they name must be there."""
        entries = f.items("backendRefs")
        if len(entries) > _MAX_BACKENDS:
            f.bad("backendRefs", f"more than {_MAX_BACKENDS}")
        out = []
        for path, value in entries[:_MAX_BACKENDS]:
            entry = Fields(value, path, f.report)
            weight = entry.integer("weight", 0, _MAX_WEIGHT)
            ref = read_reference(entry, self._key, self._domain)
            found = Filters()
            if filters:
                kinds = _BACKEND_FILTERS if self._key.kind == HTTP_ROUTE else _BACKEND_FILTERS[:2]
                items = entry.items("filters")
                found = read_filters(items, kinds, entry, self._key, self._domain)
            if found.rewrite is not None and found.rewrite.path:
                entry.bad("filters", "a path can be rewritten for the whole rule only")
            entry.done()
            share = 1 if weight is None else weight
            out.append(Share(ref, share, found.request, found.response, found.rewrite))
        return tuple(out)

    def name(self, f: Fields, number: int) -> str:
        name = f.text("name")
        if name and not _NAME.fullmatch(name):
            f.bad("name", f"{show(name)} is not a name")
        return name or f"{self._key.namespace}.{self._key.name}.{number}"

    def http(self, f: Fields, number: int) -> HttpTemplate:
        """Read a rule of an HTTPRoute or GRPCRoute."""
        is_http = self._key.kind == HTTP_ROUTE
        matches = read_http_matches(f) if is_http else read_grpc_matches(f)
        kinds = _HTTP_FILTERS if is_http else _GRPC_FILTERS
        found = read_filters(f.items("filters"), kinds, f, self._key, self._domain)
        self.incompatible |= found.incompatible
        shares = self.shares(f, filters=True)
        if found.redirect is not None and shares:
            f.bad("backendRefs", "a rule that redirects has none")
            self.incompatible = True
        if found.replaces_prefix and not all(
            m.match.path is None or m.match.path.kind == "segments" for m in matches
        ):
            f.bad("filters", "ReplacePrefixMatch goes with matches of type PathPrefix alone")
            self.incompatible = True
        timeout, backend_timeout, retry = None, None, None
        if is_http:
            timeout, backend_timeout = f.inner("timeouts", _read_timeouts) or (None, None)
            retry = f.inner("retry", _read_retry)
        owner = f"{self._key}/{number}"
        session = f.inner("sessionPersistence", lambda s: read_session(s, owner))
        closed = DirectResponse(500) if found.problem is not None else None
        rule = HttpRule(
            origin=self._key,
            name=self.name(f, number),
            redirect=None if closed else found.redirect,
            response=closed,
            rewrite=found.rewrite,
            request_headers=found.request,
            response_headers=found.response,
            timeout=timeout,
            backend_timeout=backend_timeout,
            retry=retry,
            session=session,
            cors=found.cors,
        )
        f.done()
        return HttpTemplate(
            f.path, rule, matches, () if closed else shares, found.mirrors, found.problem
        )

    def l4(self, f: Fields, number: int) -> L4Template:
        """Read a rule of a TLSRoute or TCPRoute."""
        template = L4Template(f.path, self.name(f, number), self.shares(f, filters=False))
        f.done()
        return template


def _read_hostnames(spec: Fields, key: Key) -> tuple[str, ...]:
    """Read hostnames: of a TLSRoute what it is for; of others in a mesh nothing (GEP-1294)."""
    found = []
    for i, host in enumerate(spec.texts("hostnames")):
        if len(host) > 253 or not _HOSTNAME.fullmatch(host.lower()):
            spec.bad(f"hostnames[{i}]", f"{show(host)} is not a DNS name")
        else:
            found.append(host.lower())
    if key.kind == TLS_ROUTE and not found:
        spec.bad("hostnames", "must name the hosts that clients ask for")
    return tuple(dict.fromkeys(found))


def read_route(key: Key, obj: Mapping[str, Any], domain: str) -> Route:
    """Read one route; never raises."""
    report = Report()
    spec = Fields(obj.get("spec"), "spec", report)
    reader = _Reader(key, domain)
    hostnames = _read_hostnames(spec, key) if key.kind != "TCPRoute" else ()
    parents = read_parents(spec, key, domain)
    spec.raw("useDefaultGateways")  # about ingress
    is_http = key.kind in (HTTP_ROUTE, GRPC_ROUTE)
    http: list[HttpTemplate] = []
    l4: list[L4Template] = []
    entries = spec.items("rules")
    if not entries and is_http and not report.invalid:
        entries = [("spec.rules[0]", {})]  # the API's default, where there is one
    matches = 0
    for number, (path, value) in enumerate(entries):
        found = Report()
        rule = Fields(value, path, found)
        template = reader.http(rule, number) if is_http else reader.l4(rule, number)
        matches += len(template.matches) if isinstance(template, HttpTemplate) else 1
        if number >= MAX_RULES or matches > _MAX_MATCHES:
            found.bad(path, f"more than {MAX_RULES} rules or {_MAX_MATCHES} matches")
        if found:
            if len(reader.dropped) < MAX_RULES:
                reader.dropped += found.invalid[:4]
        elif isinstance(template, HttpTemplate):
            http.append(template)
        else:
            l4.append(template)
    spec.done()
    if key.kind == TLS_ROUTE and not hostnames:
        l4 = []
    return Route(
        key=key,
        created=created(obj),
        parents=parents,
        http=tuple(http),
        l4=tuple(l4),
        hostnames=hostnames,
        dropped=tuple(reader.dropped),
        incompatible=reader.incompatible,
        report=report,
    )
