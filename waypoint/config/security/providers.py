"""Extension providers of the mesh's configuration: the services that CUSTOM policies ask.

They are Istio's (MeshConfig.extensionProviders), and only the two kinds for authorization; others
(tracing, logs) are somebody else's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from mesh.findings import Findings, mapping, sequence, unknown_fields
from mesh.model import StringMatch
from mesh.policy_values import string_match
from waypoint.config.routing import BackendRef
from waypoint.config.security.model import Provider

_HTTP: Final = "envoyExtAuthzHttp"
_GRPC: Final = "envoyExtAuthzGrpc"
_COMMON: Final = (
    "service",
    "port",
    "timeout",
    "failOpen",
    "statusOnError",
    "includeRequestBodyInCheck",
    "clearRouteCache",
)
_HTTP_ONLY: Final = (
    "pathPrefix",
    "includeHeadersInCheck",  # the older name of the next
    "includeRequestHeadersInCheck",
    "includeAdditionalHeadersInCheck",
    "headersToUpstreamOnAllow",
    "headersToDownstreamOnAllow",
    "headersToDownstreamOnDeny",
)
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_BODY: Final = 1 << 30
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def _seconds(value: Any, path: str, findings: Findings, default: float) -> float:
    if value is None:
        return default
    pieces = re.findall(r"([0-9.]{1,12})(ms|s|m|h)", value) if isinstance(value, str) else []
    try:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in pieces)
    except ValueError:
        seconds = 0.0
    if not isinstance(value, str) or "".join(n + u for n, u in pieces) != value or seconds <= 0:
        findings.invalid.append(f"{path}: {value!r:.80}: must be a duration such as 500ms or 2s")
        return default
    return seconds


def _flag(raw: Mapping[str, Any], name: str, path: str, findings: Findings) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        findings.invalid.append(f"{path}.{name}: {value!r:.80}: must be true or false")
    return value is True


def _headers(raw: Any, path: str, findings: Findings) -> tuple[StringMatch, ...]:
    out = []
    for i, value in enumerate(sequence(raw, path, findings)):
        try:
            if not isinstance(value, str) or not value:
                raise ValueError("must be the name of a header, perhaps with '*' at an end")
            out.append(string_match(value.lower(), ""))
        except ValueError as e:
            findings.invalid.append(f"{path}[{i}]: {value!r:.80}: {e}")
    return tuple(out)


def _backend(raw: Mapping[str, Any], path: str, findings: Findings) -> BackendRef | None:
    """Read service ([namespace/]host) and port."""
    service, port = raw.get("service"), raw.get("port")
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        findings.invalid.append(f"{path}.port: {port!r:.80}: must be a port number, 1 to 65535")
    if not isinstance(service, str):
        findings.invalid.append(f"{path}.service: must be [namespace/]hostname")
        return None
    namespace, _, host = service.rpartition("/")
    if not namespace and ".svc." in host:
        namespace = host.split(".")[1]
    if not namespace or not _HOST.fullmatch(host) or not _HOST.fullmatch(namespace):
        findings.invalid.append(
            f"{path}.service: {service!r:.200}: must be namespace/hostname"
            " (without namespace only for NAME.NAMESPACE.svc.DOMAIN)"
        )
    return None if findings else BackendRef(f"{namespace}/{host}", int(port or 0))


def _status(raw: Any, path: str, findings: Findings) -> int:
    if raw is None or raw == "":
        return 403
    text = str(raw)
    if not text.isdigit() or not 200 <= int(text) <= 599:
        findings.invalid.append(f"{path}: {raw!r:.80}: must be an HTTP status code, 200 to 599")
        return 403
    return int(text)


def _body(raw: Any, path: str, findings: Findings) -> tuple[int, bool, bool]:
    value = mapping(raw, path, findings)
    known = ("maxRequestBytes", "allowPartialMessage", "packAsBytes")
    unknown_fields(value, known, path, findings)
    size = value.get("maxRequestBytes")
    if value and (not isinstance(size, int) or not 0 < size <= _MAX_BODY):
        findings.invalid.append(f"{path}.maxRequestBytes: {size!r:.80}: must be 1 to {_MAX_BODY}")
        size = None
    partial = _flag(value, "allowPartialMessage", path, findings)
    return int(size or 0), partial, _flag(value, "packAsBytes", path, findings)


def _provider(name: str, raw: Any, grpc: bool, path: str, findings: Findings) -> Provider | None:
    path = f"{path}.{_GRPC if grpc else _HTTP}"
    value = mapping(raw, path, findings)
    unknown_fields(value, _COMMON if grpc else (*_COMMON, *_HTTP_ONLY), path, findings)
    prefix = value.get("pathPrefix") or ""
    if not isinstance(prefix, str) or (prefix and not re.fullmatch(r"/[^?#\s]*", prefix)):
        findings.invalid.append(f"{path}.pathPrefix: {prefix!r:.80}: must be a path")
    sent = value.get("includeRequestHeadersInCheck", value.get("includeHeadersInCheck"))
    added = mapping(
        value.get("includeAdditionalHeadersInCheck"),
        f"{path}.includeAdditionalHeadersInCheck",
        findings,
    )
    timeout = _seconds(value.get("timeout"), f"{path}.timeout", findings, 10.0)
    status = _status(value.get("statusOnError"), f"{path}.statusOnError", findings)
    body = _body(
        value.get("includeRequestBodyInCheck"), f"{path}.includeRequestBodyInCheck", findings
    )
    fail_open = _flag(value, "failOpen", path, findings)
    clear = _flag(value, "clearRouteCache", path, findings)
    check = _headers(sent, f"{path}.includeRequestHeadersInCheck", findings)
    answers = [
        _headers(value.get(field), f"{path}.{field}", findings)
        for field in (
            "headersToUpstreamOnAllow",
            "headersToDownstreamOnDeny",
            "headersToDownstreamOnAllow",
        )
    ]
    backend = _backend(value, path, findings)
    if backend is None:
        return None
    return Provider(
        name=name,
        backend=backend,
        grpc=grpc,
        timeout=timeout,
        fail_open=fail_open,
        status_on_error=status,
        path_prefix=prefix,
        check_headers=check,
        added_headers=tuple((str(k).lower(), str(v)) for k, v in added.items()),
        upstream_headers=answers[0],
        downstream_headers=answers[1],
        downstream_headers_allowed=answers[2],
        body_bytes=body[0],
        body_partial=body[1],
        body_raw=body[2],
        clear_route_cache=clear,
    )


def read_providers(raw: Any) -> tuple[dict[str, Provider], list[str]]:
    """Read a list of extension providers, as in MeshConfig; returns them and what is wrong.

    One that is wrong is left out, and the policies that name it then refuse.
    """
    found = Findings()
    providers: dict[str, Provider] = {}
    names: set[str] = set()
    for i, entry in enumerate(sequence(raw, "extensionProviders", found)):
        path = f"extensionProviders[{i}]"
        own = Findings()
        value = mapping(entry, path, own)
        name = value.get("name")
        kinds = [kind for kind in (_HTTP, _GRPC) if value.get(kind) is not None]
        if not kinds and not own:
            continue
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            own.invalid.append(f"{path}.name: {name!r:.80}: must be letters, digits, '.', '_', '-'")
            name = ""
        if name in names:
            own.invalid.append(f"{path}.name: {name!r} is there twice: neither is used")
            providers.pop(name, None)
        names.add(name)
        if len(kinds) > 1:
            own.invalid.append(f"{path}: only one of {_HTTP} and {_GRPC} may be set")
        provider = None
        if kinds:
            provider = _provider(name, value[kinds[0]], kinds[0] == _GRPC, path, own)
        if provider is not None and not own:
            providers[name] = provider
        found.add(own)
    return providers, found.invalid
