"""Reports of workers made into metrics and log lines: the directions above all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mesh.telemetry.tcp import Labels, Series
from ztunnel import ipc
from ztunnel.telemetry import Telemetry

SLEEP = ipc.Peer(
    "s", "sleep", "sleep-1", "shop", "spiffe://cluster.local/ns/shop/sa/sleep", "deployment",
    "sleep", "v1", "c1", "r1", "z1",
)  # fmt: skip
ECHO = replace(
    SLEEP, uid="e", workload="echo", pod="echo-1",
    identity="spiffe://cluster.local/ns/shop/sa/echo", canonical_service="echo",
)  # fmt: skip
SERVICE = ipc.ServiceRef("echo", "shop", "echo.shop.svc.cluster.local")
OUT = ipc.Connection(
    "uid", "outbound", ("10.0.0.1", 4000), ("10.0.0.2", 8080), ("10.96.0.1", 80),
    ("10.0.0.2", 15008), True, SLEEP, ECHO, SERVICE,
)  # fmt: skip
IN = ipc.Connection(
    "uid2", "inbound", ("10.0.0.1", 4001), ("10.0.0.2", 8080), ("10.0.0.2", 8080),
    ("10.0.0.1", 4001), True, SLEEP, ECHO,
)  # fmt: skip


class Rig:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.services: dict[tuple[str, int], ipc.ServiceRef] = {}
        self.telemetry = Telemetry(
            lambda pod, port: self.services.get((pod, port)), self.lines.append
        )

    def report(self, *events: ipc.Opened | ipc.Closed | ipc.Progress | ipc.DryRun) -> None:
        self.telemetry.reports(0, ipc.Reports(events), 1.0, 1_767_225_600.0)

    def series(self, **labels: str) -> Series:
        found = [
            s
            for s in self.telemetry.tcp._series.values()
            if all(getattr(s.labels, k) == v for k, v in labels.items())
        ]
        assert len(found) == 1, [s.labels for s in self.telemetry.tcp._series.values()]
        return found[0]


@pytest.fixture
def rig() -> Iterator[Rig]:
    access = logging.getLogger("access")
    before = access.level
    access.setLevel(logging.INFO)
    yield Rig()
    access.setLevel(before)


def test_metrics_count_the_request_as_received_at_both_reporters(rig: Rig) -> None:
    """The client sent 100 and got 7: received 100, sent 7, whoever reports."""
    rig.report(ipc.Opened(OUT), ipc.Closed(OUT, bytes_sent=100, bytes_recv=7, duration_ms=5))
    rig.report(ipc.Opened(IN), ipc.Closed(IN, bytes_sent=7, bytes_recv=100, duration_ms=5))
    for reporter in ("source", "destination"):
        series = rig.series(reporter=reporter)
        assert (series.received, series.sent) == (100, 7)
        assert (series.opened, series.closed, series.failed, series.live) == (1, 1, 0, 0)


def test_log_lines_count_from_the_own_side(rig: Rig) -> None:
    """The client's proxy sent 100, the server's got 100."""
    rig.report(ipc.Closed(OUT, bytes_sent=100, bytes_recv=7, duration_ms=5))
    rig.report(ipc.Closed(IN, bytes_sent=7, bytes_recv=100, duration_ms=5))
    assert "bytes_sent=100 bytes_recv=7" in rig.lines[0]
    assert "bytes_sent=7 bytes_recv=100" in rig.lines[1]
    assert "\tinfo\taccess\tconnection complete\t" in rig.lines[0]


def test_log_addresses(rig: Rig) -> None:
    """dst.addr is where TCP went, dst.hbone_addr what the tunnel was asked for."""
    rig.report(ipc.Closed(OUT, 1, 1, 1), ipc.Closed(IN, 1, 1, 1))
    (both,) = rig.lines
    for line in both.splitlines():
        assert "dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080" in line
        assert 'src.workload="sleep-1"' in line
        assert 'dst.identity="spiffe://cluster.local/ns/shop/sa/echo"' in line


def test_labels(rig: Rig) -> None:
    """Every label has its value; what is missing is `unknown`."""
    rig.report(ipc.Opened(replace(OUT, source=replace(SLEEP, zone=""))))
    assert rig.series().labels == Labels(
        reporter="source",
        source_workload="sleep",
        source_canonical_service="sleep",
        source_canonical_revision="v1",
        source_workload_namespace="shop",
        source_principal=SLEEP.identity,
        source_app="sleep",
        source_version="v1",
        source_cluster="c1",
        destination_service=SERVICE.hostname,
        destination_service_namespace="shop",
        destination_service_name="echo",
        destination_workload="echo",
        destination_canonical_service="echo",
        destination_canonical_revision="v1",
        destination_workload_namespace="shop",
        destination_principal=ECHO.identity,
        destination_app="echo",
        destination_version="v1",
        destination_cluster="c1",
        request_protocol="tcp",
        response_flags="-",
        connection_security_policy="mutual_tls",
        source_region="r1",
        source_zone="unknown",
        destination_region="r1",
        destination_zone="z1",
    )


def test_plaintext_proves_no_source(rig: Rig) -> None:
    """Without TLS the source's principal is unknown, and no identity is in the log."""
    rig.report(ipc.Closed(replace(OUT, secure=False, hbone=None), 1, 1, 1))
    labels = rig.series().labels
    assert labels.source_principal == "unknown"
    assert labels.connection_security_policy == "unknown"
    assert "identity" not in rig.lines[0]
    assert "hbone_addr" not in rig.lines[0]


def test_failure_is_opened_closed_and_failed_with_its_flag(rig: Rig) -> None:
    """Refused by policy: counted as a connection, its failure under DENY, an error line."""
    rig.report(ipc.Closed(IN, 0, 0, 1, "DENY", "policy rejection: shop/p", opened=False))
    assert rig.series(response_flags="-").opened == 1
    denied = rig.series(response_flags="DENY")
    assert (denied.closed, denied.failed) == (1, 1)
    assert "\terror\taccess\tconnection complete\t" in rig.lines[0]
    assert 'error="policy rejection: shop/p"' in rig.lines[0]


def test_early_refusal_is_a_warning_with_addresses_alone(rig: Rig) -> None:
    """Nobody proved anything: only what was seen is said."""
    unknown = replace(IN, secure=False, source=ipc.Peer())
    rig.report(ipc.Closed(unknown, 0, 0, 1, "TLS_FAILURE", "bad certificate", opened=False))
    assert "\twarn\taccess\tconnection failed\t" in rig.lines[0]
    assert "src.workload" not in rig.lines[0]


def test_progress_is_not_counted_twice(rig: Rig) -> None:
    """Bytes told while it lived are not told again when it closes."""
    rig.report(ipc.Opened(OUT), ipc.Progress(OUT, 60, 3))
    assert rig.series().received == 60
    rig.report(ipc.Closed(OUT, 100, 7, 5, told_sent=60, told_recv=3))
    assert (rig.series().received, rig.series().sent) == (100, 7)
    assert "bytes_sent=100 bytes_recv=7" in rig.lines[0]


def test_dead_workers_connections_are_closed(rig: Rig) -> None:
    """The sockets gauge does not count the dead."""
    rig.report(ipc.Opened(OUT), ipc.Opened(OUT), ipc.Closed(OUT, 1, 1, 1))
    assert rig.telemetry.tcp.live("source") == 1
    assert rig.telemetry.worker_lost(0, 2.0) == 1
    assert rig.telemetry.tcp.live("source") == 0
    assert rig.series().closed == 2


def test_inbound_service_is_named_and_may_change_meanwhile(rig: Rig) -> None:
    """The service that the port belongs to; a change while it is open does not leave it open."""
    rig.report(ipc.Opened(IN))
    rig.services["uid2", 8080] = SERVICE
    rig.report(ipc.Closed(IN, 1, 1, 1))
    assert rig.series(destination_service=SERVICE.hostname).closed == 1
    assert rig.telemetry.tcp.live("destination") == 0
    assert 'dst.service="echo.shop.svc.cluster.local"' in rig.lines[0]


def test_levels_choose_lines(rig: Rig) -> None:
    """At error level a good connection is silent; at debug its opening is a line too."""
    logging.getLogger("access").setLevel(logging.ERROR)
    rig.report(ipc.Closed(OUT, 1, 1, 1))
    assert rig.lines == []
    logging.getLogger("access").setLevel(logging.DEBUG)
    rig.report(ipc.Opened(OUT))
    assert "\tdebug\taccess\tconnection opened\t" in rig.lines[0]


def test_dry_run_is_logged(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Which policy, and whom it would have refused."""
    with caplog.at_level(logging.DEBUG, "ztunnel.telemetry"):
        rig.report(ipc.DryRun(IN, "shop/p"))
    assert "policy shop/p would have refused 10.0.0.1:4001" in caplog.text
