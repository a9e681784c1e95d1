"""Connections without HTTP: filter chains of tcp_proxy, chosen by rule, SNI and caller."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from mesh.model import Port
from waypoint.config.envoy.matches import PEER, from_namespaces
from waypoint.config.envoy.names import chain_name, cluster_name
from waypoint.config.envoy.telemetry import tcp_access_log
from waypoint.config.envoy.tunnels import extension
from waypoint.config.model import Bound, Waypoint
from waypoint.config.routing import BackendRef, TcpRule, WeightedBackend
from waypoint.config.security import Security, filters

Proto = dict[str, Any]

_NETWORK: Final = "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3"
# No cluster has this name: its share of connections is closed.
_INVALID: Final = "invalid-backend"


def proxy_chain(
    waypoint: Waypoint,
    name: str,
    security: Security,
    to: Proto,
    about: tuple[str, str],
) -> Proto:
    """Filter chain that passes bytes on; `to`: {"cluster": ..} or {"weighted_clusters": ..}."""
    waits: Proto = {}
    if filters.waits_for_data(security):
        waits = {"upstream_connect_mode": "ON_DOWNSTREAM_DATA", "max_early_data_bytes": 16384}
    proxy = extension(
        "envoy.filters.network.tcp_proxy",
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="inbound",
        idle_timeout="0s",  # as long as its ends want it
        access_log_options={"flush_access_log_on_connected": True},
        access_log=tcp_access_log(waypoint, about),
        **to,
        **waits,
    )
    return {"name": name, "filters": [*filters.network_filters(security), proxy]}


def tcp_chains(waypoint: Waypoint, bound: Bound, port: Port) -> tuple[list[Proto], Proto, bool]:
    """Chains of a port, the match that chooses between them, and whether SNI must be read."""
    service, number = bound.service, port.service_port
    rules = bound.at(number).tcp
    about = (service.hostname, service.namespace)
    base = chain_name(service.key, number, "tcp")
    if rules is None:
        own = {"cluster": cluster_name(BackendRef(service.key, number))}
        return [proxy_chain(waypoint, base, bound.security, own, about)], to_chain(base), False
    chains, matchers = [], []
    for i, rule in enumerate(rules):
        name = f"{base}|{i}"
        chains.append(proxy_chain(waypoint, name, bound.security, _shares(rule.backends), about))
        matchers.append((_predicate(rule), to_chain(name)))
    return chains, _first(matchers), any(rule.sni for rule in rules)


def to_chain(name: str) -> Proto:
    """The end of a matcher: take this chain."""
    value = {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": name}
    return {"action": {"name": name, "typed_config": value}}


def _shares(backends: Iterable[WeightedBackend]) -> Proto:
    shares = [
        {"name": _INVALID if b.ref is None else cluster_name(b.ref), "weight": b.weight}
        for b in backends
        if b.weight
    ]
    return {"weighted_clusters": {"clusters": shares}} if shares else {"cluster": _INVALID}


def _single(name: str, match: Proto, **fields: Any) -> Proto:
    source = {"name": name, "typed_config": {"@type": f"{_NETWORK}.{name}", **fields}}
    return {"single_predicate": {"input": source, "value_match": match}}


def _sni(host: str) -> Proto:
    if host.startswith("*."):
        return _single("ServerNameInput", {"suffix": host[1:], "ignore_case": True})
    return _single("ServerNameInput", {"exact": host, "ignore_case": True})


def _any_of(predicates: list[Proto]) -> Proto:
    return predicates[0] if len(predicates) == 1 else {"or_matcher": {"predicate": predicates}}


def _predicate(rule: TcpRule) -> Proto | None:
    """What a connection must have for the rule; None if nothing."""
    parts = []
    if rule.sni:
        parts.append(_any_of([_sni(host) for host in rule.sni]))
    if rule.source_namespaces:
        callers = from_namespaces(rule.source_namespaces)
        callers = {"safe_regex": {**callers["safe_regex"], "google_re2": {}}}
        parts.append(_single("FilterStateInput", callers, key=PEER))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else {"and_matcher": {"predicate": parts}}


def _first(matchers: list[tuple[Proto | None, Proto]]) -> Proto:
    """Take the first that matches; where none does there is no chain, and so no connection."""
    listed: list[Proto] = []
    last: Proto | None = None
    for predicate, on_match in matchers:
        if predicate is None:
            last = on_match
            break
        listed.append({"predicate": predicate, "on_match": on_match})
    if not listed and last is not None:
        return last
    out: Proto = {"matcher_list": {"matchers": listed}} if listed else {}
    if last is not None:
        out["on_no_match"] = last
    return {"matcher": out}
