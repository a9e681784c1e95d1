"""What a waypoint's metrics page shows: Envoy's series under Istio's names, and this process's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# Envoy names them envoy_<scope of the stats logger>_istio_requests_total.
_OURS: Final = re.compile(rb"^(# (?:TYPE|HELP) )?envoy_(?:[a-zA-Z0-9]+_)?(?=istio_)", re.MULTILINE)
ISTIO_ONLY: Final = "/stats/prometheus?filter=istio_"
EVERYTHING: Final = "/stats/prometheus"


def build_version() -> str:
    """Give the installed version."""
    try:
        return version("ambit")
    except PackageNotFoundError:
        return "unknown"


def renamed(text: bytes) -> bytes:
    """Give Envoy's Prometheus text with its prefix taken off Istio's metrics."""
    return _OURS.sub(rb"\1", text)


@dataclass(frozen=True, slots=True)
class State:
    """What is shown, as it is at the moment. Times are unix seconds, 0 for never."""

    envoy_live: bool
    envoy_restarts: int
    connected: bool
    rejected: Counter[str]  # by type
    kept: dict[str, int]  # resources by type
    certificate_expiry: float
    draining: bool


class ProcessMetrics(Collector):
    """This process's own families. Also the observer of the xDS client."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state
        self._terminations: Counter[str] = Counter()
        self._messages: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self.renewals: Counter[str] = Counter()  # of the certificate, by result

    def xds_message(self, type_url: str, size: int) -> None:
        """See mesh.xds.client.Observer."""
        self._messages[type_url] += 1
        self._bytes[type_url] += size

    def xds_terminated(self, reason: str) -> None:
        """See mesh.xds.client.Observer."""
        self._terminations[reason] += 1

    def collect(self) -> Iterator[Metric]:
        """See prometheus-client's Collector."""
        state = self._state()
        build = GaugeMetricFamily(
            "istio_build", "Istio component build info", labels=["component", "tag"]
        )
        build.add_metric(["waypoint", build_version()], 1)
        yield build
        for name, text, value in (
            ("envoy_live", "Whether Envoy says that it is live", state.envoy_live),
            ("draining", "Whether this waypoint is being shut down", state.draining),
            ("xds_connected", "Whether there is a stream to the control plane", state.connected),
            (
                "certificate_expiry_timestamp_seconds",
                "When the certificate in use ends, unix seconds; 0 without one",
                state.certificate_expiry,
            ),
        ):
            yield GaugeMetricFamily(f"ambit_waypoint_{name}", text, float(value))
        yield CounterMetricFamily(
            "ambit_waypoint_envoy_restarts",
            "Times that Envoy ended by itself and was started again",
            state.envoy_restarts,
        )
        yield _counter(
            "ambit_waypoint_xds_rejected",
            "Responses of the control plane that Envoy refused",
            "type",
            Counter({short(url): n for url, n in state.rejected.items()}),
        )
        kept = GaugeMetricFamily(
            "ambit_waypoint_resources", "Resources that Envoy has taken", labels=["type"]
        )
        for url, count in state.kept.items():
            kept.add_metric([short(url)], count)
        yield kept
        yield from self._counted()

    def _counted(self) -> Iterator[Metric]:
        for name, text, label, values in (
            (
                "istio_xds_connection_terminations",
                "The total number of completed connections to xds server (unstable)",
                "reason",
                self._terminations,
            ),
            (
                "istio_xds_message",
                "Total number of messages received (unstable)",
                "url",
                self._messages,
            ),
            (
                "istio_xds_message_bytes",
                "Total number of bytes received (unstable)",
                "url",
                self._bytes,
            ),
            (
                "ambit_waypoint_certificate_requests",
                "Certificates asked for",
                "result",
                self.renewals,
            ),
        ):
            yield _counter(name, text, label, values)


def short(type_url: str) -> str:
    """Name a type as people do: Cluster, Listener."""
    return type_url.rpartition(".")[2]


def _counter(name: str, text: str, label: str, values: Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in list(values.items()):
        family.add_metric([key], value)
    return family
