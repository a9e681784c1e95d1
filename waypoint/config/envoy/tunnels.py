"""HBONE in and out: what is the same for everything a waypoint serves.

In: connect_terminate ends mutual TLS and CONNECT, and hands the bytes to main_internal with the
caller's identity as shared filter state. Out: connect_originate opens CONNECT to an endpoint's own
15008, which must present the identity that the endpoint's metadata names.
"""

from __future__ import annotations

from typing import Any, Final

from mesh.ports import INBOUND_HBONE
from waypoint.config.envoy.names import (
    CONNECT_ORIGINATE,
    CONNECT_TERMINATE,
    MAIN_INTERNAL,
    ORIGINAL_DST,
    OWN_CERTIFICATE,
    ROOTS,
    TUNNEL,
)
from waypoint.config.model import Waypoint

Proto = dict[str, Any]

_T: Final = "type.googleapis.com/envoy.extensions"
_STREAMS: Final = 200  # per connection, as ztunnel announces; a client opens another beyond
_H2: Final[Proto] = {
    "allow_connect": True,
    "max_concurrent_streams": _STREAMS,
    "initial_stream_window_size": 4 << 20,
    "initial_connection_window_size": 16 << 20,
    # As ztunnel: a peer that vanished is noticed within half a minute.
    "connection_keepalive": {"interval": "10s", "timeout": "20s"},
}
_SDS: Final[Proto] = {"resource_api_version": "V3", "ads": {}}
_TLS13: Final[Proto] = {
    "tls_minimum_protocol_version": "TLSv1_3",
    "tls_maximum_protocol_version": "TLSv1_3",
}
# filter state key: what names it in the baggage (mesh/wire/baggage.py)
_BAGGAGE: Final = (
    ("src_cluster", r"k8s\.cluster\.name"),
    ("src_namespace", r"k8s\.namespace\.name"),
    ("src_workload", r"k8s\.(?:deployment|cronjob|pod|job)\.name"),
    ("src_canonical_service", r"service\.name"),
    ("src_canonical_revision", r"service\.version"),
)


def extension(name: str, path: str, **fields: Any) -> Proto:
    """Name a typed extension; `path` is its message below envoy.extensions."""
    return {"name": name, "typed_config": {"@type": f"{_T}.{path}", **fields}}


_RAW: Final = {
    "name": "envoy.transport_sockets.raw_buffer",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
    },
}


def internal_upstream(*metadata: str, inner: Proto = _RAW) -> Proto:
    """Transport to an internal listener that carries endpoint metadata and filter state along.

    `inner` is what the bytes are put in before.
    """
    return extension(
        "envoy.transport_sockets.internal_upstream",
        "transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        passthrough_metadata=[{"kind": {"host": {}}, "name": name} for name in metadata],
        transport_socket=inner,
    )


def _tls(waypoint: Waypoint) -> Proto:
    """Both sides: own certificate, the mesh's roots, and only identities of the trust domain."""
    own = {"prefix": f"spiffe://{waypoint.identity.trust_domain}/"}
    return {
        "alpn_protocols": ["h2"],
        "tls_params": _TLS13,
        "tls_certificate_sds_secret_configs": [{"name": OWN_CERTIFICATE, "sds_config": _SDS}],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": own}]
            },
            "validation_context_sds_secret_config": {"name": ROOTS, "sds_config": _SDS},
        },
    }


def text(source: str) -> Proto:
    """A substitution format string."""
    return {"text_format_source": {"inline_string": source}}


def _state(key: str, source: str) -> Proto:
    """One value of filter state, shared with the next listener but not with the one after it.

    TRANSITIVE would lend the first caller's identity to whoever shares a pooled connection.
    """
    return {
        "object_key": key,
        "factory_key": "envoy.string",
        "format_string": {**text(source), "omit_empty_values": True},
        "shared_with_upstream": "ONCE",
        "skip_if_empty": True,
    }


def _restored(end: str, source: str, how: str) -> Proto:
    """An address that the next listener takes for the connection's own."""
    return {
        "object_key": f"{ORIGINAL_DST}.{end}_ip",
        "format_string": {**text(source), "omit_empty_values": True},
        "shared_with_upstream": how,
    }


def _baggage_rule(key: str, name: str) -> Proto:
    # The second alternative makes nothing of a baggage without the name: Envoy keeps the whole
    # text of what does not match.
    pattern = rf"^(?:.*,)?{name}=([^,;]*).*$|^.*$"
    return {
        "header": "baggage",
        "on_header_present": {
            "metadata_namespace": "wp",
            "key": key,
            "regex_value_rewrite": {"pattern": {"regex": pattern}, "substitution": r"\1"},
        },
    }


def _terminate_filters() -> list[Proto]:
    rules = [_baggage_rule(key, name) for key, name in _BAGGAGE]
    states = [
        # As far as connect_originate, for pods that are addressed by their own address; the
        # endpoints of services bring theirs, which goes before.
        _restored("local", "%REQ(:AUTHORITY)%", "TRANSITIVE"),
        _restored("remote", "%DOWNSTREAM_REMOTE_ADDRESS%", "ONCE"),
        _state("wp.peer", "%DOWNSTREAM_PEER_URI_SAN%"),
        _state("wp.authority", "%REQ(:AUTHORITY)%"),
        *(_state(f"wp.{key}", f"%DYNAMIC_METADATA(wp:{key})%") for key, _ in _BAGGAGE),
    ]
    return [
        extension(
            "envoy.filters.http.header_to_metadata",
            "filters.http.header_to_metadata.v3.Config",
            request_rules=rules,
        ),
        extension(
            "envoy.filters.http.set_filter_state",
            "filters.http.set_filter_state.v3.Config",
            on_request_headers=states,
        ),
        extension("envoy.filters.http.router", "filters.http.router.v3.Router"),
    ]


def _address(ip: str) -> Proto:
    return {"socket_address": {"address": ip, "port_value": INBOUND_HBONE}}


def connect_terminate(waypoint: Waypoint) -> Proto:
    """Listener on 15008: mutual TLS, then CONNECT to a VIP or pod address."""
    route = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": MAIN_INTERNAL,
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    manager = extension(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=CONNECT_TERMINATE,
        codec_type="HTTP2",
        use_remote_address=False,
        stream_idle_timeout="0s",
        http2_protocol_options=_H2,
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        http_filters=_terminate_filters(),
        route_config={"virtual_hosts": [{"name": "*", "domains": ["*"], "routes": [route]}]},
    )
    tls = extension(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=True,
        common_tls_context=_tls(waypoint),
    )
    return {
        "name": CONNECT_TERMINATE,
        "address": _address("0.0.0.0"),
        # The agent takes it out where the machine has no IPv6.
        "additional_addresses": [{"address": _address("::")}],
        "connection_balance_config": {"exact_balance": {}},  # HBONE connections are few and long
        "filter_chains": [{"filters": [manager], "transport_socket": tls}],
    }


def connect_originate(waypoint: Waypoint) -> Proto:
    """Internal listener whose connections become CONNECT streams to endpoints."""
    subject = {
        "object_key": "envoy.network.upstream_subject_alt_names",
        "format_string": {**text(f"%DYNAMIC_METADATA({TUNNEL}:san)%"), "omit_empty_values": True},
        "skip_if_empty": True,
    }
    baggage = ",".join(
        (
            f"k8s.cluster.name={waypoint.cluster_id}",
            f"k8s.namespace.name={waypoint.namespace}",
            f"k8s.deployment.name={waypoint.name}",
            f"service.name={waypoint.name}",
            "service.version=latest",
        )
    )
    proxy = extension(
        "envoy.filters.network.tcp_proxy",
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix=CONNECT_ORIGINATE,
        cluster=CONNECT_ORIGINATE,
        idle_timeout="0s",
        tunneling_config={
            "hostname": "%DOWNSTREAM_LOCAL_ADDRESS%",
            "headers_to_add": [{"header": {"key": "baggage", "value": baggage}}],
        },
        access_log=[_tunnel_failures()],
    )
    return {
        "name": CONNECT_ORIGINATE,
        "internal_listener": {},
        "listener_filters": [
            extension(ORIGINAL_DST, "filters.listener.original_dst.v3.OriginalDst")
        ],
        "filter_chains": [
            {
                "filters": [
                    extension(
                        "envoy.filters.network.set_filter_state",
                        "filters.network.set_filter_state.v3.Config",
                        on_new_connection=[subject],
                    ),
                    proxy,
                ]
            }
        ],
    }


def _tunnel_failures() -> Proto:
    """Why a tunnel could not be opened: requests see no more of it than a closed connection."""
    line = (
        "tunnel to %DOWNSTREAM_LOCAL_ADDRESS% failed: %RESPONSE_FLAGS%"
        " %UPSTREAM_TRANSPORT_FAILURE_REASON%\n"
    )
    logger = extension(
        "envoy.access_loggers.stdout",
        "access_loggers.stream.v3.StdoutAccessLog",
        log_format=text(line),
    )
    return {**logger, "filter": {"response_flag_filter": {"flags": ["UF"]}}}


def originate_cluster(waypoint: Waypoint) -> Proto:
    """HBONE connections to endpoints' own addresses, shared by all streams to one identity."""
    return {
        "name": CONNECT_ORIGINATE,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "cleanup_interval": "60s",
        "original_dst_lb_config": {"upstream_port_override": INBOUND_HBONE},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_T}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": _H2},
                "common_http_protocol_options": {"idle_timeout": "300s"},
            }
        },
        "transport_socket": extension(
            "envoy.transport_sockets.tls",
            "transport_sockets.tls.v3.UpstreamTlsContext",
            common_tls_context=_tls(waypoint),
        ),
    }


def internal_cluster() -> Proto:
    """From connect_terminate to main_internal, with the filter state."""
    endpoint = {"address": {"envoy_internal_address": {"server_listener_name": MAIN_INTERNAL}}}
    return {
        "name": MAIN_INTERNAL,
        "type": "STATIC",
        "transport_socket": internal_upstream(),
        # Without the limits that protect a network service: this is a function call.
        "circuit_breakers": {"thresholds": [_UNLIMITED]},
        "load_assignment": {
            "cluster_name": MAIN_INTERNAL,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
    }


_MOST: Final = 4_294_967_295
_UNLIMITED: Final[Proto] = {
    "max_connections": _MOST,
    "max_pending_requests": _MOST,
    "max_requests": _MOST,
    "max_retries": _MOST,
}
