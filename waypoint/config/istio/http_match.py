"""match of a VirtualService's http rules.

A match with anything wrong in it, or that a waypoint cannot decide, is left out whole: it never
takes more requests than it was written for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from waypoint.config.istio.templates import Match
from waypoint.config.reading import Fields, Report, show
from waypoint.config.regex import fault
from waypoint.config.routing import PathMatch, RouteMatch, TextMatch

HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")  # a token of RFC 9110, 5.6.2
_PSEUDO: Final = frozenset({":method", ":authority", ":scheme", ":path"})
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAX_VALUE: Final = 16384  # bytes; Envoy takes no longer header values
_MESH: Final = "mesh"

NO_LABELS: Final = (
    "a waypoint does not know the labels of its callers: this match never matches; use"
    " sourceNamespace, or headers"
)
_NO_CLAIMS: Final = (
    "routing by claims is not supported: copy the claim to a header (RequestAuthentication"
    " outputClaimToHeaders) and match that"
)
_NO_STATS: Final = "has no effect: a waypoint's metrics are by service and workload"


def read_text_match(
    value: Any, path: str, report: Report, *, present: bool = True
) -> TextMatch | None:
    """Read a StringMatch; {} means any value, where that is allowed. None is a bad one."""
    f = Fields(value, path, report)
    before = len(report.invalid) + report.left_out
    kinds = [k for k in ("exact", "prefix", "regex") if f.has(k)]
    texts = {k: f.text(k) for k in kinds}
    f.done()
    if len(report.invalid) + report.left_out != before:
        return None
    if len(kinds) > 1 or (not kinds and not present):
        report.bad(path, "set one of exact, prefix and regex")
        return None
    if not kinds:
        return TextMatch("present")
    kind, text = kinds[0], texts[kinds[0]]
    if len(text) > _MAX_VALUE:
        report.bad(f"{path}.{kind}", f"longer than {_MAX_VALUE} characters")
        return None
    if kind == "prefix":
        return TextMatch("prefix", text) if text else TextMatch("present")
    if kind == "exact":
        return TextMatch("exact", text)
    if text == "*" and present:  # not RE2, but written everywhere for "any value"
        return TextMatch("present")
    why = fault(text) if text else "must not be empty"
    if why:
        report.bad(f"{path}.regex", f"{show(text)}: {why}")
        return None
    return TextMatch("regex", text)


def _read_path(f: Fields) -> PathMatch | None:
    ignore = f.boolean("ignoreUriCase") or False
    if not f.has("uri"):
        return None
    found = read_text_match(f.raw("uri"), f.at("uri"), f.report, present=False)
    if found is None or found.kind == "present":  # the empty prefix is every path
        return None
    if found.kind == "regex":
        return PathMatch("regex", found.value)
    return PathMatch("exact" if found.kind == "exact" else "prefix", found.value, ignore)


def _read_named(
    f: Fields, name: str, *, headers: bool, invert: bool = False
) -> list[tuple[str, TextMatch]]:
    inner = f.mapping(name)
    if inner is None:
        return []
    out = []
    for key in inner.names():
        if headers and key.startswith("@request.auth.claims"):
            f.report.skip(inner.at(key), _NO_CLAIMS)
            continue
        if headers and not (key.lower() in _PSEUDO or HEADER_NAME.fullmatch(key)):
            inner.bad(key[:80], "is not the name of a header")
            continue
        if not key or len(key) > 1024:
            inner.bad(key[:80], "a name must have 1 to 1024 characters")
            continue
        found = read_text_match(inner.raw(key), inner.at(key), f.report)
        if found is not None:
            if invert:
                found = TextMatch(found.kind, found.value, found.ignore_case, True)
            out.append((key.lower() if headers else key, found))
    return sorted(out, key=lambda item: item[0])


def is_for_mesh(f: Fields) -> bool:
    """Read a match's gateways: only those of the mesh itself concern a waypoint."""
    gateways = f.texts("gateways")
    return not gateways or _MESH in gateways


def read_source(f: Fields) -> tuple[str, ...]:
    """Read the caller's namespace; labels are a reason never to match."""
    labels = f.raw("sourceLabels")
    if isinstance(labels, Mapping) and labels:
        f.report.skip(f.at("sourceLabels"), NO_LABELS)
    elif labels is not None and not isinstance(labels, Mapping):
        f.bad("sourceLabels", "must be a mapping")
    namespace = f.text("sourceNamespace")
    if namespace and not _NAMESPACE.fullmatch(namespace):
        f.bad("sourceNamespace", f"{namespace[:80]!r} is not the name of a namespace")
    return (namespace,) if namespace else ()


def read_match(value: Any, path: str, report: Report) -> Match | None:
    """Read one match; None is one that is left out: it is wrong, undecidable, or for gateways."""
    found = Report()
    f = Fields(value, path, found)
    stat = f.has("statPrefix")

    def text(name: str) -> TextMatch | None:
        return (
            read_text_match(f.raw(name), f.at(name), found, present=False) if f.has(name) else None
        )

    headers = _read_named(f, "headers", headers=True)
    headers += _read_named(f, "withoutHeaders", headers=True, invert=True)
    match = Match(
        path=f.path,
        name=f.text("name"),
        port=f.integer("port", 0, 65535) or None,
        match=RouteMatch(
            path=_read_path(f),
            headers=tuple(headers),
            query=tuple(_read_named(f, "queryParams", headers=False)),
            source_namespaces=read_source(f),
            scheme=text("scheme"),
            method=text("method"),
            authority=text("authority"),
        ),
    )
    for_mesh = is_for_mesh(f)
    f.done()
    report.take(found)
    if found or not for_mesh:
        return None
    if stat:
        report.skip(f.at("statPrefix"), _NO_STATS)
    return match


def read_matches(f: Fields) -> tuple[tuple[Match, ...], bool]:
    """Read all matches of a rule; returns them and whether the rule can take nothing at all."""
    if not f.has("match"):
        return (), False
    before = len(f.report.invalid) + f.report.left_out
    entries = f.items("match")
    wrong = len(f.report.invalid) + f.report.left_out != before  # not a list
    matches = [read_match(value, path, f.report) for path, value in entries]
    usable = tuple(m for m in matches if m is not None)
    return usable, not usable and (wrong or bool(matches))
