"""main_internal: what comes out of the tunnels, told apart by where it was going.

One filter chain for each port of a bound service, and one or two for a bound pod; a port whose
protocol nobody declared is listened to for up to a second, and taken as TCP if it is no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mesh.model import Port
from waypoint.config.envoy.encode import Packed
from waypoint.config.envoy.names import (
    CORS_ECHO,
    MAIN_INTERNAL,
    ORIGINAL_DST,
    chain_name,
    route_name,
    workload_name,
)
from waypoint.config.envoy.pack import packed
from waypoint.config.envoy.tcp import proxy_chain, tcp_chains, to_chain
from waypoint.config.envoy.telemetry import http_access_log
from waypoint.config.envoy.tunnels import extension
from waypoint.config.model import Bound, BoundWorkload, Waypoint
from waypoint.config.security import Security, filters

Proto = dict[str, Any]

# istio.workload.AppProtocol
UNKNOWN: Final = 0
HTTP: Final = frozenset({1, 2, 3})  # HTTP11, HTTP2, GRPC
_SNIFF: Final = "1s"
_INPUTS: Final = "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3"
_HTTP_VERSIONS: Final = ("'http/1.1'", "'http/1.0'", "'h2c'")  # the quotes are part of the value
_CHAIN: Final = "envoy.config.listener.v3.FilterChain"
_RANGE: Final = "xds.type.matcher.v3.IPMatcher.IPRangeMatcher"
_HTTP_MESSAGE: Final = "filters.network.http_connection_manager.v3.HttpConnectionManager"


@dataclass(frozen=True, slots=True)
class Chains:
    """What one bound service or pod brings to the listener.

    `ports` says what becomes of each port (Matcher.OnMatch), `other` of all ports not named there;
    `sniffed` are those that must be listened to, `tls` those whose SNI is read.
    """

    addresses: tuple[str, ...]
    chains: tuple[Proto, ...]
    ports: Mapping[int, Proto]
    other: Proto | None = None
    sniffed: frozenset[int] = frozenset()
    tls: frozenset[int] = frozenset()
    http: frozenset[int] = frozenset()  # ports with a route configuration


@dataclass(frozen=True, slots=True)
class Piece:
    """The same, put together as far as it goes without the others, and perhaps encoded."""

    chains: tuple[Proto | Packed, ...] = ()  # envoy.config.listener.v3.FilterChain
    range: Proto | Packed | None = None  # xds.type.matcher.v3.IPMatcher.IPRangeMatcher
    named: frozenset[int] = frozenset()
    sniffed: frozenset[int] = frozenset()
    tls: frozenset[int] = frozenset()
    sniffs_others: bool = False


def piece_of(chains: Chains) -> Piece:
    """Put together what one service or pod brings."""
    if not chains.addresses:
        return Piece()
    matcher: Proto = {"matcher_tree": _by_port(chains.ports)} if chains.ports else {}
    if chains.other is not None:
        matcher["on_no_match"] = chains.other
    return Piece(
        chains.chains,
        {"ranges": _ranges(chains.addresses), "on_match": {"matcher": matcher}},
        frozenset(chains.ports),
        chains.sniffed,
        chains.tls,
        chains.other is not None,
    )


def pack_piece(chains: Chains) -> Piece:
    """The same, encoded: a listener of a thousand services is made anew in milliseconds."""
    loose = piece_of(chains)
    return replace(
        loose,
        chains=tuple(packed(_CHAIN, c) for c in chains.chains),
        range=packed(_RANGE, loose.range) if isinstance(loose.range, dict) else None,
    )


def sniffing(http: Proto, tcp: Proto) -> Proto:
    """Take one way for HTTP, the other for everything else."""
    return {
        "matcher": {
            "matcher_tree": {
                "input": {
                    "name": "protocol",
                    "typed_config": {"@type": f"{_INPUTS}.ApplicationProtocolInput"},
                },
                "exact_match_map": {"map": dict.fromkeys(_HTTP_VERSIONS, http)},
            },
            "on_no_match": tcp,
        }
    }


# Before cors, as answers pass filters the other way; routes that need it switch it on.
_SWITCHED_ECHO: Final[Proto] = {
    **extension(CORS_ECHO, "filters.http.header_mutation.v3.HeaderMutation"),
    "disabled": True,
}


def http_chain(
    waypoint: Waypoint,
    name: str,
    routes: str,
    security: Security,
    service: tuple[str, str],
) -> Proto:
    """Filter chain of HTTP, its routes by name over RDS. `service`: (hostname, namespace)."""
    manager = extension(
        "envoy.filters.network.http_connection_manager",
        _HTTP_MESSAGE,
        **filters.HCM,
        stat_prefix="inbound",
        rds={
            "route_config_name": routes,
            "config_source": {"resource_api_version": "V3", "ads": {}},
        },
        http_filters=[
            *filters.http_filters(security),
            _SWITCHED_ECHO,
            extension("envoy.filters.http.cors", "filters.http.cors.v3.Cors"),
            extension("envoy.filters.http.fault", "filters.http.fault.v3.HTTPFault"),
            {
                **extension(
                    "envoy.filters.http.stateful_session",
                    "filters.http.stateful_session.v3.StatefulSession",
                ),
                "disabled": True,  # routes with a session switch it on
            },
            extension("envoy.filters.http.router", "filters.http.router.v3.Router"),
        ],
        upgrade_configs=[{"upgrade_type": "websocket"}],
        stream_idle_timeout="0s",
        server_header_transformation="PASS_THROUGH",
        access_log=http_access_log(waypoint, service),
    )
    return {"name": name, "filters": [manager]}


def service_chains(waypoint: Waypoint, bound: Bound) -> Chains:
    """What a service needs; nothing if it has no VIP."""
    service = bound.service
    chains: list[Proto] = []
    ports: dict[int, Proto] = {}
    sniffed: set[int] = set()
    tls: set[int] = set()
    spoken: set[int] = set()
    if not service.vips:
        return Chains((), (), {})
    for port in service.ports:
        number = port.service_port
        http = None
        if _speaks_http(bound, port):
            name = chain_name(service.key, number, "http")
            routes = route_name(service.key, number)
            about = (service.hostname, service.namespace)
            chains.append(http_chain(waypoint, name, routes, bound.security, about))
            http = to_chain(name)
            spoken.add(number)
        if http is not None and _is_declared_http(bound, port):
            ports[number] = http
            continue
        made, match, reads_sni = tcp_chains(waypoint, bound, port)
        chains += made
        if reads_sni:
            tls.add(number)
        tcp = filters.admission(bound.security, match)
        if http is None:
            ports[number] = tcp
        else:
            sniffed.add(number)
            ports[number] = sniffing(http, tcp)
    return Chains(
        service.vips,
        tuple(chains),
        ports,
        sniffed=frozenset(sniffed),
        tls=frozenset(tls),
        http=frozenset(spoken),
    )


def _speaks_http(bound: Bound, port: Port) -> bool:
    routes = bound.at(port.service_port)
    return (
        port.app_protocol in HTTP
        or routes.http is not None
        or (port.app_protocol == UNKNOWN and routes.tcp is None)
    )


def _is_declared_http(bound: Bound, port: Port) -> bool:
    """Whether all is HTTP: it is declared, or only HTTP routes are attached to the port."""
    routes = bound.at(port.service_port)
    return port.app_protocol in HTTP or (routes.http is not None and routes.tcp is None)


def main_internal(pieces: Iterable[Chains | Piece]) -> Proto:
    """The listener that all of them make together."""
    ranges: list[Proto | Packed] = []
    chains: list[Proto | Packed] = []
    sniffed: set[int] = set()
    named: set[int] = set()
    tls: set[int] = set()
    sniffs_others = False
    for made in pieces:
        piece = piece_of(made) if isinstance(made, Chains) else made
        if piece.range is None:
            continue
        chains += piece.chains
        ranges.append(piece.range)
        sniffed |= piece.sniffed
        named |= piece.named
        tls |= piece.tls
        sniffs_others = sniffs_others or piece.sniffs_others
    listener: Proto = {
        "name": MAIN_INTERNAL,
        "internal_listener": {},
        "listener_filters": _listener_filters(named, sniffed, tls, sniffs_others),
        "listener_filters_timeout": _SNIFF,
        "continue_on_listener_filters_timeout": True,  # the server speaks first: TCP
    }
    if ranges:
        listener["filter_chains"] = chains
        listener["filter_chain_matcher"] = {"matcher_tree": _by_address(ranges)}
    else:  # Envoy takes no listener without a chain
        listener["filter_chains"] = [{"name": "nothing", "filters": [_NOTHING]}]
    return listener


# To a cluster that does not exist: closed at once.
_NOTHING: Final = extension(
    "envoy.filters.network.tcp_proxy",
    "filters.network.tcp_proxy.v3.TcpProxy",
    stat_prefix="nothing",
    cluster="nothing",
)


def _by_port(ports: Mapping[int, Proto]) -> Proto:
    return {
        "input": {
            "name": "port",
            "typed_config": {"@type": f"{_INPUTS}.DestinationPortInput"},
        },
        "exact_match_map": {"map": {str(number): found for number, found in ports.items()}},
    }


def _by_address(ranges: list[Proto | Packed]) -> Proto:
    matcher = {"@type": "type.googleapis.com/xds.type.matcher.v3.IPMatcher"}
    return {
        "input": {"name": "ip", "typed_config": {"@type": f"{_INPUTS}.DestinationIPInput"}},
        "custom_match": {"name": "ip", "typed_config": {**matcher, "range_matchers": ranges}},
    }


def _ranges(addresses: Iterable[str]) -> list[Proto]:
    return [{"address_prefix": a, "prefix_len": 128 if ":" in a else 32} for a in addresses]


def _listener_filters(
    named: set[int], sniffed: set[int], tls: set[int], sniffs_others: bool
) -> list[Proto]:
    found = [extension(ORIGINAL_DST, "filters.listener.original_dst.v3.OriginalDst")]
    inspector = "filters.listener.{0}_inspector.v3.{1}Inspector"
    if tls:
        one = extension("envoy.filters.listener.tls_inspector", inspector.format("tls", "Tls"))
        found.append({**one, **_only(tls)})
    if sniffed or sniffs_others:
        one = extension("envoy.filters.listener.http_inspector", inspector.format("http", "Http"))
        # Not where the protocol is known: data followed by an end at once would be lost there.
        known = named - sniffed
        found.append({**one, **(_not_on(known) if sniffs_others else _only(sniffed))})
    return found


def _any_of(ports: Iterable[int]) -> Proto:
    rules = [{"destination_port_range": {"start": p, "end": p + 1}} for p in sorted(ports)]
    return rules[0] if len(rules) == 1 else {"or_match": {"rules": rules}}


def _only(ports: Iterable[int]) -> Proto:
    return {"filter_disabled": {"not_match": _any_of(ports)}}


def _not_on(ports: Iterable[int]) -> Proto:
    known = set(ports)
    return {"filter_disabled": _any_of(known)} if known else {}


def pod_chains(waypoint: Waypoint, pod: BoundWorkload) -> Chains:
    """What a pod needs that is addressed by its own address: any of its ports."""
    http, tcp = (workload_name(pod.uid, kind) for kind in ("http", "tcp"))
    about = ("", pod.endpoint.namespace)
    routes = workload_name(pod.uid, "")
    chains = [
        http_chain(waypoint, http, routes, pod.security, about),
        pod_tcp_chain(waypoint, pod, tcp),
    ]
    to_tcp = filters.admission(pod.security, to_chain(tcp))
    ports = {
        number: to_chain(http) if protocol in HTTP else to_tcp for number, protocol in pod.ports
    }
    return Chains(pod.addresses, tuple(chains), ports, other=sniffing(to_chain(http), to_tcp))


def pod_tcp_chain(waypoint: Waypoint, pod: BoundWorkload, name: str) -> Proto:
    """The chain of a pod's connections without HTTP."""
    to = {"cluster": workload_name(pod.uid, "")}
    return proxy_chain(waypoint, name, pod.security, to, ("", pod.endpoint.namespace))
