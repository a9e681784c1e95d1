"""Envoy's bootstrap and command line. Pure: values in, JSON out.

What the bootstrap alone can hold is here; everything else comes over ADS. Both of Envoy's gRPC
clusters lead to this process: it authenticates to the control plane, and it has the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from waypoint.agent.config import Config

Json = dict[str, Any]

# Of an LDS change and of policies that change a filter chain: how long the old chain may live.
DRAIN_SECONDS: Final = 10
# Envoy's own limit is 100 instructions: the regex of a longer path is refused. The value that
# waypoint.config.regex checks by (not imported: this process needs no RE2).
RE2_LIMIT: Final = 32768
_MAX_CONNECTIONS: Final = 50_000  # HBONE connections: a few for each client's node
_TYPES: Final = "type.googleapis.com/envoy"

# Istio's dashboards read these boundaries as they read any, in milliseconds and bytes.
_MILLISECONDS: Final = (
    0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000,
    300000, 600000, 1800000, 3600000,
)  # fmt: skip
_BYTES: Final = tuple(float(10**n) for n in range(1, 10))

# Each statistic costs memory for every cluster. Kept are those that say what goes wrong, and what
# `/agent` and the examples in docs/ name.
_KEPT: Final = (
    r"^(cluster_manager|listener_manager|server|listener|overload|runtime)\..*",
    r"^http\..*\.(downstream_(cx|rq)_(active|total)|downstream_cx_drain_close|rq_total"
    r"|downstream_rq_[1-5]xx|no_route|rbac\..*|jwt_authn\..*|ext_authz\..*|fault\..*"
    r"|rds\..*(update_rejected|update_success|version))$",
    r"^cluster\.(xds|sds)\..*",
    r"^cluster\..*\.(outlier_detection\..*|circuit_breakers\.default\..*_open"
    r"|upstream_(rq|cx)_(active|total|pending_overflow|overflow|timeout|retry|retry_success"
    r"|retry_overflow|connect_fail|[45]xx)|ssl\.(fail_.*|connection_error)"
    r"|membership_(healthy|total))$",
    r"^.*istio_.*",
)


def arguments(config: Config, document: str, level: str) -> list[str]:
    """Build Envoy's command line; `document`: the bootstrap, `level`: its log level."""
    line = "%Y-%m-%d %T,%e %l envoy.%n %v"
    if config.log_json:
        line = '{"level":"%l","time":"%Y-%m-%dT%T.%f%z","scope":"envoy.%n","message":"%j"}'
    return [
        str(config.envoy),
        *("--config-yaml", document),
        *("--concurrency", str(config.concurrency)),
        *("--drain-time-s", str(DRAIN_SECONDS), "--drain-strategy", "immediate"),
        *("--log-level", level, "--log-format", line),
        "--disable-hot-restart",
        "--skip-deprecated-logs",
        *("--file-flush-interval-msec", "1000"),  # access logs: somebody may be watching
    ]


def bootstrap(config: Config, metadata: Mapping[str, Any]) -> Json:
    """Build the bootstrap; `metadata`: more of node.metadata."""
    return {
        "node": {
            "id": config.node_id,
            "cluster": f"{config.gateway_name}.{config.pod_namespace}",
            "metadata": {
                **metadata,
                "NAME": config.pod_name,
                "NAMESPACE": config.pod_namespace,
                "GATEWAY_NAME": config.gateway_name,
                "SERVICE_ACCOUNT": config.service_account,
                "INSTANCE_IPS": config.instance_ip,
                "NODE_NAME": config.node_name,
                "CLUSTER_ID": config.cluster_id,
            },
        },
        "admin": {"address": {"pipe": {"path": str(config.admin_socket), "mode": 0o600}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {"clusters": [_agent(config, name) for name in ("xds", "sds")]},
        "bootstrap_extensions": [
            _typed(
                "envoy.bootstrap.internal_listener",
                "extensions.bootstrap.internal_listener.v3.InternalListener",
            )
        ],
        "layered_runtime": _runtime(),
        "overload_manager": _overload(config),
        "stats_config": _stats(config),
        "stats_flush_interval": "10s",
    }


def _typed(name: str, type_name: str, **fields: Any) -> Json:
    return {"name": name, "typed_config": {"@type": f"{_TYPES}.{type_name}", **fields}}


def _agent(config: Config, name: str) -> Json:
    """Describe the cluster that is this process."""
    address = {"pipe": {"path": str(config.xds_socket)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }


def _runtime() -> Json:
    limits = {
        "re2.max_program_size.error_level": RE2_LIMIT,
        "re2.max_program_size.warn_level": RE2_LIMIT,
    }
    # The last layer is what `POST /runtime_modify` of the admin pages writes.
    return {
        "layers": [
            {"name": "waypoint", "static_layer": limits},
            {"name": "admin", "admin_layer": {}},
        ]
    }


def _overload(config: Config) -> Json:
    monitors = [
        _typed(
            "envoy.resource_monitors.global_downstream_max_connections",
            "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
            max_active_downstream_connections=_MAX_CONNECTIONS,
        )
    ]
    actions = []
    if config.max_heap:
        heap = "envoy.resource_monitors.fixed_heap"
        monitors.append(
            _typed(
                heap,
                "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                max_heap_size_bytes=config.max_heap,
            )
        )
        for action, share in (
            ("envoy.overload_actions.shrink_heap", 0.9),
            ("envoy.overload_actions.stop_accepting_requests", 0.95),
            ("envoy.overload_actions.stop_accepting_connections", 0.98),
        ):
            trigger = {"name": heap, "threshold": {"value": share}}
            actions.append({"name": action, "triggers": [trigger]})
    return {"refresh_interval": "0.25s", "resource_monitors": monitors, "actions": actions}


def _stats(config: Config) -> Json:
    buckets = [
        {"match": {"contains": "_milliseconds"}, "buckets": list(_MILLISECONDS)},
        {"match": {"contains": "_bytes"}, "buckets": list(_BYTES)},
    ]
    made: Json = {"histogram_bucket_settings": buckets}
    if not config.all_stats:
        patterns = [{"safe_regex": {"regex": pattern}} for pattern in _KEPT]
        made["stats_matcher"] = {"inclusion_list": {"patterns": patterns}}
    return made


def envoy_level(python_level: int) -> str:
    """Translate a level of Python's logging into Envoy's word."""
    for least, word in ((50, "critical"), (40, "error"), (30, "warning"), (20, "info")):
        if python_level >= least:
            return "off" if python_level > 50 else word
    return "debug"
