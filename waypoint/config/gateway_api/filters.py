"""Filters of rules and of their backends."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from mesh.manifest import Key
from waypoint.config.gateway_api.references import read_reference
from waypoint.config.gateway_api.templates import NO_CHANGE, Problem, Reference
from waypoint.config.reading import MAX_HEADER_VALUE, Fields, fits_header, show
from waypoint.config.regex import literal
from waypoint.config.routing import Cors, HeaderChange, Redirect, Rewrite, TextMatch

HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")  # a token of RFC 9110, 5.6.2
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_ONCE: Final = frozenset(
    {"RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite", "CORS"}
)
_FIELDS: Final = {
    "RequestHeaderModifier": "requestHeaderModifier",
    "ResponseHeaderModifier": "responseHeaderModifier",
    "RequestMirror": "requestMirror",
    "RequestRedirect": "requestRedirect",
    "URLRewrite": "urlRewrite",
    "CORS": "cors",
    "ExternalAuth": "externalAuth",
    "ExtensionRef": "extensionRef",
}
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_CORS_AGE: Final = 5  # seconds, where it is not written


@dataclass(slots=True)
class Filters:
    """What the filters of one rule, or of one backend, do together."""

    request: HeaderChange = NO_CHANGE
    response: HeaderChange = NO_CHANGE
    redirect: Redirect | None = None
    rewrite: Rewrite | None = None
    cors: Cors | None = None
    mirrors: tuple[tuple[Reference, float], ...] = ()
    replaces_prefix: bool = False  # then every match must be a prefix
    incompatible: bool = False
    problem: Problem | None = None  # of a filter that may not be passed over


# ---- headers -----------------------------------------------------------------------------------


def _read_values(f: Fields, name: str) -> tuple[tuple[str, str], ...]:
    out: dict[str, str] = {}
    for entry in f.each(name):
        key, value = entry.text("name"), entry.text("value")
        entry.done()
        if not HEADER_NAME.fullmatch(key) or key.lower() == "host":
            entry.bad("name", f"{show(key)} is not the name of a header that can be changed")
        elif not fits_header(value):
            entry.bad("value", f"longer than {MAX_HEADER_VALUE} bytes, or with a line break")
        else:
            out.setdefault(key.lower(), value)  # of equal names the first counts
    return tuple(sorted(out.items()))


def _read_change(f: Fields) -> HeaderChange:
    written, added = _read_values(f, "set"), _read_values(f, "add")
    removed = {name.lower() for name in f.texts("remove")}
    for name in removed:
        if not HEADER_NAME.fullmatch(name) or name == "host":
            f.bad("remove", f"{show(name)} is not the name of a header that can be removed")
    f.done()
    return HeaderChange(written, added, tuple(sorted(removed)))


# ---- paths, hosts ------------------------------------------------------------------------------


def _read_path(f: Fields) -> tuple[str, bool]:
    """Read a path modifier: what it puts there, and whether for the whole path."""
    kind = f.choice("type", "ReplaceFullPath", "ReplacePrefixMatch")
    full, prefix = f.text("replaceFullPath"), f.text("replacePrefixMatch")
    wanted = {"ReplaceFullPath": "replaceFullPath", "ReplacePrefixMatch": "replacePrefixMatch"}
    if not kind and not f.has("type"):
        f.bad("type", "must be set")
    for name in wanted.values():
        if f.has(name) != (wanted.get(kind) == name):
            f.bad(name, f"goes with type {next(k for k, v in wanted.items() if v == name)}")
    if not fits_header(full + prefix):
        f.report.bad(f.path, f"longer than {MAX_HEADER_VALUE} bytes, or with a line break")
    f.done()
    text = full if kind == "ReplaceFullPath" else prefix
    # An empty path is "/", and replacing a prefix by nothing or by "/" is the same.
    return (text if text.startswith("/") else f"/{text}"), kind == "ReplaceFullPath"


def _read_host(f: Fields) -> str:
    host = f.text("hostname")
    if host and (len(host) > 253 or not _HOST.fullmatch(host)):
        f.bad("hostname", f"{show(host)} is not a DNS name")
    return host


def _read_redirect(f: Fields) -> tuple[Redirect, bool]:
    """Read a redirect; returns it and whether it replaces what a prefix matched."""
    path, full = f.inner("path", _read_path) or ("", False)
    code = f.integer("statusCode", 0, 999)
    if code is not None and code not in _REDIRECTS:
        f.bad("statusCode", f"{code} is none of {', '.join(map(str, _REDIRECTS))}")
    redirect = Redirect(
        code=code or 302,
        scheme=f.choice("scheme", "http", "https"),
        host=_read_host(f),
        port=f.integer("port", 1, 65535),
        path=path,
        full=full,
    )
    f.done()
    return redirect, bool(path) and not full


def _read_rewrite(f: Fields) -> tuple[Rewrite, bool]:
    path, full = f.inner("path", _read_path) or ("", False)
    rewrite = Rewrite(host=_read_host(f), path=path, full=full)
    f.done()
    return rewrite, bool(path) and not full


# ---- mirrors, CORS -----------------------------------------------------------------------------


def _read_fraction(f: Fields) -> float:
    numerator = f.integer("numerator", 0, 1 << 31)
    denominator = f.integer("denominator", 1, 1 << 31)
    f.done()
    share = (numerator or 0) / (denominator or 100)
    if share > 1:
        f.bad("numerator", "must not be greater than the denominator")
        return 0.0
    return 100 * share


def _read_mirror(f: Fields, owner: Key, domain: str) -> tuple[Reference, float] | None:
    percent, fraction = f.number("percent", 0, 100), f.inner("fraction", _read_fraction)
    if percent is not None and fraction is not None:
        f.bad("percent", "set percent or fraction, not both")

    def read(inner: Fields) -> Reference:
        found = read_reference(inner, owner, domain)
        inner.done()
        return found

    if not f.has("backendRef"):
        f.bad("backendRef", "must be set")
    reference = f.inner("backendRef", read)
    f.done()
    share = 100.0 if percent is None and fraction is None else fraction or percent or 0.0
    return None if reference is None else (reference, share)


def _read_origin(text: str) -> TextMatch | None:
    if text == "*" or "*" not in text:
        return TextMatch("exact", text) if text else None
    # A star takes any number of labels.
    return TextMatch("regex", ".*".join(map(literal, text.split("*"))))


def _read_cors(f: Fields) -> Cors:
    credentials = f.boolean("allowCredentials") or False
    origins = []
    for text in f.texts("allowOrigins"):
        origin = _read_origin(text)
        if origin is None or len(text) > 253 or any(c.isspace() for c in text):
            f.bad("allowOrigins", f"{show(text)} is no origin, such as https://*.example.com")
        else:
            origins.append(origin)
    lists = {}
    for name in ("allowMethods", "allowHeaders", "exposeHeaders"):
        lists[name] = f.texts(name)
        for text in lists[name]:
            if not HEADER_NAME.fullmatch(text):
                f.bad(name, f"{show(text)} is not a name")
    age = f.integer("maxAge", 1, (1 << 31) - 1)
    if credentials:  # then a star would be a name like any other to browsers
        if "*" in lists["allowMethods"]:
            lists["allowMethods"] = _METHODS
        # What a backend answers with is not known beforehand: only named headers are shown.
        lists["exposeHeaders"] = tuple(t for t in lists["exposeHeaders"] if t != "*")
    echo = credentials and "*" in lists["allowHeaders"]
    f.done()
    return Cors(
        origins=tuple(origins),
        methods=lists["allowMethods"],
        request_headers=() if echo else lists["allowHeaders"],
        expose_headers=lists["exposeHeaders"],
        max_age=_CORS_AGE if age is None else age,
        credentials=credentials,
        forward_unmatched=False,
        echo_headers=echo,
    )


# ---- all of them -------------------------------------------------------------------------------


def _closed(f: Fields, kind: str) -> Problem:
    """Say why a filter that cannot be done makes its rule answer 500: it must not be skipped."""
    if kind == "ExtensionRef":
        inner = f.mapping("extensionRef")
        what = inner.text("kind") if inner else ""
        return Problem("InvalidKind", f"{f.path}.extensionRef: {show(what)} is no filter here")
    return Problem(
        "UnsupportedValue",
        f"{f.path}: ExternalAuth is not supported: use an AuthorizationPolicy with action CUSTOM",
    )


class _Reader:
    def __init__(self, owner: Key, domain: str) -> None:
        self._owner = owner
        self._domain = domain
        self.found = Filters()

    def one(self, f: Fields, kind: str) -> None:
        """Read one filter into what was found."""
        found = self.found
        name = _FIELDS[kind]
        if kind in ("ExternalAuth", "ExtensionRef"):
            found.problem = found.problem or _closed(f, kind)
            f.raw(name)
            return
        if not f.has(name):
            f.bad(name, f"must be set for a filter of type {kind}")
        match kind:
            case "RequestHeaderModifier":
                found.request = f.inner(name, _read_change) or NO_CHANGE
            case "ResponseHeaderModifier":
                found.response = f.inner(name, _read_change) or NO_CHANGE
            case "CORS":
                found.cors = f.inner(name, _read_cors)
            case "RequestMirror":
                mirror = f.inner(name, lambda m: _read_mirror(m, self._owner, self._domain))
                found.mirrors += (mirror,) if mirror else ()
            case "RequestRedirect":
                found.redirect, prefix = f.inner(name, _read_redirect) or (None, False)
                found.replaces_prefix |= prefix
            case "URLRewrite":
                found.rewrite, prefix = f.inner(name, _read_rewrite) or (None, False)
                found.replaces_prefix |= prefix


def read_filters(
    entries: list[tuple[str, Any]], kinds: tuple[str, ...], rule: Fields, owner: Key, domain: str
) -> Filters:
    """Read the filters of a rule or backend, of the kinds that it may have."""
    reader = _Reader(owner, domain)
    seen: set[str] = set()
    for path, value in entries:
        f = Fields(value, path, rule.report)
        kind = f.choice("type", *kinds)
        if not f.has("type"):
            f.bad("type", "must be set")
        if kind in seen & _ONCE:
            f.bad("type", f"{kind} is there already")
            reader.found.incompatible = True
        if kind:
            reader.one(f, kind)
            seen.add(kind)
            f.done()
    if {"RequestRedirect", "URLRewrite"} <= seen:
        rule.bad("filters", "RequestRedirect and URLRewrite exclude each other")
        reader.found.incompatible = True
    return reader.found
