"""Envoy's resources for a waypoint process under test."""

from __future__ import annotations

from typing import Any

_TYPE = "type.googleapis.com/envoy.extensions"


def cluster(name: str, connect_timeout: str = "1s") -> dict[str, Any]:
    """A cluster whose endpoints come by EDS."""
    return {
        "name": name,
        "type": "EDS",
        "connect_timeout": connect_timeout,
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
    }


def endpoints(name: str, port: int) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
    }


def routes(name: str, to: str, **header: str) -> dict[str, Any]:
    return {
        "name": name,
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": to}}],
            }
        ],
        "response_headers_to_add": [
            {"header": {"key": k.replace("_", "-"), "value": v}} for k, v in header.items()
        ],
    }


def listener(
    name: str, port: int, tls: bool = False, filters: Any = None, ipv6_too: bool = False
) -> dict[str, Any]:
    """An HTTP listener on the loopback, routes by RDS; with tls: with this pod's certificate."""
    secret = {"resource_api_version": "V3", "ads": {}}
    hcm = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "rds": {
            "route_config_name": name,
            "config_source": {"ads": {}, "resource_api_version": "V3"},
        },
        "http_filters": filters
        or [
            {
                "name": "router",
                "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
            }
        ],
    }
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": hcm}]}
    if tls:
        chain["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": f"{_TYPE}.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "tls_certificate_sds_secret_configs": [
                        {"name": "default", "sds_config": secret}
                    ],
                    "validation_context_sds_secret_config": {
                        "name": "ROOTCA",
                        "sds_config": secret,
                    },
                },
            },
        }
    here, *more = [
        {"socket_address": {"address": address, "port_value": port}}
        for address in ("127.0.0.1", "::1")[: 1 + ipv6_too]
    ]
    return {
        "name": name,
        "address": here,
        "additional_addresses": [{"address": address} for address in more],
        "filter_chains": [chain],
    }
