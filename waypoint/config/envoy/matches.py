"""RouteMatch to Envoy's (envoy.config.route.v3.RouteMatch), and rewrites that depend on it."""

from __future__ import annotations

from typing import Any, Final

from waypoint.config.regex import literal
from waypoint.config.routing import PathMatch, Redirect, Rewrite, RouteMatch, TextMatch

Proto = dict[str, Any]

PEER: Final = "wp.peer"  # filter state: the caller's SPIFFE ID


def string_match(match: TextMatch) -> Proto:
    """envoy.type.matcher.v3.StringMatcher; "present" is any text."""
    if match.kind == "present":
        return {"safe_regex": {"regex": ".*"}}
    if match.kind == "regex":
        return {"safe_regex": {"regex": ("(?i)" if match.ignore_case else "") + match.value}}
    return {match.kind: match.value, **({"ignore_case": True} if match.ignore_case else {})}


def header_match(name: str, match: TextMatch) -> Proto:
    """One header; Envoy's inverted matches do not match absent headers by themselves."""
    if match.kind == "present":
        return {"name": name, "present_match": True, "invert_match": match.invert}
    out: Proto = {"name": name, "string_match": string_match(match)}
    if match.invert:
        out |= {"invert_match": True, "treat_missing_header_as_empty": True}
    return out


def _path(match: PathMatch | None) -> Proto:
    if match is None:
        return {"prefix": "/"}
    case: Proto = {"case_sensitive": False} if match.ignore_case else {}
    if match.kind == "exact":
        return {"path": match.value, **case}
    if match.kind == "regex":
        fold = "(?i)" if match.ignore_case else ""
        return {"safe_regex": {"regex": fold + match.value}}
    trimmed = match.value.rstrip("/")
    if match.kind == "segments" and trimmed:
        return {"path_separated_prefix": trimmed, **case}
    return {"prefix": match.value if match.kind == "prefix" else "/", **case}


def from_namespaces(namespaces: tuple[str, ...]) -> Proto:
    """Match callers by the namespaces of their identities."""
    either = "|".join(literal(n) for n in namespaces)
    return {"safe_regex": {"regex": f"spiffe://[^/]+/ns/(?:{either})/sa/.*"}}


def route_match(match: RouteMatch) -> Proto:
    """All that is set must match."""
    out = _path(match.path)
    headers = list(match.headers)
    for name, one in (
        (":method", match.method),
        (":authority", match.authority),
        (":scheme", match.scheme),
    ):
        if one is not None:
            headers.append((name, one))
    if headers:
        out["headers"] = [header_match(*one) for one in headers]
    if match.query:
        out["query_parameters"] = [_query(*one) for one in match.query]
    if match.grpc:
        out["grpc"] = {}
    if match.source_namespaces:
        state = {"key": PEER, "string_match": from_namespaces(match.source_namespaces)}
        out["filter_state"] = [state]
    return out


def _query(name: str, match: TextMatch) -> Proto:
    if match.kind == "present":
        return {"name": name, "present_match": True}
    return {"name": name, "string_match": string_match(match)}


def _replacement(new: str) -> str:
    return new.replace("\\", "\\\\")


def path_rewrite(match: PathMatch | None, new: str, full: bool) -> Proto:
    """Fields that replace the path, or what the match's prefix matched of it.

    The query is kept. Segments are replaced by segments: no slash is doubled or lost.
    """
    if full:
        return _regex_rewrite("^.*$", _replacement(new))
    if match is None or match.kind == "segments":
        old = "" if match is None else match.value.rstrip("/")
        head = ("(?i)" if match is not None and match.ignore_case else "") + "^" + literal(old)
        base = new.rstrip("/")
        if not base:
            return _regex_rewrite(head + "/*(.*)$", r"/\1")
        return _regex_rewrite(head + "(/.*)?$", _replacement(base) + r"\1")
    return {"prefix_rewrite": new}


def _regex_rewrite(pattern: str, substitution: str) -> Proto:
    return {"regex_rewrite": {"pattern": {"regex": pattern}, "substitution": substitution}}


def rewrite(match: RouteMatch, wanted: Rewrite | None) -> Proto:
    """Fields of a RouteAction."""
    if wanted is None:
        return {}
    out: Proto = {"host_rewrite_literal": wanted.host} if wanted.host else {}
    if wanted.regex:
        return out | _regex_rewrite(wanted.regex, wanted.path)
    if wanted.path:
        out |= path_rewrite(match.path, wanted.path, wanted.full)
    return out


_CODES: Final = {
    301: "MOVED_PERMANENTLY",
    302: "FOUND",
    303: "SEE_OTHER",
    307: "TEMPORARY_REDIRECT",
    308: "PERMANENT_REDIRECT",
}
_SCHEMES: Final = {"http": 80, "https": 443}


def _port_shown(wanted: Redirect, port: int) -> int | None:
    """The port that Location must be given; a scheme's own need not be (RFC 9110, 4.2.3).

    Without one Envoy takes the host that is set as it is, or else the request's with its port;
    a request to port 80 has none in its Host.
    """
    own = _SCHEMES.get(wanted.scheme or "http")
    if wanted.port is None and not wanted.scheme:
        return port if wanted.host and port != own else None
    target = own if wanted.port is None else wanted.port
    if target == own and (wanted.host or port == _SCHEMES["http"]):
        return None
    return target


def redirect(match: RouteMatch, wanted: Redirect, port: int) -> Proto:
    """envoy.config.route.v3.RedirectAction, of requests to a service's `port`."""
    out: Proto = {"response_code": _CODES.get(wanted.code, "FOUND")}
    if wanted.scheme:
        out["scheme_redirect"] = wanted.scheme
    if wanted.host:
        out["host_redirect"] = wanted.host
    shown = _port_shown(wanted, port)
    if shown:
        out["port_redirect"] = shown
    if wanted.path and wanted.full:
        out["path_redirect"] = wanted.path
    elif wanted.path:
        out |= path_rewrite(match.path, wanted.path, full=False)
    return out
