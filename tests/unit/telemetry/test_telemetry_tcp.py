"""The istio_tcp_* families: names, labels, and their bound."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from mesh.telemetry import tcp
from mesh.telemetry.tcp import KEEP, Labels, TcpMetrics


def text(metrics: TcpMetrics) -> str:
    registry = CollectorRegistry()
    registry.register(metrics)
    return generate_latest(registry).decode()


def test_families_and_labels_are_those_of_the_contract() -> None:
    """Names with _total, and exactly the labels that dashboards query."""
    metrics = TcpMetrics()
    series = metrics.series(Labels(reporter="source"), "pod", 0.0)
    series.opened, series.closed, series.received, series.sent = 4, 3, 100, 200
    exposed = text(metrics)
    (line,) = [s for s in exposed.splitlines() if s.startswith("istio_tcp_received_bytes_total{")]
    names = {pair.partition("=")[0] for pair in line.partition("{")[2].split("}")[0].split(",")}
    ends = ("source", "destination")
    both = ("workload", "canonical_service", "canonical_revision", "workload_namespace")
    both += ("principal", "app", "version", "cluster", "region", "zone")
    expected = {f"{end}_{name}" for end in ends for name in both}
    expected |= {"destination_service", "destination_service_name", "reporter"}
    expected |= {"destination_service_namespace", "request_protocol", "response_flags"}
    assert names == expected | {"connection_security_policy"}
    assert line.endswith(" 100.0")
    assert 'request_protocol="tcp"' in line
    assert 'source_workload="unknown"' in line
    for name in ("opened", "closed"):
        assert f"istio_tcp_connections_{name}_total{{" in exposed
    assert "istio_tcp_sent_bytes_total{" in exposed
    assert "istio_tcp_connections_failed_total{" not in exposed
    assert "_created" not in exposed


def test_open_sockets_are_counted_by_reporter() -> None:
    """Each reporter's live connections."""
    metrics = TcpMetrics()
    metrics.series(Labels(reporter="source"), "p", 0.0).live = 2
    metrics.series(Labels(reporter="destination"), "p", 0.0).live = 3
    assert 'istio_tcp_sockets_open{reporter="source"} 2.0' in text(metrics)
    assert 'istio_tcp_sockets_open{reporter="destination"} 3.0' in text(metrics)


def test_series_go_with_the_last_of_their_pods() -> None:
    """Kept for a while after the pod, and for as long as another pod reports to them."""
    metrics = TcpMetrics()
    shared, own = Labels(source_workload="shared"), Labels(source_workload="own")
    metrics.series(shared, "a", 0.0)
    metrics.series(shared, "b", 0.0)
    metrics.series(own, "a", 0.0)
    metrics.pod_gone("a", 10.0)
    metrics.expire(10.0 + KEEP - 1)
    assert len(metrics) == 2
    metrics.expire(10.0 + KEEP)
    assert '"own"' not in text(metrics)
    assert '"shared"' in text(metrics)
    assert metrics.next_timer() is None


def test_pod_that_comes_back_keeps_its_series() -> None:
    """A restart of the agent is no end of a pod."""
    metrics = TcpMetrics()
    metrics.series(Labels(), "a", 0.0)
    metrics.pod_gone("a", 0.0)
    metrics.pod_back("a")
    metrics.expire(1e9)
    assert len(metrics) == 1


def test_too_many_series_push_out_the_stalest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound holds; live ones and recent ones stay."""
    monkeypatch.setattr(tcp, "MAX_SERIES", 40)
    metrics = TcpMetrics()
    metrics.series(Labels(source_app="live"), "p", -1.0).live = 1
    for i in range(60):
        metrics.series(Labels(source_app=str(i)), "p", float(i))
    assert len(metrics) <= 40
    assert metrics.evicted >= 20
    exposed = text(metrics)
    assert 'source_app="live"' in exposed
    assert 'source_app="59"' in exposed
    assert 'source_app="0"' not in exposed
