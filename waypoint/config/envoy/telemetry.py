"""Istio's metrics counted in Envoy itself (access_loggers.stats), and access logs.

A series of Envoy has the logger's prefix in its name, which the waypoint's metrics page takes off.
"""

from __future__ import annotations

from typing import Any, Final

from waypoint.config.access_logs import Comparison
from waypoint.config.envoy.names import TUNNEL
from waypoint.config.envoy.tunnels import extension, text
from waypoint.config.model import Waypoint

Proto = dict[str, Any]

PREFIX: Final = "ambit"  # the scope of the statistics


def _state(key: str) -> str:
    return f"%FILTER_STATE(wp.{key}:PLAIN)%"


def _upstream(key: str) -> str:
    return f"%UPSTREAM_METADATA({TUNNEL}:{key})%"


def _labels(waypoint: Waypoint, service: tuple[str, str], protocol: str) -> dict[str, str]:
    """Istio's standard labels. Without an upstream, the service called still is known."""
    host, namespace = service
    return {
        "reporter": "waypoint",
        "source_workload": _state("src_workload"),
        "source_workload_namespace": _state("src_namespace"),
        "source_principal": _state("peer"),
        "source_app": _state("src_canonical_service"),
        "source_version": _state("src_canonical_revision"),
        "source_canonical_service": _state("src_canonical_service"),
        "source_canonical_revision": _state("src_canonical_revision"),
        "source_cluster": _state("src_cluster"),
        "destination_workload": _upstream("workload"),
        "destination_workload_namespace": _upstream("namespace"),
        "destination_principal": _upstream("san"),
        "destination_app": _upstream("canonical_service"),
        "destination_version": _upstream("canonical_revision"),
        "destination_canonical_service": _upstream("canonical_service"),
        "destination_canonical_revision": _upstream("canonical_revision"),
        "destination_cluster": _upstream("cluster"),
        "destination_service": host or "unknown",
        "destination_service_name": host.partition(".")[0] or "unknown",
        "destination_service_namespace": namespace or "unknown",
        "request_protocol": protocol,
        "response_flags": "%RESPONSE_FLAGS%",
        "connection_security_policy": "mutual_tls",
    }


def _stat(name: str, labels: dict[str, str]) -> Proto:
    return {"name": name, "tags": [{"name": k, "value_format": v} for k, v in labels.items()]}


def _logger(counters: list[Proto], histograms: list[Proto], only: str = "") -> Proto:
    out = extension(
        "envoy.access_loggers.stats",
        "access_loggers.stats.v3.Config",
        stat_prefix=PREFIX,
        counters=counters,
        histograms=histograms,
    )
    if only:
        out["filter"] = {"log_type_filter": {"types": [only]}}
    return out


def _one(name: str, labels: dict[str, str]) -> Proto:
    return {"stat": _stat(name, labels), "value_fixed": "1"}


def _value(name: str, labels: dict[str, str], source: str, **more: Any) -> Proto:
    return {"stat": _stat(name, labels), "value_format": source, **more}


def http_access_log(waypoint: Waypoint, service: tuple[str, str]) -> list[Proto]:
    """Loggers of an HTTP chain; `service`: (hostname, namespace) that was called."""
    labels = _labels(waypoint, service, "http") | {
        "response_code": "%RESPONSE_CODE%",
        "grpc_response_status": "%GRPC_STATUS_NUMBER%",
    }
    stats = _logger(
        [_one("istio_requests_total", labels)],
        [
            _value(
                "istio_request_duration_milliseconds", labels, "%DURATION%", unit="Milliseconds"
            ),
            _value("istio_request_bytes", labels, "%BYTES_RECEIVED%", unit="Bytes"),
            _value("istio_response_bytes", labels, "%BYTES_SENT%", unit="Bytes"),
        ],
    )
    return [stats, *_written(waypoint, service, _HTTP)]


def tcp_access_log(waypoint: Waypoint, service: tuple[str, str]) -> list[Proto]:
    """Loggers of a chain without HTTP."""
    labels = _labels(waypoint, service, "tcp")
    opened = [_one("istio_tcp_connections_opened_total", labels)]
    closed = [
        _one("istio_tcp_connections_closed_total", labels),
        _value("istio_tcp_received_bytes_total", labels, "%BYTES_RECEIVED%"),
        _value("istio_tcp_sent_bytes_total", labels, "%BYTES_SENT%"),
    ]
    return [
        _logger(opened, [], "TcpUpstreamConnected"),
        _logger(closed, [], "TcpConnectionEnd"),
        *_written(waypoint, service, _TCP, "TcpConnectionEnd"),
    ]


_TCP: Final = {
    "start_time": "%START_TIME%",
    "protocol": "%PROTOCOL%",
    "source_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "source_principal": _state("peer"),
    "source_workload": _state("src_workload"),
    "source_namespace": _state("src_namespace"),
    "destination_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "upstream_cluster": "%UPSTREAM_CLUSTER%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_workload": _upstream("workload"),
    "upstream_principal": _upstream("san"),
    "response_flags": "%RESPONSE_FLAGS%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration_ms": "%DURATION%",
    "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}
_HTTP: Final = {
    "start_time": "%START_TIME%",
    "method": "%REQ(:METHOD)%",
    "authority": "%REQ(:AUTHORITY)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "response_code": "%RESPONSE_CODE%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "route": "%ROUTE_NAME%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "user_agent": "%REQ(USER-AGENT)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    **{k: v for k, v in _TCP.items() if k != "start_time"},
}


def _written(
    waypoint: Waypoint, service: tuple[str, str], fields: dict[str, str], only: str = ""
) -> list[Proto]:
    """The access logs proper, to standard output. `only`: the moment of a TCP connection.

    What has no status code passes no filter.
    """
    all_fields = {**fields, "service": service[0] or "-"}
    out = []
    for log in waypoint.access_logs:
        if only and log.filter:
            continue
        form: Proto = {"json_format": all_fields} if log.json else text(_line(all_fields))
        logger = extension(
            "envoy.access_loggers.stdout",
            "access_loggers.stream.v3.StdoutAccessLog",
            log_format=form,
        )
        if only:
            logger["filter"] = {"log_type_filter": {"types": [only]}}
        elif log.filter:
            logger["filter"] = _any([_all([_compared(c) for c in part]) for part in log.filter])
        out.append(logger)
    return out


def _any(filters: list[Proto]) -> Proto:
    return filters[0] if len(filters) == 1 else {"or_filter": {"filters": filters}}


def _all(filters: list[Proto]) -> Proto:
    return filters[0] if len(filters) == 1 else {"and_filter": {"filters": filters}}


def _compared(comparison: Comparison) -> Proto:
    """Build an envoy.config.accesslog.v3.AccessLogFilter."""
    name, more = _OPS[comparison[0]]
    value = {"default_value": comparison[1] + more, "runtime_key": "ambit.access_log"}  # never set
    return {"status_code_filter": {"comparison": {"op": name, "value": value}}}


# Envoy compares by EQ, NE, GE and LE only: the others by the next whole number.
_OPS: Final = {
    "==": ("EQ", 0),
    "!=": ("NE", 0),
    ">=": ("GE", 0),
    "<=": ("LE", 0),
    ">": ("GE", 1),
    "<": ("LE", -1),
}
# What a caller or a peer writes may hold spaces and quotes, which Envoy writes as they are: such
# values come last, so that whatever they imitate, the first field of a name is the true one.
_FREE: Final = ("authority", "path", "user_agent", "request_id", "failure")


def _line(fields: dict[str, str]) -> str:
    sure = [f"{name}={value}" for name, value in fields.items() if name not in _FREE]
    free = [f'{name}="{fields[name]}"' for name in _FREE if name in fields]
    return " ".join([*sure, *free]) + "\n"
