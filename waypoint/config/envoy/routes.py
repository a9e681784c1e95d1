"""HttpRule values to route configurations: one for each port of a bound service.

What a request was sent to (VIP and port) has chosen the route configuration already, so that it has
one virtual host for every name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from mesh.model import Port
from waypoint.config.envoy.matches import redirect, rewrite, route_match, string_match
from waypoint.config.envoy.names import CORS_ECHO, cluster_name, route_name, workload_name
from waypoint.config.envoy.policies import hash_policy
from waypoint.config.envoy.retries import retry_policy, seconds, whole_timeout
from waypoint.config.model import Bound, BoundWorkload
from waypoint.config.routing import (
    BackendRef,
    Cors,
    Fault,
    HeaderChange,
    HttpRule,
    Mirror,
    RouteMatch,
    Session,
    WeightedBackend,
)
from waypoint.config.security import Security, filters
from waypoint.config.traffic import TrafficPolicy

Proto = dict[str, Any]

_T: Final = "type.googleapis.com/envoy.extensions"
# No cluster has this name, so Envoy answers with the code that the route names for that case.
INVALID: Final = "invalid-backend"
_MILLION: Final = 1_000_000
_PLAIN: Final = TrafficPolicy()


def route_configuration(bound: Bound, port: Port) -> Proto:
    """RouteConfiguration of a port that carries HTTP, also where it is only found out there."""
    number = port.service_port
    rules = bound.at(number).http
    if rules is None:
        own = BackendRef(bound.service.key, number)
        routes = [_plain(cluster_name(own), _hashed(bound, own))]
    else:
        routes = [_route(rule, bound, number) for rule in rules]
    return _configuration(route_name(bound.service.key, number), routes, bound.security)


def pod_route_configuration(pod: BoundWorkload) -> Proto:
    """RouteConfiguration of a pod that is addressed by its own address."""
    name = workload_name(pod.uid, "")
    return _configuration(name, [_plain(name, [])], pod.security)


def _configuration(name: str, routes: list[Proto], security: Security) -> Proto:
    host = {
        "name": "*",
        "domains": ["*"],
        "routes": routes,
        "include_request_attempt_count": True,
    }
    out: Proto = {"name": name, "virtual_hosts": [host]}
    per_filter = filters.route_level(security)
    if per_filter:
        out["typed_per_filter_config"] = per_filter
    return out


def _hashed(bound: Bound, *refs: BackendRef | None) -> list[Proto]:
    """What requests are told apart by, for the backends that balance by it."""
    found: list[Proto] = []
    for ref in refs:
        if ref is None:
            continue
        if ref.service == bound.service.key:
            policy = bound.traffic.of(ref)
        else:
            policy = dict(bound.hashes).get(ref, _PLAIN)
        found += [one for one in hash_policy(policy) if one not in found]
    return found


def _plain(cluster: str, hashed: list[Proto]) -> Proto:
    action: Proto = {"cluster": cluster, "timeout": "0s", "retry_policy": retry_policy(None, None)}
    if hashed:
        action["hash_policy"] = hashed
    return {"name": "default", "match": {"prefix": "/"}, "route": action}


def _route(rule: HttpRule, bound: Bound, port: int) -> Proto:
    out: Proto = {"name": rule.name, "match": route_match(rule.match)}
    out |= _headers(rule.request_headers, rule.response_headers)
    per_filter = _per_filter(rule)
    if per_filter:
        out["typed_per_filter_config"] = per_filter
    if rule.redirect is not None:
        out["redirect"] = redirect(rule.match, rule.redirect, port)
    elif rule.response is not None:
        out["direct_response"] = _answer(rule.response.code, rule.response.body)
    elif not any(b.weight for b in rule.backends):
        # Gateway API: no backend that could take it
        out["direct_response"] = _answer(503 if rule.match.grpc else 500, "")
    else:
        hashed = _hashed(bound, *(b.ref for b in rule.backends if b.weight))
        out["route"] = _action(rule, hashed)
    return out


def _answer(code: int, body: str) -> Proto:
    return {"status": code, **({"body": {"inline_string": body}} if body else {})}


def _action(rule: HttpRule, hashed: list[Proto]) -> Proto:
    action: Proto = {
        "timeout": seconds(whole_timeout(rule.timeout, rule.backend_timeout, rule.retry)),
        "cluster_not_found_response_code": (
            "SERVICE_UNAVAILABLE" if rule.match.grpc else "INTERNAL_SERVER_ERROR"
        ),
    }
    action |= rewrite(rule.match, rule.rewrite)
    host = _host(rule.request_headers)
    if host and "host_rewrite_literal" not in action:
        action["host_rewrite_literal"] = host
    if rule.mirrors:
        action["request_mirror_policies"] = [_mirror(m) for m in rule.mirrors]
    policy = retry_policy(rule.retry, rule.backend_timeout)
    if policy:
        action["retry_policy"] = policy
    if hashed:
        action["hash_policy"] = hashed
    used = [b for b in rule.backends if b.weight]
    if len(used) == 1 and _is_bare(used[0]):
        action["cluster"] = _cluster(used[0].ref)
    else:
        action["weighted_clusters"] = {"clusters": [_share(rule.match, b) for b in used]}
    return action


def _is_bare(backend: WeightedBackend) -> bool:
    none = HeaderChange()
    return backend.request == none and backend.response == none and backend.rewrite is None


def _cluster(ref: BackendRef | None) -> str:
    return INVALID if ref is None else cluster_name(ref)


def _share(match: RouteMatch, backend: WeightedBackend) -> Proto:
    out: Proto = {"name": _cluster(backend.ref), "weight": backend.weight}
    out |= _headers(backend.request, backend.response)
    host = backend.rewrite.host if backend.rewrite else _host(backend.request)
    if host:
        out["host_rewrite_literal"] = host
    return out


# ---- headers ---------------------------------------------------------------------------------

_HOST: Final = ("host", ":authority")


def _host(change: HeaderChange) -> str:
    """The Host header is no header for Envoy: it is rewritten."""
    return next((value for name, value in change.set if name in _HOST), "")


def _options(pairs: Iterable[tuple[str, str]], action: str) -> list[Proto]:
    # "%" begins a command in Envoy; in a route's object it is only a character.
    return [
        {"header": {"key": name, "value": value.replace("%", "%%")}, "append_action": action}
        for name, value in pairs
        if name not in _HOST
    ]


def _headers(request: HeaderChange, response: HeaderChange) -> Proto:
    out: Proto = {}
    for side, change in (("request", request), ("response", response)):
        more = _options(change.set, "OVERWRITE_IF_EXISTS_OR_ADD")
        more += _options(change.add, "APPEND_IF_EXISTS_OR_ADD")
        if more:
            out[f"{side}_headers_to_add"] = more
        if change.remove:
            out[f"{side}_headers_to_remove"] = list(change.remove)
    return out


# ---- what else a rule does -------------------------------------------------------------------


def _fraction(percent: float) -> Proto:
    numerator = min(_MILLION, max(0, round(percent * _MILLION / 100)))
    return {"numerator": numerator, "denominator": "MILLION"}


def _mirror(mirror: Mirror) -> Proto:
    return {
        "cluster": cluster_name(mirror.ref),
        "runtime_fraction": {"default_value": _fraction(mirror.percent)},
        "disable_shadow_host_suffix_append": True,
    }


def _per_filter(rule: HttpRule) -> Proto:
    out: Proto = {}
    if rule.cors is not None:
        out["envoy.filters.http.cors"] = _cors(rule.cors)
        if rule.cors.echo_headers:
            out[CORS_ECHO] = _ECHO
    if rule.fault is not None:
        out["envoy.filters.http.fault"] = _fault(rule.fault)
    if rule.session is not None:
        out["envoy.filters.http.stateful_session"] = _session(rule.session)
    return out


_ECHO: Final[Proto] = {
    "@type": f"{_T}.filters.http.header_mutation.v3.HeaderMutationPerRoute",
    "mutations": {
        "response_mutations": [
            {
                "append": {
                    "header": {
                        "key": "access-control-allow-headers",
                        "value": "%REQ(access-control-request-headers)%",
                    },
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }
            }
        ]
    },
}


def _cors(cors: Cors) -> Proto:
    out: Proto = {
        "@type": f"{_T}.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [string_match(origin) for origin in cors.origins],
        "allow_methods": ",".join(cors.methods),
        "allow_headers": ",".join(cors.request_headers),
        "expose_headers": ",".join(cors.expose_headers),
        "allow_credentials": cors.credentials,
        "forward_not_matching_preflights": cors.forward_unmatched,
    }
    if cors.max_age is not None:
        out["max_age"] = str(cors.max_age)
    return out


def _fault(fault: Fault) -> Proto:
    out: Proto = {"@type": f"{_T}.filters.http.fault.v3.HTTPFault"}
    if fault.delay and fault.delay_percent:
        out["delay"] = {
            "fixed_delay": seconds(fault.delay),
            "percentage": _fraction(fault.delay_percent),
        }
    if fault.abort_percent:
        abort: Proto = {"percentage": _fraction(fault.abort_percent)}
        if fault.abort_grpc is not None:
            abort["grpc_status"] = fault.abort_grpc
        else:
            abort["http_status"] = fault.abort_code
        out["abort"] = abort
    return out


def _session(session: Session) -> Proto:
    kind = "http.stateful_session"
    if session.kind == "header":
        state: Proto = {
            "@type": f"{_T}.{kind}.header.v3.HeaderBasedSessionState",
            "name": session.name,
        }
    else:
        cookie: Proto = {"name": session.name, "path": session.path}
        if session.permanent and session.absolute_timeout:
            cookie["ttl"] = seconds(session.absolute_timeout)
        state = {"@type": f"{_T}.{kind}.cookie.v3.CookieBasedSessionState", "cookie": cookie}
    return {
        "@type": f"{_T}.filters.http.stateful_session.v3.StatefulSessionPerRoute",
        "stateful_session": {
            "session_state": {"name": f"envoy.{kind}.{session.kind}", "typed_config": state}
        },
    }
