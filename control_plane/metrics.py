"""The control plane's metrics: names and meanings are istiod's, so dashboards work."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from mesh import __version__
from mesh.model.convert import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES

_SHORT: Final = {
    ADDRESS_TYPE: "address",
    AUTHORIZATION_TYPE: "authorization",
    CLUSTER: "cds",
    ENDPOINTS: "eds",
    LISTENER: "lds",
    ROUTES: "rds",
}
_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Counter(Collector):
    """A counter exposed under exactly its name: istiod's have no `_total`."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()
        registry.register(self)

    def inc(self, *labels: str, by: float = 1) -> None:
        """Count; label values in the order of the names."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + by

    def collect(self) -> Iterator[Metric]:
        """Yield the samples."""
        metric = Metric(self._name, self._text, "unknown")
        with self._lock:
            values = list(self._values.items())
        for labels, value in values:
            metric.add_sample(self._name, dict(zip(self._labels, labels, strict=True)), value)
        yield metric


def short_type(type_url: str) -> str:
    """Name a resource type as a label value."""
    return _SHORT.get(type_url, "other")


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self._connected = Gauge(
            "pilot_xds", "Proxies connected to this control plane.", ["version"], registry=r
        )
        self.connected = self._connected.labels(version=__version__)
        self.pushes = Counter("pilot_xds_pushes", "Responses sent, by type.", ["type"], r)
        self.sent = Counter(
            "ambit_xds_resources", "Resources sent or taken away, by type.", ["type"], r
        )
        self.push_time = Histogram(
            "pilot_xds_push_time",
            "Seconds to build and write one response.",
            ["type"],
            registry=r,
            buckets=_SECONDS,
        )
        self.convergence = Histogram(
            "pilot_proxy_convergence_time",
            "Seconds from a change's being seen to its being sent to a proxy.",
            registry=r,
            buckets=_SECONDS,
        )
        self.triggers = Counter("pilot_push_triggers", "Objects changed, by kind.", ["type"], r)
        self.rejects = Counter(
            "pilot_total_xds_rejects", "Responses a proxy refused (NACK), by type.", ["type"], r
        )
        self.refused = Counter(
            "pilot_xds_authentication_failures", "xDS streams refused for their token.", [], r
        )
        self.problems = Gauge(
            "pilot_malformed_objects", "Documents in the object folder not readable.", registry=r
        )
        self.resources = Gauge(
            "pilot_resources", "Resources in the current snapshot.", ["type"], registry=r
        )
        self._certificates(r)
        self._waypoints(r)
        self._cluster(r)

    def _certificates(self, r: CollectorRegistry) -> None:
        """What the CA counts."""
        self.csrs = Counter("citadel_server_csr_count", "Certificate requests received.", [], r)
        self.issued = Counter(
            "citadel_server_success_cert_issuance_count", "Certificates signed.", [], r
        )
        self.csr_errors = Counter(
            "citadel_server_csr_parsing_err_count", "Requests with a bad CSR.", [], r
        )
        self.ca_refused = Counter(
            "citadel_server_authentication_failure_count",
            "Requests whose caller may not have the identity.",
            [],
            r,
        )
        self.ca_unavailable = Counter(
            "ambit_ca_unavailable", "Requests put off because callers cannot be proven now.", [], r
        )
        self.sign_errors = Counter(
            "citadel_server_csr_sign_err_count", "Requests that failed while signing.", [], r
        )
        self.root_expiry = Gauge(
            "citadel_server_root_cert_expiry_timestamp",
            "Unix time at which the root certificate expires.",
            registry=r,
        )

    def _waypoints(self, r: CollectorRegistry) -> None:
        """What there is to count of waypoints."""
        self.refused_resources = Gauge(
            "ambit_waypoint_refused_resources",
            "Resources that waypoints refuse now; they go on with what worked before.",
            registry=r,
        )

    def _cluster(self, r: CollectorRegistry) -> None:
        """What there is to count where objects come from an API server."""
        self.leader = Gauge(
            "ambit_leader", "1 where this replica writes statuses and ConfigMaps.", registry=r
        )
        self.objects = Gauge("ambit_objects", "Objects read, by kind.", ["kind"], registry=r)
        self.source_problems = Gauge(
            "ambit_source_problems", "Kinds and Secrets that cannot be read now.", registry=r
        )
        self.watch_restarts = Counter(
            "ambit_watch_restarts", "Watches opened again, by kind.", ["kind"], r
        )
        self.relists = Counter(
            "ambit_watch_relists", "Kinds listed again: the watch was too old.", ["kind"], r
        )
        self.writes = Counter(
            "ambit_api_writes", "Writes to the API server.", ["kind", "result"], r
        )
        self.status_pending = Gauge(
            "ambit_status_pending", "Objects without their current condition.", registry=r
        )
        self.token_reviews = Counter(
            "ambit_token_reviews",
            "Tokens checked: ok, refused, cached, unavailable.",
            ["result"],
            r,
        )
