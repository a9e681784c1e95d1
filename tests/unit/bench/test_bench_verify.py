"""The path check counts bytes of the right side, direction and security."""

from __future__ import annotations

import pytest

from bench import verify
from bench.errors import BenchError


def _sample(name: str, reporter: str, namespace: str, policy: str, value: int) -> str:
    labels = (
        f'reporter="{reporter}",source_workload_namespace="{namespace}",'
        f'connection_security_policy="{policy}"'
    )
    return f"{name}{{{labels}}} {value}\n"


METRICS = (
    "# TYPE istio_tcp_sent_bytes counter\n"
    + _sample("istio_tcp_sent_bytes_total", "destination", "mesh", "mutual_tls", 1000)
    + _sample("istio_tcp_sent_bytes_total", "destination", "mesh", "unknown", 10)
    + _sample("istio_tcp_sent_bytes_total", "source", "mesh", "mutual_tls", 7)
    + _sample("istio_tcp_sent_bytes_total", "destination", "other", "mutual_tls", 5)
    + "# TYPE istio_tcp_received_bytes counter\n"
    + _sample("istio_tcp_received_bytes_total", "destination", "mesh", "mutual_tls", 3)
)


def test_only_mutual_tls_bytes_of_the_client_namespace_count() -> None:
    """Plaintext, the source's own count and others' traffic prove nothing."""
    assert verify.tunnelled_bytes(METRICS, "mesh", mutual_tls=True) == 1000
    assert verify.tunnelled_bytes(METRICS, "mesh", mutual_tls=False) == 1010


def test_socket_bytes_are_summed_both_ways() -> None:
    """The counters of ss(8), by their exact names."""
    text = (
        "0 0 10.0.0.1:8080 10.0.0.2:4000\n\t cubic bytes_sent:9 bytes_acked:5 bytes_received:7 x\n"
    )
    assert verify.bytes_of(text) == 12
    assert verify.bytes_of("") == 0


def test_traffic_that_went_another_way_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests were answered, but the proxy counted nothing: the contender is refused."""
    monkeypatch.setattr(verify, "_SETTLE_SECONDS", 0.0)
    with pytest.raises(BenchError, match="only 0 went this way"):
        verify._grows("proxy", lambda: 42.0, lambda: 10)
