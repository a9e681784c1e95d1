"""What one waypoint serves: the input of the translation into Envoy's configuration.

Everything is frozen and compared by value: what did not change is not translated again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mesh.model import Locality, Service, SpiffeId
from waypoint.config.access_logs import AccessLog
from waypoint.config.routing import BackendRef, Routes
from waypoint.config.security import OPEN, Security
from waypoint.config.traffic import DEFAULT, ServiceTraffic, TrafficPolicy

NOWHERE: Final = Locality()


@dataclass(frozen=True, slots=True)
class Waypoint:
    """One Gateway of a waypoint class."""

    namespace: str
    name: str
    identity: SpiffeId
    cluster_id: str = "Kubernetes"
    cluster_domain: str = "cluster.local"
    services: bool = True  # istio.io/waypoint-for: service or all
    workloads: bool = False  # workload or all
    access_logs: tuple[AccessLog, ...] = ()

    @property
    def key(self) -> str:
        """namespace/name."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place of a service's port. `identity` "" is an endpoint outside the mesh: plain TCP."""

    address: str
    port: int
    identity: str = ""  # SPIFFE URI; reached by HBONE on 15008
    healthy: bool = True
    locality: Locality = NOWHERE
    weight: int = 1
    node: str = ""
    labels: tuple[
        tuple[str, str], ...
    ] = ()  # of its pod; () if no subset and no failover needs them
    workload: str = ""  # the rest is for metrics and logs
    namespace: str = ""
    canonical_service: str = ""
    canonical_revision: str = ""
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class Backend:
    """A service that is sent to: one cluster per port, and per port and subset that is in use."""

    service: Service
    traffic: ServiceTraffic = DEFAULT
    # Per service port, sorted by address.
    endpoints: tuple[tuple[int, tuple[Endpoint, ...]], ...] = ()
    used: tuple[BackendRef, ...] = ()  # what routes refer to, besides the ports themselves


@dataclass(frozen=True, slots=True)
class Bound:
    """A service whose traffic passes the waypoint: it is listened for at its VIPs.

    Ports by number, with what is attached to each of them; a port without an entry has Routes().
    """

    service: Service
    routes: tuple[tuple[int, Routes], ...] = ()
    security: Security = OPEN
    traffic: ServiceTraffic = DEFAULT  # for hashing: what requests are told apart by
    hashes: tuple[tuple[BackendRef, TrafficPolicy], ...] = ()  # the same, of others it sends to

    def at(self, port: int) -> Routes:
        """The routes of a service port."""
        return dict(self.routes).get(port, Routes())


@dataclass(frozen=True, slots=True)
class BoundWorkload:
    """A pod whose traffic passes the waypoint when it is addressed by its own address."""

    uid: str
    addresses: tuple[str, ...]
    endpoint: Endpoint  # port 0: the one that was asked for
    ports: tuple[tuple[int, int], ...] = ()  # (port, istio.workload.AppProtocol) where declared
    security: Security = OPEN
