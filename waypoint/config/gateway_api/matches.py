"""matches of HTTPRoute and GRPCRoute, with their precedence.

HTTPRoute: an exact path before a regular expression (whose place the specification leaves open)
before prefixes, longer before shorter, then a method, more headers, more query parameters.
GRPCRoute: a longer service, a longer method, more headers.
"""

from __future__ import annotations

import re
from typing import Final

from waypoint.config.gateway_api.filters import HEADER_NAME
from waypoint.config.gateway_api.templates import Ranked
from waypoint.config.reading import Fields, show
from waypoint.config.regex import fault, literal
from waypoint.config.routing import PathMatch, RouteMatch, TextMatch

_MAX_VALUE: Final = 16384
_METHOD: Final = re.compile(r"[A-Z]{1,32}")
_ALL: Final = Ranked(RouteMatch(), (0, 1, 0, 0, 0))
_GRPC_NAME: Final = re.compile(r"[^/\s]{1,1024}")
_TYPES: Final = ("Exact", "RegularExpression")


def _checked_regex(f: Fields, name: str, text: str) -> str:
    why = fault(text)
    if why:
        f.bad(name, f"{show(text)}: {why}")
    return text


def _read_path(f: Fields) -> tuple[PathMatch | None, tuple[int, int]]:
    """Read a path match, and its rank: kind, then length."""
    kind = f.choice("type", "PathPrefix", *_TYPES) or "PathPrefix"
    value = f.text("value") if f.has("value") else "/"
    f.done()
    if kind == "RegularExpression":
        if not value:
            f.bad("value", "must not be empty")
        return PathMatch("regex", _checked_regex(f, "value", value)), (1, len(value))
    if len(value) > _MAX_VALUE or not value.startswith("/"):
        f.bad(
            "value", f"{show(value)} must begin with / (and have {_MAX_VALUE} characters at most)"
        )
    elif "//" in value or "/./" in f"{value}/" or "/../" in f"{value}/":
        f.bad("value", f"{show(value)}: paths are compared with //, /./ and /../ resolved")
    elif "?" in value or "#" in value:
        f.bad("value", f"{show(value)}: a path has no query and no fragment")
    if kind == "Exact":
        return PathMatch("exact", value), (2, len(value))
    segments = value.rstrip("/")
    return (PathMatch("segments", segments) if segments else None), (0, len(segments) + 1)


def _read_named(f: Fields, name: str, *, header: bool) -> tuple[tuple[str, TextMatch], ...]:
    """Read header or query matches; of equal names the first counts."""
    out: dict[str, TextMatch] = {}
    for entry in f.each(name):
        key, value = entry.text("name"), entry.text("value")
        kind = entry.choice("type", *_TYPES)
        entry.done()
        if not HEADER_NAME.fullmatch(key):
            entry.bad("name", f"{show(key)} is not a name")
        if not value or len(value) > _MAX_VALUE:
            entry.bad("value", f"must have 1 to {_MAX_VALUE} characters")
        if kind == "RegularExpression":
            match = TextMatch("regex", _checked_regex(entry, "value", value))
        else:
            match = TextMatch("exact", value)
        out.setdefault(key.lower() if header else key, match)
    return tuple(sorted(out.items()))


def _read_match(f: Fields) -> Ranked:
    path, rank = f.inner("path", _read_path) or (None, (0, 1))
    headers = _read_named(f, "headers", header=True)
    query = _read_named(f, "queryParams", header=False)
    method = f.text("method")
    if method and not _METHOD.fullmatch(method):
        f.bad("method", f"{show(method)} is not a method")
    f.done()
    match = RouteMatch(
        path=path,
        method=TextMatch("exact", method) if method else None,
        headers=headers,
        query=query,
    )
    return Ranked(match, (*rank, int(bool(method)), len(headers), len(query)))


def read_http_matches(rule: Fields) -> tuple[Ranked, ...]:
    """Read the matches of an HTTPRoute's rule; none is every request."""
    return tuple(_read_match(f) for f in rule.each("matches")) or (_ALL,)


# ---- gRPC --------------------------------------------------------------------------------------


def _read_call(f: Fields) -> tuple[PathMatch | None, tuple[int, int]]:
    """Read a method match: gRPC's path is /service/method."""
    kind = f.choice("type", *_TYPES) or "Exact"
    service, method = f.text("service"), f.text("method")
    f.done()
    if not service and not method:
        f.report.bad(f.path, "must have a service or a method")
    rank = (len(service), len(method))
    if kind == "RegularExpression":
        pattern = (
            f"/{f'(?:{service})' if service else '[^/]+'}/{f'(?:{method})' if method else '[^/]+'}"
        )
        for name, text in (("service", service), ("method", method)):
            if text:
                _checked_regex(f, name, text)
        # Each may be sound alone and not within the other's brackets: RE2's \Q runs to the end.
        _checked_regex(f, "service" if service else "method", pattern)
        return PathMatch("regex", pattern), rank
    for name, text in (("service", service), ("method", method)):
        if text and not _GRPC_NAME.fullmatch(text):
            f.bad(name, f"{show(text)} is not a name")
    if service and method:
        return PathMatch("exact", f"/{service}/{method}"), rank
    if service:
        return PathMatch("prefix", f"/{service}/"), rank
    return PathMatch("regex", f"/[^/]+/{literal(method)}"), rank


def _read_grpc_match(f: Fields) -> Ranked:
    path, rank = f.inner("method", _read_call) or (None, (0, 0))
    headers = _read_named(f, "headers", header=True)
    f.done()
    return Ranked(RouteMatch(path=path, headers=headers, grpc=True), (*rank, len(headers)))


def read_grpc_matches(rule: Fields) -> tuple[Ranked, ...]:
    """Read the matches of a GRPCRoute's rule; none is every call."""
    matches = tuple(_read_grpc_match(f) for f in rule.each("matches"))
    return matches or (Ranked(RouteMatch(grpc=True), (0, 0, 0)),)
