"""Metric families of the control process itself, read from its counters at scrape time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mesh.telemetry.tcp import TcpMetrics
from ztunnel.control import Control


def build_version() -> str:
    """Give the installed version."""
    try:
        return version("ambit")
    except PackageNotFoundError:
        return "unknown"


class ProxyMetrics(Collector):
    """The families of C8 beside traffic, and Ambit's own. Also the observer of the xDS client."""

    def __init__(self, control: Control, tcp: TcpMetrics) -> None:
        self._control = control
        self._tcp = tcp
        self._terminations: Counter[str] = Counter()
        self._messages: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def xds_message(self, type_url: str, size: int) -> None:
        """See mesh.xds.client.Observer."""
        self._messages[type_url] += 1
        self._bytes[type_url] += size

    def xds_terminated(self, reason: str) -> None:
        """See mesh.xds.client.Observer."""
        self._terminations[reason] += 1

    def collect(self) -> Iterator[Metric]:
        """See prometheus-client's Collector."""
        build = GaugeMetricFamily(
            "istio_build", "Istio component build info", labels=["component", "tag"]
        )
        build.add_metric(["ztunnel", build_version()], 1)
        yield build
        yield from self._pods()
        yield from self._xds()
        yield CounterMetricFamily(
            "ambit_ztunnel_worker_restarts",
            "Relay workers that died and were started again",
            self._control.restarts,
        )
        yield GaugeMetricFamily(
            "ambit_ztunnel_tcp_series",
            "Label combinations of the istio_tcp families",
            len(self._tcp),
        )
        yield CounterMetricFamily(
            "ambit_ztunnel_tcp_series_evicted",
            "Label combinations dropped because there were too many",
            self._tcp.evicted,
        )

    def _pods(self) -> Iterator[Metric]:
        pods = list(self._control.pods.values())
        serving = sum(pod.serving for pod in pods)
        yield GaugeMetricFamily(
            "istio_active_proxy_count_total",
            "The total number of proxies currently running",
            serving,
        )
        yield GaugeMetricFamily(
            "istio_pending_proxy_count_total",
            "The total number of proxies that are pending",
            len(pods) - serving,
        )
        yield CounterMetricFamily(
            "istio_proxies_started",
            "The total number of proxies that were started",
            self._control.started,
        )
        yield CounterMetricFamily(
            "istio_proxies_stopped",
            "The total number of proxies that were stopped",
            self._control.stopped,
        )

    def _xds(self) -> Iterator[Metric]:
        yield _labelled(
            "istio_xds_connection_terminations",
            "The total number of completed connections to xds server (unstable)",
            "reason",
            self._terminations,
        )
        yield _labelled(
            "istio_xds_message",
            "Total number of messages received (unstable)",
            "url",
            self._messages,
        )
        yield _labelled(
            "istio_xds_message_bytes",
            "Total number of bytes received (unstable)",
            "url",
            self._bytes,
        )


def _labelled(name: str, text: str, label: str, values: Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in list(values.items()):
        family.add_metric([key], value)
    return family
