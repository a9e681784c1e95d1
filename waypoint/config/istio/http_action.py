"""What a VirtualService's http rule does with requests, besides choosing where they go.

A part that cannot be read is reported and not done; the rest of the rule stays.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from waypoint.config.istio.http_match import HEADER_NAME, read_text_match
from waypoint.config.istio.templates import NO_CHANGE
from waypoint.config.reading import MAX_HEADER_VALUE, Fields, fits_header
from waypoint.config.regex import substitution_fault
from waypoint.config.routing import (
    DEFAULT_RETRY_ON,
    Cors,
    DirectResponse,
    Fault,
    HeaderChange,
    Redirect,
    Retry,
    Rewrite,
    TextMatch,
)

MAX_BODY: Final = 4096  # bytes; Envoy's limit of a route's own answers (RouteConfiguration)
_MAX_ATTEMPTS: Final = 100
_HOST: Final = frozenset({"host", ":authority"})
_REDIRECTS: Final = (301, 302, 303, 307, 308)

# Envoy's words for what is tried again (x-envoy-retry-on, x-envoy-retry-grpc-on).
RETRY_ON: Final = (
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
)
# What Envoy would fill in (%REQ(x)%): a text that a user wrote is sent as a text.
_COMMAND: Final = re.compile(r"%[A-Z][A-Z0-9_]*(\([^()%]*\))?(:\d+)?%")
_NO_COMMANDS: Final = "commands of Envoy are not filled in: it is sent as it is written"

_GRPC_CODES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)


# ---- headers -----------------------------------------------------------------------------------


def _read_values(f: Fields, name: str, *, request: bool) -> tuple[list[tuple[str, str]], str]:
    """Read headers with values; returns them and what Host is to be, if they say that."""
    out, host = [], ""
    for key, value in f.text_map(name).items():
        where = f"{name}.{key[:80]}"
        if not fits_header(value):
            f.bad(where, f"longer than {MAX_HEADER_VALUE} bytes, or with a line break")
        elif key.lower() in _HOST and request:
            host = value
        elif not HEADER_NAME.fullmatch(key) or key.lower() in _HOST:
            f.bad(where, "is not the name of a header that can be changed")
        else:
            out.append((key.lower(), value))
            if _COMMAND.search(value):
                f.report.skip(f.at(where), _NO_COMMANDS)
    return sorted(out), host


def _read_change(f: Fields, *, request: bool) -> tuple[HeaderChange, str]:
    added, added_host = _read_values(f, "add", request=request)
    written, host = _read_values(f, "set", request=request)
    removed = []
    for key in f.texts("remove"):
        if HEADER_NAME.fullmatch(key) and key.lower() not in _HOST:
            removed.append(key.lower())
        else:
            f.bad("remove", f"{key[:80]!r} is not the name of a header that can be removed")
    f.done()
    change = HeaderChange(tuple(written), tuple(added), tuple(sorted(set(removed))))
    return change, host or added_host


def read_headers(f: Fields) -> tuple[HeaderChange, HeaderChange, str]:
    """Read headers: changes of the request, of the response, and the request's new Host."""
    inner = f.mapping("headers")
    if inner is None:
        return NO_CHANGE, NO_CHANGE, ""
    request, host = inner.inner("request", lambda c: _read_change(c, request=True)) or (
        NO_CHANGE,
        "",
    )
    response, _ = inner.inner("response", lambda c: _read_change(c, request=False)) or (
        NO_CHANGE,
        "",
    )
    inner.done()
    return request, response, host


# ---- answers of the waypoint's own -------------------------------------------------------------


def read_redirect(f: Fields) -> tuple[Redirect | None, bool]:
    """Read a redirect; returns it and whether its port is the request's own."""
    code = f.integer("redirectCode", 0, 999) or 301
    port = f.integer("port", 1, 65535)
    derive = f.choice("derivePort", "FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT")
    scheme, host = f.text("scheme"), f.text("authority")
    uri, prefix = f.text("uri"), f.text("prefixRewrite")
    if f.has("port") and f.has("derivePort"):
        f.bad("derivePort", "set port or derivePort, not both: port is used")
        derive = ""
    if uri and prefix:
        f.bad("uri", "set uri or prefixRewrite, not both: prefixRewrite is used")
    if scheme not in ("", "http", "https"):
        f.bad("scheme", f"{scheme[:80]!r} is neither http nor https")
        scheme = ""
    f.done()
    if code not in _REDIRECTS:
        f.bad("redirectCode", f"{code} is none of {', '.join(map(str, _REDIRECTS))}")
        return None, False
    if any(not fits_header(t) for t in (host, uri, prefix)):
        f.report.bad(f.path, f"longer than {MAX_HEADER_VALUE} bytes, or with a line break")
        return None, False
    # Requests arrive as http here. With a host of its own, the request's port is not kept.
    if port == {"https": 443}.get(scheme, 80):
        port = None
    if host or f.has("port"):
        scheme = scheme or "http"
    return Redirect(
        code=code, scheme=scheme, host=host, port=port, path=prefix or uri, full=not prefix
    ), derive == "FROM_REQUEST_PORT"


def _read_body(f: Fields) -> str:
    text, raw = f.text("string"), f.text("bytes")
    if f.has("bytes"):
        try:
            text = base64.b64decode(raw, validate=True).decode()
        except (binascii.Error, ValueError):
            f.bad("bytes", "is not text in base64: no body is sent")
            text = ""
    f.done()
    if len(text.encode("utf-8", "replace")) > MAX_BODY:
        f.report.bad(f.path, f"longer than {MAX_BODY} bytes: no body is sent")
        return ""
    return text


def read_response(f: Fields) -> DirectResponse | None:
    """Read a directResponse."""
    code = f.integer("status", 200, 599)
    if not f.has("status"):
        f.bad("status", "must be set")
    body = f.inner("body", _read_body) or ""
    f.done()
    return None if code is None else DirectResponse(code, body)


# ---- changes on the way ------------------------------------------------------------------------


def read_rewrite(f: Fields) -> Rewrite | None:
    """Read a rewrite."""
    uri, host, regex = f.text("uri"), f.text("authority"), f.mapping("uriRegexRewrite")
    pattern = substitution = ""
    if regex is not None:
        pattern, substitution = regex.text("match"), regex.text("rewrite")
        regex.done()
        why = substitution_fault(pattern, substitution) if pattern else "match must be set"
        if why:
            f.bad("uriRegexRewrite", why)
            pattern = substitution = ""
        elif uri:
            f.bad("uri", "set uri or uriRegexRewrite, not both: uriRegexRewrite is used")
    if not fits_header(uri + host + substitution):
        f.report.bad(f.path, f"longer than {MAX_HEADER_VALUE} bytes, or with a line break")
        return None
    f.done()
    if pattern:
        return Rewrite(host=host, path=substitution, regex=pattern)
    return Rewrite(host=host, path=uri) if uri or host else None


def _read_words(f: Fields) -> tuple[tuple[int, ...], tuple[str, ...]]:
    codes, words = [], []
    for part in f.text("retryOn").split(","):
        word = part.strip()
        if word.isascii() and word.isdigit() and len(word) == 3 and 100 <= int(word) <= 599:
            codes.append(int(word))
        elif word in RETRY_ON:
            words.append(word)
        elif word:
            f.bad("retryOn", f"{word[:80]!r} is neither a condition of Envoy nor a status code")
    return tuple(dict.fromkeys(codes)), tuple(dict.fromkeys(words))


def read_retry(f: Fields) -> Retry | None:
    """Read retries."""
    attempts = f.integer("attempts", 0, _MAX_ATTEMPTS)
    codes, words = _read_words(f)
    if not f.has("attempts"):
        f.report.skip(f.at("attempts"), "is not set, which means 0: nothing is tried again")
    ignore = f.boolean("retryIgnorePreviousHosts")
    found = Retry(
        attempts=attempts or 0,
        codes=codes,
        conditions=words if words or codes else DEFAULT_RETRY_ON,
        per_try_timeout=f.duration("perTryTimeout", zero=True) or None,
        backoff=f.duration("backoff"),
        other_hosts=ignore is not False,
        other_places=f.boolean("retryRemoteLocalities") or False,
    )
    f.done()
    if f.has("attempts") and attempts is None:
        return None  # wrong, not 0: the mesh's default
    return found


def read_percent(f: Fields, name: str, default: float) -> float:
    """Read a Percent; `default` is for what is not written."""
    inner = f.mapping(name)
    if inner is None:
        return default
    value = inner.number("value", 0, 100)
    inner.done()
    return 0.0 if value is None else value


def _read_delay(f: Fields) -> tuple[float, float]:
    old = f.number("percent", 0, 100)
    percent = read_percent(f, "percentage", old or 0.0)
    seconds = f.duration("fixedDelay")
    f.skip("not supported: use fixedDelay", "exponentialDelay")
    if not f.has("percentage") and not f.has("percent"):
        f.report.skip(f.at("percentage"), "is not set, which means 0: nothing is delayed")
    if not f.has("fixedDelay"):
        f.bad("fixedDelay", "must be set")
    f.done()
    return (seconds, percent) if seconds else (0.0, 0.0)


def _read_abort(f: Fields) -> tuple[int, int | None, float]:
    percent = read_percent(f, "percentage", 0.0)
    code = f.integer("httpStatus", 200, 599)
    grpc = f.text("grpcStatus")
    f.skip("not supported: use httpStatus or grpcStatus", "http2Error")
    if not f.has("percentage"):
        f.report.skip(f.at("percentage"), "is not set, which means 0: nothing is aborted")
    number = None
    if f.has("httpStatus") == f.has("grpcStatus"):
        f.report.bad(f.path, "set one of httpStatus and grpcStatus")
        code = None
    elif grpc in _GRPC_CODES:
        number = _GRPC_CODES.index(grpc)
    elif f.has("grpcStatus"):
        f.bad("grpcStatus", f"{grpc[:80]!r} is no status of gRPC, such as UNAVAILABLE")
    f.done()
    if code is None and number is None:
        return 0, None, 0.0
    return code or 0, number, percent


def read_fault(f: Fields) -> Fault | None:
    """Read a fault."""
    delay, delay_percent = f.inner("delay", _read_delay) or (0.0, 0.0)
    code, grpc, abort_percent = f.inner("abort", _read_abort) or (0, None, 0.0)
    f.done()
    found = Fault(delay, delay_percent, code, grpc, abort_percent)
    return found if delay or code or grpc is not None else None


def read_cors(f: Fields) -> Cors | None:
    """Read a corsPolicy."""
    origins = []
    for path, value in f.items("allowOrigins"):
        found = read_text_match(value, path, f.report, present=False)
        if found is not None and found.kind != "present":
            origins.append(found)
        elif found is not None:
            f.report.bad(path, "an empty prefix: write exact: '*' for every origin")
    origins += [TextMatch("exact", text) for text in f.texts("allowOrigin") if text]
    lists = {
        name: tuple(t for t in f.texts(name) if t and fits_header(t))
        for name in ("allowMethods", "allowHeaders", "exposeHeaders")
    }
    age = f.duration("maxAge", zero=True)
    credentials = f.boolean("allowCredentials")
    forward = f.choice("unmatchedPreflights", "UNSPECIFIED", "FORWARD", "IGNORE")
    f.done()
    return Cors(
        origins=tuple(origins),
        methods=lists["allowMethods"],
        request_headers=lists["allowHeaders"],
        expose_headers=lists["exposeHeaders"],
        max_age=None if age is None else int(age),
        credentials=credentials or False,
        forward_unmatched=forward != "IGNORE",
    )
