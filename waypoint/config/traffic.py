"""How a waypoint talks to the endpoints of a service: DestinationRule and its likes.

Durations are seconds. None is Envoy's own default (or the mesh's, where docs say so).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from mesh.manifest import Key
from waypoint.config.routing import BackendRef

Balancing = Literal["least_request", "round_robin", "random", "passthrough"]


@dataclass(frozen=True, slots=True)
class ConsistentHash:
    """What requests are told apart by; the first that is set counts."""

    header: str = ""
    cookie: str = ""
    cookie_path: str = ""
    cookie_ttl: float | None = None
    query: str = ""
    source_ip: bool = False
    maglev: bool = False
    minimum_ring_size: int | None = None
    table_size: int | None = None  # maglev


@dataclass(frozen=True, slots=True)
class LocalityBalancing:
    """Where requests go by place; `distribute` and `failover` exclude each other."""

    enabled: bool = True
    # ((from, ((to, weight), ...)), ...) places as "region/zone/subzone", "*" allowed at the end
    distribute: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = ()
    failover: tuple[tuple[str, str], ...] = ()  # (from region, to region)
    failover_priority: tuple[str, ...] = ()  # labels, or "label=value"


@dataclass(frozen=True, slots=True)
class Pool:
    """Limits of connections and requests; what is beyond is answered 503 (overflow)."""

    max_connections: int | None = None
    connect_timeout: float | None = None
    tcp_keepalive: tuple[int | None, float | None, float | None] | None = None  # probes, time, each
    idle_timeout: float | None = None
    max_connection_duration: float | None = None
    max_pending_requests: int | None = None
    max_requests: int | None = None
    max_requests_per_connection: int | None = None
    max_retries: int | None = None
    upgrade_to_h2: bool | None = None  # h2UpgradePolicy
    max_concurrent_streams: int | None = None


@dataclass(frozen=True, slots=True)
class Outliers:
    """When an endpoint is left out for a while."""

    consecutive_5xx: int | None = None
    consecutive_gateway_errors: int | None = None
    consecutive_local_failures: int | None = None
    split_local_errors: bool = False
    interval: float | None = None
    base_ejection: float | None = None
    max_ejection_percent: int | None = None
    min_health_percent: int | None = None


@dataclass(frozen=True, slots=True)
class BackendTls:
    """TLS from the waypoint to the application itself. Certificates are PEM, never paths."""

    mode: Literal["simple", "mutual"]
    sni: str = ""
    subject_names: tuple[str, ...] = ()
    ca: str = ""  # PEM; "" is the system's roots
    certificate: str = ""
    secret: str = field(default="", repr=False)  # private key, PEM
    verify: bool = True


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """Retries as a share of active requests (percent), at least `minimum` at once."""

    percent: float = 20.0
    minimum: int = 10


@dataclass(frozen=True, slots=True)
class TrafficPolicy:
    """Of one service, port and subset, with what its parents say filled in."""

    balancing: Balancing = "least_request"
    hash: ConsistentHash | None = None
    warmup: float | None = None
    locality: LocalityBalancing | None = None
    pool: Pool = Pool()
    outliers: Outliers | None = None
    tls: BackendTls | None = None
    budget: RetryBudget | None = None


@dataclass(frozen=True, slots=True)
class Subset:
    """A part of a service's endpoints, by their labels; ports override `policy`."""

    name: str
    labels: tuple[tuple[str, str], ...]
    policy: TrafficPolicy = TrafficPolicy()
    ports: tuple[tuple[int, TrafficPolicy], ...] = ()

    def at(self, port: int) -> TrafficPolicy:
        """The policy at a service port."""
        return dict(self.ports).get(port, self.policy)


@dataclass(frozen=True, slots=True)
class ServiceTraffic:
    """Of one service: its policy, by port where it differs, and its subsets."""

    policy: TrafficPolicy = TrafficPolicy()
    ports: tuple[tuple[int, TrafficPolicy], ...] = ()
    subsets: tuple[Subset, ...] = ()
    origin: Key | None = None  # the DestinationRule

    def at(self, port: int) -> TrafficPolicy:
        """The policy at a service port, without subsets."""
        return dict(self.ports).get(port, self.policy)

    def of(self, ref: BackendRef) -> TrafficPolicy:
        """The policy of what a route sends to: a port, perhaps of a subset."""
        return (self.subset(ref.subset) or self).at(ref.port)

    def policies(self) -> Iterator[TrafficPolicy]:
        """All policies: of the service, its subsets and their ports."""
        parts: tuple[ServiceTraffic | Subset, ...] = (self, *self.subsets)
        for part in parts:
            yield part.policy
            yield from (policy for _, policy in part.ports)

    def subset(self, name: str) -> Subset | None:
        """Find a subset."""
        return next((s for s in self.subsets if s.name == name), None)


DEFAULT: Final = ServiceTraffic()
