"""TrafficPolicy to what a cluster and its routes make of it.

What is not written has no limit where Envoy's own default is one that nobody asked for (1024
connections, 3 retries at once): a waypoint is in the way of traffic that had none before.
"""

from __future__ import annotations

from typing import Any, Final

from waypoint.config.envoy.names import ORIGINAL_DST, TUNNEL
from waypoint.config.envoy.tunnels import extension, internal_upstream
from waypoint.config.traffic import BackendTls, ConsistentHash, Outliers, TrafficPolicy

Proto = dict[str, Any]

_UNLIMITED: Final = 2**32 - 1
_H2_ONLY: Final = frozenset({2, 3})  # istio.workload.AppProtocol: HTTP2, GRPC
_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CONNECT_TIMEOUT: Final = 10.0  # as ztunnel
# Debian's, as the image has it (deploy/images).
_SYSTEM_ROOTS: Final = "/etc/ssl/certs/ca-certificates.crt"


def _seconds(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"


def cluster_fields(policy: TrafficPolicy, protocol: int = 0) -> Proto:
    """Fields of envoy.config.cluster.v3.Cluster; `protocol` is istio.workload.AppProtocol."""
    pool = policy.pool
    timeout = _CONNECT_TIMEOUT if pool.connect_timeout is None else pool.connect_timeout
    out: Proto = {
        "connect_timeout": _seconds(timeout),
        "circuit_breakers": _limits(policy),
        "common_lb_config": _common(policy),
        "transport_socket": _transport(policy.tls),
        "typed_extension_protocol_options": {
            _OPTIONS: {"@type": f"type.googleapis.com/{_OPTIONS}", **_http(policy, protocol)}
        },
        **_balancing(policy),
    }
    if policy.outliers is not None:
        out["outlier_detection"] = _outliers(policy.outliers)
    if pool.tcp_keepalive is not None:  # endpoints in the mesh are behind a tunnel with its own
        names = ("keepalive_probes", "keepalive_time", "keepalive_interval")
        found = {n: int(v) for n, v in zip(names, pool.tcp_keepalive, strict=True) if v}
        out["upstream_connection_options"] = {"tcp_keepalive": found}
    return out


# ---- choosing endpoints ----------------------------------------------------------------------


def _balancing(policy: TrafficPolicy) -> Proto:
    if policy.hash is not None:
        return _hashing(policy.hash)
    if policy.balancing == "random":
        return {"lb_policy": "RANDOM"}
    slow: Proto = {}
    if policy.warmup is not None:
        slow = {"slow_start_config": {"slow_start_window": _seconds(policy.warmup)}}
    if policy.balancing == "round_robin":
        out: Proto = {"lb_policy": "ROUND_ROBIN"}
        return out | ({"round_robin_lb_config": slow} if slow else {})
    # passthrough, too: what was asked for is a VIP, which leads back here.
    out = {"lb_policy": "LEAST_REQUEST"}
    return out | ({"least_request_lb_config": slow} if slow else {})


def _hashing(by: ConsistentHash) -> Proto:
    if by.maglev:
        out: Proto = {"lb_policy": "MAGLEV"}
        return out | ({"maglev_lb_config": {"table_size": by.table_size}} if by.table_size else {})
    out = {"lb_policy": "RING_HASH"}
    size = by.minimum_ring_size
    if size is not None:
        # Envoy's largest is 8 Mi by default; a larger minimum would be refused.
        out["ring_hash_lb_config"] = {
            "minimum_ring_size": size,
            "maximum_ring_size": max(size, 8 << 20),
        }
    return out


def hash_policy(policy: TrafficPolicy) -> list[Proto]:
    """RouteAction.hash_policy: what requests are told apart by."""
    by = policy.hash
    if by is None:
        return []
    if by.header:
        return [{"header": {"header_name": by.header}}]
    if by.cookie:
        cookie: Proto = {"name": by.cookie}
        if by.cookie_path:
            cookie["path"] = by.cookie_path
        if by.cookie_ttl is not None:
            cookie["ttl"] = _seconds(by.cookie_ttl)
        return [{"cookie": cookie}]
    if by.query:
        return [{"query_parameter": {"name": by.query}}]
    return [{"connection_properties": {"source_ip": True}}] if by.source_ip else []


def _common(policy: TrafficPolicy) -> Proto:
    # Endpoints that are not ready are never sent to, however few others are left.
    least = policy.outliers.min_health_percent if policy.outliers is not None else None
    out: Proto = {"healthy_panic_threshold": {"value": least or 0}}
    if policy.locality is not None and policy.locality.enabled and policy.locality.distribute:
        out["locality_weighted_lb_config"] = {}
    return out


# ---- limits ----------------------------------------------------------------------------------


def _limits(policy: TrafficPolicy) -> Proto:
    pool = policy.pool
    values = {
        "max_connections": pool.max_connections,
        "max_pending_requests": pool.max_pending_requests,
        "max_requests": pool.max_requests,
        "max_retries": pool.max_retries,
    }
    limits: Proto = {k: _UNLIMITED if v is None else v for k, v in values.items()}
    if policy.budget is not None:
        limits["retry_budget"] = {
            "budget_percent": {"value": policy.budget.percent},
            "min_retry_concurrency": policy.budget.minimum,
        }
    return {"thresholds": [limits]}


def _outliers(o: Outliers) -> Proto:
    out: Proto = {
        "enforcing_success_rate": 0,  # nobody asked for statistics
        "enforcing_local_origin_success_rate": 0,
        # The tenth part of three endpoints is none: nothing would ever be ejected.
        "always_eject_one_host": True,
    }
    for name, count in (
        ("consecutive_5xx", o.consecutive_5xx),
        ("consecutive_gateway_failure", o.consecutive_gateway_errors),
        ("consecutive_local_origin_failure", o.consecutive_local_failures),
    ):
        if count is not None:  # 0 switches it off
            out |= {name: count, f"enforcing_{name}": 100} if count else {f"enforcing_{name}": 0}
    if o.split_local_errors:
        out["split_external_local_origin_errors"] = True
    if o.interval is not None:
        out["interval"] = _seconds(o.interval)
    if o.base_ejection is not None:
        out["base_ejection_time"] = _seconds(o.base_ejection)
        # Envoy refuses a longest ejection (5 minutes unless set) below the first.
        out["max_ejection_time"] = _seconds(max(300.0, o.base_ejection))
    if o.max_ejection_percent is not None:
        out["max_ejection_percent"] = o.max_ejection_percent
    return out


# ---- protocols -------------------------------------------------------------------------------


def _http(policy: TrafficPolicy, protocol: int) -> Proto:
    pool, tls = policy.pool, policy.tls
    common: Proto = {}
    if pool.idle_timeout is not None:
        common["idle_timeout"] = _seconds(pool.idle_timeout)
    if pool.max_connection_duration is not None:
        common["max_connection_duration"] = _seconds(pool.max_connection_duration)
    if pool.max_requests_per_connection:
        common["max_requests_per_connection"] = pool.max_requests_per_connection
    h2: Proto = {}
    if pool.max_concurrent_streams is not None:
        h2["max_concurrent_streams"] = pool.max_concurrent_streams
    both: Proto = {"http_protocol_options": {}, "http2_protocol_options": h2}
    upgraded = protocol in _H2_ONLY if pool.upgrade_to_h2 is None else pool.upgrade_to_h2
    if upgraded or protocol in _H2_ONLY:
        out: Proto = {"explicit_http_config": {"http2_protocol_options": h2}}
    elif tls is not None:  # what both ends agree on by ALPN
        out = {"auto_config": both}
    else:  # what the caller speaks
        out = {"use_downstream_protocol_config": both}
    if common:
        out["common_http_protocol_options"] = common
    if tls is not None and not tls.sni:
        names = {"auto_sni": True, "auto_san_validation": tls.verify and not tls.subject_names}
        out["upstream_http_protocol_options"] = names
    return out


def _transport(tls: BackendTls | None) -> Proto:
    """Bytes for the tunnel, TLS of the application's own inside it where it is asked for."""
    if tls is None:
        return internal_upstream(ORIGINAL_DST, TUNNEL)
    common: Proto = {}
    if tls.certificate:
        common["tls_certificates"] = [
            {
                "certificate_chain": {"inline_string": tls.certificate},
                "private_key": {"inline_string": tls.secret},
            }
        ]
    if tls.verify:
        common["validation_context"] = _validation(tls)
    context: Proto = {"common_tls_context": common}
    if tls.sni:
        context["sni"] = tls.sni
    inner = extension(
        "envoy.transport_sockets.tls", "transport_sockets.tls.v3.UpstreamTlsContext", **context
    )
    return internal_upstream(ORIGINAL_DST, TUNNEL, inner=inner)


def _validation(tls: BackendTls) -> Proto:
    """Trust only these authorities, and only these names; without any, that of the SNI."""
    roots = {"inline_string": tls.ca} if tls.ca else {"filename": _SYSTEM_ROOTS}
    out: Proto = {"trusted_ca": roots}
    names = tls.subject_names or ((tls.sni,) if tls.sni else ())
    if names:
        out["match_typed_subject_alt_names"] = [
            {"san_type": "URI" if "://" in name else "DNS", "matcher": {"exact": name}}
            for name in names
        ]
    return out
