"""Security to Envoy's filters, as dictionaries in proto-JSON form.

A request passes, in this order: tokens (jwt), then per provider of CUSTOM policies a pair of
filters (whether to ask, asking), AUDIT, DENY, ALLOW. What the rbac filters among them enforce
travels in the RouteConfiguration and counts from the next request on, on every connection. What
is in the filters themselves (keys, providers) changes the filter chain, and connections on the old
chain go on with it until they are drained. Nothing opens meanwhile: where a CUSTOM rule applies and
the chain has not got the filters of its provider, the DENY stage refuses.

A connection without HTTP has network filters in the same order, without tokens. These judge when
its first byte comes; `admission` says already in the listener who gets no chain at all.
"""

from __future__ import annotations

import re
from typing import Any, Final

from waypoint.config.regex import literal
from waypoint.config.routing import BackendRef
from waypoint.config.security.admission import admitting
from waypoint.config.security.ext_authz import (
    http_filter,
    judged,
    network_filter,
    shadow_prefix,
)
from waypoint.config.security.jwt import jwt_filter, written_headers
from waypoint.config.security.model import Policy, Provider, Security
from waypoint.config.security.rbac import PEER, engine_policies

Proto = dict[str, Any]

__all__ = [
    "HCM",
    "admission",
    "backends",
    "http_filters",
    "network_filters",
    "route_level",
    "waits_for_data",
]

# Settings of every HttpConnectionManager that has these filters. Addresses: X-Forwarded-For is
# believed from nobody. No caller is "internal" (to Envoy every private address is), or it could set
# retries and timeouts by x-envoy- headers; the id of its request is kept all the same. Paths are
# compared, routed and passed on in one normal form.
HCM: Final[Proto] = {
    "use_remote_address": True,
    "xff_num_trusted_hops": 0,
    "internal_address_config": {"cidr_ranges": [{"address_prefix": "0.0.0.0", "prefix_len": 32}]},
    "preserve_external_request_id": True,
    "normalize_path": True,
    "merge_slashes": True,
    "path_with_escaped_slashes_action": "KEEP_UNCHANGED",  # see ESCAPED_SLASH
}

AUDIT: Final = "ambit.audit"
DENY: Final = "ambit.deny"
ALLOW: Final = "ambit.allow"
# Refuses an escaped slash where a policy compares paths: whether "/public%2f..%2fadmin" is below
# /public depends on who reads it.
ESCAPED_SLASH: Final = "ambit/escaped-slash"
_DRY_DENY: Final = "istio_dry_run_deny_"  # Istio's names, for those who watch them
_DRY_ALLOW: Final = "istio_dry_run_allow_"

_TYPES: Final = "type.googleapis.com/envoy.extensions.filters"
_HTTP_RBAC: Final = f"{_TYPES}.http.rbac.v3.RBAC"
_PER_ROUTE: Final = f"{_TYPES}.http.rbac.v3.RBACPerRoute"
_TCP_RBAC: Final = f"{_TYPES}.network.rbac.v3.RBAC"


def _custom_name(provider: str) -> str:
    return f"ambit.custom.{provider}"


def _asking(s: Security, grpc_only: bool = False) -> list[tuple[Provider, list[Policy]]]:
    """Pair the providers that are to be asked with the policies that ask them."""
    found: dict[str, list[Policy]] = {}
    for policy in s.of("CUSTOM"):
        found.setdefault(policy.provider, []).append(policy)
    providers = [p for p in s.providers if p.name in found and (p.grpc or not grpc_only)]
    return [(p, found[p.name]) for p in sorted(providers, key=lambda p: p.name)]


def _unanswered(s: Security, asking: list[tuple[Provider, list[Policy]]]) -> list[Policy]:
    """Choose the CUSTOM policies that nobody can be asked about."""
    known = {provider.name for provider, _ in asking}
    return [p for p in s.of("CUSTOM") if p.provider not in known]


def _compares_paths(s: Security) -> bool:
    return any(
        check.attribute == "request.path"
        for policy in s.policies
        if policy.action != "AUDIT" and not policy.dry_run
        for rule in policy.rules
        for clause in rule.clauses
        for alternative in clause
        for check in alternative
    )


def _rules(action: str, policies: dict[str, Proto]) -> Proto:
    return {"action": action, "policies": policies}


# ---- requests --------------------------------------------------------------------------------


def _header_filter(s: Security) -> list[Proto]:
    """Take away what only tokens may say; tell providers who calls."""
    mutations: list[Proto] = [
        # Many applications take "_" for "-" in names of headers.
        {"remove_on_match": {"key_matcher": {"safe_regex": {"regex": _spellings(name)}}}}
        for name in written_headers(s.jwt)
    ]
    if _asking(s):
        header = {"key": "x-forwarded-client-cert", "value": f"URI=%FILTER_STATE({PEER}:PLAIN)%"}
        mutations.append(
            {"append": {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}
        )
    if not mutations:
        return []
    config = {
        "@type": f"{_TYPES}.http.header_mutation.v3.HeaderMutation",
        "mutations": {"request_mutations": mutations},
    }
    return [{"name": "ambit.headers", "typed_config": config}]


def _spellings(header: str) -> str:
    return "(?i)" + "[-_]".join(literal(part) for part in re.split("[-_]", header))


def _empty(name: str, prefix: str = "") -> Proto:
    config = {"@type": _HTTP_RBAC}
    if prefix:  # statistics are the filter's, not the route's
        config["shadow_rules_stat_prefix"] = prefix
    return {"name": name, "typed_config": config}


def http_filters(s: Security) -> list[Proto]:
    """Write the HTTP filters that come before all others; what they enforce is in route_level."""
    out = _header_filter(s)
    if s.jwt:
        out.append(jwt_filter(s.jwt))
    for provider, _ in _asking(s):
        out += [_empty(_custom_name(provider.name)), http_filter(provider)]
    if s.of("AUDIT"):
        out.append(_empty(AUDIT))
    return [*out, _empty(DENY, _DRY_DENY), _empty(ALLOW, _DRY_ALLOW)]


def _denied(s: Security) -> dict[str, Proto]:
    """Write what the DENY stage enforces."""
    asking = _asking(s)
    policies = engine_policies([*s.of("DENY"), *_unanswered(s, asking)])
    for provider, asked_for in asking:
        policies |= engine_policies(asked_for, unless={provider.name: judged(provider.name)})
    if _compares_paths(s):
        path = {"safe_regex": {"regex": r"(?i)[^?]*%(2f|5c).*"}}
        policies[ESCAPED_SLASH] = {
            "permissions": [{"header": {"name": ":path", "string_match": path}}],
            "principals": [{"any": True}],
        }
    return policies


def route_level(s: Security) -> dict[str, Proto]:
    """Write RouteConfiguration.typed_per_filter_config: what the rbac filters enforce."""
    stages: dict[str, Proto] = {}
    for provider, policies in _asking(s):
        stages[_custom_name(provider.name)] = {
            "shadow_rules": _rules("DENY", engine_policies(policies)),
            "shadow_rules_stat_prefix": shadow_prefix(provider.name),
        }
    if s.of("AUDIT"):
        stages[AUDIT] = {"rules": _rules("LOG", engine_policies(s.of("AUDIT")))}
    stages[DENY], stages[ALLOW] = _judging(s, _denied(s), tcp=False)
    return {name: {"@type": _PER_ROUTE, "rbac": stage} for name, stage in stages.items() if stage}


def _judging(s: Security, denied: dict[str, Proto], tcp: bool) -> tuple[Proto, Proto]:
    """Write the DENY and the ALLOW stage, with what would be if dry runs were enforced."""
    deny: Proto = {}
    allow: Proto = {}
    if denied:
        deny["rules"] = _rules("DENY", denied)
    if s.of("DENY", dry_run=True):
        deny["shadow_rules"] = _rules("DENY", engine_policies(s.of("DENY", dry_run=True), tcp))
        deny["shadow_rules_stat_prefix"] = _DRY_DENY
    if s.of("ALLOW"):
        allow["rules"] = _rules("ALLOW", engine_policies(s.of("ALLOW"), tcp))
    if s.of("ALLOW", dry_run=True):
        both = [*s.of("ALLOW"), *s.of("ALLOW", dry_run=True)]
        allow["shadow_rules"] = _rules("ALLOW", engine_policies(both, tcp))
        allow["shadow_rules_stat_prefix"] = _DRY_ALLOW
    return deny, allow


# ---- connections -----------------------------------------------------------------------------


def _network(name: str, config: Proto) -> Proto:
    return {"name": name, "typed_config": {"@type": _TCP_RBAC, "stat_prefix": name + ".", **config}}


def _denied_connections(s: Security) -> dict[str, Proto]:
    unanswered = _unanswered(s, _asking(s, grpc_only=True))
    return engine_policies([*s.of("DENY"), *unanswered], tcp=True)


def admission(s: Security, on_match: Proto) -> Proto:
    """Wrap the Matcher.OnMatch that leads to a chain without HTTP: who is refused gets no chain."""
    return admitting(s, _denied_connections(s), on_match)


def waits_for_data(s: Security) -> bool:
    """Say whether the application must not be connected to before the caller has spoken.

    Then tcp_proxy needs upstream_connect_mode ON_DOWNSTREAM_DATA: a provider is asked when the
    first byte comes. A server that speaks first cannot be served so.
    """
    return bool(_asking(s, grpc_only=True))


def network_filters(s: Security) -> list[Proto]:
    """Write the network filters of a chain that carries no HTTP; [] where nothing is enforced."""
    out = []
    asking = _asking(s, grpc_only=True)
    for provider, policies in asking:
        shadow = {
            "shadow_rules": _rules("DENY", engine_policies(policies, tcp=True)),
            "shadow_rules_stat_prefix": shadow_prefix(provider.name),
        }
        out += [_network(_custom_name(provider.name), shadow), network_filter(provider)]
    if s.of("AUDIT"):
        rules = _rules("LOG", engine_policies(s.of("AUDIT"), tcp=True))
        out.append(_network(AUDIT, {"rules": rules}))
    deny, allow = _judging(s, _denied_connections(s), tcp=True)
    if deny:
        out.append(_network(DENY, deny))
    if allow:
        out.append(_network(ALLOW, allow))
    return out


def backends(s: Security) -> tuple[BackendRef, ...]:
    """Name the services that the filters call; each needs its cluster at the waypoint."""
    return tuple(sorted({provider.backend for provider, _ in _asking(s)}))
