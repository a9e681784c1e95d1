"""The istio_tcp_* families: names and labels that dashboards (Grafana, Kiali) already know.

A series is one combination of label values with its counters. Series are kept in one table and
turned into families when somebody scrapes, so a connection costs one lookup, not five.

Bound: a series belongs to the local pods that reported to it. KEEP seconds after the last of them
is gone it is removed. Beyond MAX_SERIES those untouched for longest are removed, live ones last;
`evicted` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

KEEP: Final = 300.0
MAX_SERIES: Final = 20_000

UNKNOWN: Final = "unknown"


class Labels(NamedTuple):
    """Label values in the order of the contract; field names are the label names."""

    reporter: str = UNKNOWN  # source | destination
    source_workload: str = UNKNOWN
    source_canonical_service: str = UNKNOWN
    source_canonical_revision: str = UNKNOWN
    source_workload_namespace: str = UNKNOWN
    source_principal: str = UNKNOWN
    source_app: str = UNKNOWN
    source_version: str = UNKNOWN
    source_cluster: str = UNKNOWN
    destination_service: str = UNKNOWN
    destination_service_namespace: str = UNKNOWN
    destination_service_name: str = UNKNOWN
    destination_workload: str = UNKNOWN
    destination_canonical_service: str = UNKNOWN
    destination_canonical_revision: str = UNKNOWN
    destination_workload_namespace: str = UNKNOWN
    destination_principal: str = UNKNOWN
    destination_app: str = UNKNOWN
    destination_version: str = UNKNOWN
    destination_cluster: str = UNKNOWN
    request_protocol: str = "tcp"
    response_flags: str = "-"
    connection_security_policy: str = UNKNOWN  # mutual_tls | unknown
    source_region: str = UNKNOWN
    source_zone: str = UNKNOWN
    destination_region: str = UNKNOWN
    destination_zone: str = UNKNOWN


@dataclass(slots=True)
class Series:
    """The counters of one combination of labels. Bytes: received is the request's direction."""

    labels: Labels
    opened: int = 0
    closed: int = 0
    failed: int = 0
    received: int = 0
    sent: int = 0
    live: int = 0  # connections open now
    touched: float = 0.0
    pods: set[str] = field(default_factory=set)


class TcpMetrics(Collector):
    """The table; a collector for a prometheus-client registry. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._series: dict[Labels, Series] = {}
        self._gone: dict[str, float] = {}  # pod: when its series lose it
        self.evicted = 0

    def series(self, labels: Labels, pod: str, now: float) -> Series:
        """Find or make the series that a connection of a local pod ("": of none) reports to."""
        found = self._series.get(labels)
        if found is None:
            if len(self._series) >= MAX_SERIES:
                self._evict()
            found = self._series[labels] = Series(labels)
        if pod:
            found.pods.add(pod)
        found.touched = now
        return found

    def pod_gone(self, pod: str, now: float) -> None:
        """Take note that a local pod is no longer served."""
        self._gone[pod] = now + KEEP

    def pod_back(self, pod: str) -> None:
        """It is served again."""
        self._gone.pop(pod, None)

    def expire(self, now: float) -> None:
        """Remove the series whose pods are gone for long enough."""
        gone = {pod for pod, at in self._gone.items() if at <= now}
        if not gone:
            return
        for pod in gone:
            del self._gone[pod]
        for labels in [s.labels for s in self._series.values() if s.pods & gone]:
            series = self._series[labels]
            series.pods -= gone
            if not series.pods:
                del self._series[labels]

    def next_timer(self) -> float | None:
        """When `expire` will have something to do."""
        return min(self._gone.values(), default=None)

    def _evict(self) -> None:
        victims = sorted(self._series.values(), key=lambda s: (s.live > 0, s.touched))
        for series in victims[: MAX_SERIES // 20]:
            del self._series[series.labels]
            self.evicted += 1

    def __len__(self) -> int:
        return len(self._series)

    def live(self, reporter: str) -> int:
        """Count the connections open now at one reporter."""
        return sum(s.live for s in self._series.values() if s.labels.reporter == reporter)

    def collect(self) -> Iterator[Metric]:
        """See prometheus-client's Collector."""
        for name, help_text, attribute in _FAMILIES:
            family = CounterMetricFamily(name, help_text, labels=Labels._fields)
            for series in self._series.values():
                value = getattr(series, attribute)
                # opened, closed and bytes exist from the first connection on, failures when seen
                if value or attribute != "failed":
                    family.add_metric(series.labels, value)
            yield family
        sockets = GaugeMetricFamily(
            "istio_tcp_sockets_open",
            "The current number of open TCP sockets (unstable)",
            labels=["reporter"],
        )
        for reporter in ("source", "destination"):
            sockets.add_metric([reporter], self.live(reporter))
        yield sockets


_FAMILIES: Final = (
    (
        "istio_tcp_connections_opened",
        "The total number of TCP connections opened",
        "opened",
    ),
    (
        "istio_tcp_connections_closed",
        "The total number of TCP connections closed",
        "closed",
    ),
    (
        "istio_tcp_connections_failed",
        "The total number of TCP connections that failed to establish (unstable)",
        "failed",
    ),
    (
        "istio_tcp_received_bytes",
        "The size of total bytes received during request in case of a TCP connection",
        "received",
    ),
    (
        "istio_tcp_sent_bytes",
        "The size of total bytes sent during response in case of a TCP connection",
        "sent",
    ),
)
