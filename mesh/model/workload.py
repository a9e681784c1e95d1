"""Workloads and services, as the node proxies know them.

Addresses are canonical text ("10.0.0.1", "fd00::1"); services are keyed "namespace/hostname".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

from mesh.model.identity import SpiffeId
from mesh.ports import DEFAULT_TRUST_DOMAIN


class Tunnel(IntEnum):
    """How a workload is reached (istio.workload.TunnelProtocol)."""

    NONE = 0
    HBONE = 1


class WorkloadType(IntEnum):
    """What owns the pod (istio.workload.WorkloadType)."""

    DEPLOYMENT = 0
    CRONJOB = 1
    POD = 2
    JOB = 3


@dataclass(frozen=True, slots=True)
class Locality:
    """Where a workload runs; empty strings are unknown."""

    region: str = ""
    zone: str = ""
    subzone: str = ""


@dataclass(frozen=True, slots=True)
class Port:
    """A service port and where it goes; app_protocol is istio.workload.AppProtocol."""

    service_port: int
    target_port: int
    app_protocol: int = 0


@dataclass(frozen=True, slots=True)
class Gateway:
    """A waypoint or network gateway: either an address or a namespaced hostname."""

    hbone_port: int
    network: str = ""
    address: str = ""
    namespace: str = ""
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class LoadBalancing:
    """istio.workload.LoadBalancing: scopes by number, mode and health policy by number."""

    routing_preference: tuple[int, ...] = ()
    mode: int = 0
    health_policy: int = 0


_NO_SERVICES: Mapping[str, tuple[Port, ...]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod (or other workload) and everything a peer must know to reach and trust it."""

    uid: str
    name: str
    namespace: str
    addresses: tuple[str, ...] = ()
    service_account: str = "default"
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    tunnel: Tunnel = Tunnel.NONE
    node: str = ""
    network: str = ""
    hostname: str = ""
    cluster_id: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    workload_name: str = ""
    workload_type: WorkloadType = WorkloadType.DEPLOYMENT
    healthy: bool = True
    native_tunnel: bool = False
    host_network: bool = False
    waypoint: Gateway | None = None
    network_gateway: Gateway | None = None
    services: Mapping[str, tuple[Port, ...]] = field(default_factory=lambda: _NO_SERVICES)
    authorization_policies: tuple[str, ...] = ()
    locality: Locality = Locality()
    capacity: int = 1
    application_tunnel_port: int = 0  # 0: none; else PROXY protocol on this port

    @property
    def identity(self) -> SpiffeId:
        """The SPIFFE ID its certificate must carry."""
        return SpiffeId(self.trust_domain, self.namespace, self.service_account)


@dataclass(frozen=True, slots=True)
class Service:
    """A service: its VIPs ("network/ip" keys use network ""), ports and routing hints."""

    name: str
    namespace: str
    hostname: str
    vips: tuple[str, ...] = ()
    cidrs: tuple[str, ...] = ()  # VIPs with a prefix length, "10.1.0.0/16"
    network: str = ""
    ports: tuple[Port, ...] = ()
    subject_alt_names: tuple[str, ...] = ()
    waypoint: Gateway | None = None
    load_balancing: LoadBalancing | None = None
    ip_families: int = 0
    canonical: bool = False

    @property
    def key(self) -> str:
        """The xDS resource name."""
        return f"{self.namespace}/{self.hostname}"
