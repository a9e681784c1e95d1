"""How resources are called. Those of clusters are Istio's, so that its tools can read them."""

from __future__ import annotations

from typing import Final

from waypoint.config.routing import BackendRef

CONNECT_TERMINATE: Final = "connect_terminate"  # listener: HBONE in
MAIN_INTERNAL: Final = "main_internal"  # listener and cluster: where the tunnel's content goes
CONNECT_ORIGINATE: Final = "connect_originate"  # listener and cluster: HBONE out
CORS_ECHO: Final = "ambit.cors"  # HTTP filter: allow the headers that a preflight asks for
OWN_CERTIFICATE: Final = "default"  # SDS
ROOTS: Final = "ROOTCA"  # SDS
TUNNEL: Final = "wp.tunnel"  # metadata namespace of endpoints
ORIGINAL_DST: Final = "envoy.filters.listener.original_dst"


def hostname(service: str) -> str:
    """Host of a service key, "namespace/hostname"."""
    return service.partition("/")[2]


def cluster_name(ref: BackendRef) -> str:
    """Cluster of a service's port and subset."""
    return f"outbound|{ref.port}|{ref.subset}|{hostname(ref.service)}"


def route_name(service: str, port: int) -> str:
    """Route configuration of a bound service's port."""
    return f"inbound-vip|{port}|http|{hostname(service)}"


def chain_name(service: str, port: int, kind: str) -> str:
    """Filter chain of a bound service's port; `kind` is "http" or "tcp"."""
    return f"inbound-vip|{port}|{hostname(service)}|{kind}"


def workload_name(uid: str, kind: str) -> str:
    """Filter chain, cluster and routes of a bound workload; `kind` is "http", "tcp" or ""."""
    return f"inbound-pod|{uid}|{kind}"
