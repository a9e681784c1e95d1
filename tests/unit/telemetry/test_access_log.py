"""Access log lines, as Istio's ztunnel writes them."""

from __future__ import annotations

import json

from mesh.telemetry import access_log
from mesh.telemetry.access_log import Party, Record, json_line, text_line

NOW = 1_767_225_600.25  # 2026-01-01T00:00:00.25Z
RECORD = Record(
    access_log.INFO,
    access_log.COMPLETE,
    Party("10.0.0.1:4000", "sleep-1", "shop", "spiffe://cluster.local/ns/shop/sa/sleep", "c1"),
    Party("10.0.0.2:15008", "echo-1", "shop", "spiffe://cluster.local/ns/shop/sa/echo", "c1"),
    "outbound",
    "10.0.0.2:8080",
    "echo.shop.svc.cluster.local",
    84,
    175,
    5,
)


def test_text_line() -> None:
    """Time, level, target, message, then fields: addresses and numbers bare, names quoted."""
    assert text_line(RECORD, NOW) == (
        "2026-01-01T00:00:00.250000Z\tinfo\taccess\tconnection complete\t"
        'src.addr=10.0.0.1:4000 src.workload="sleep-1" src.namespace="shop" '
        'src.identity="spiffe://cluster.local/ns/shop/sa/sleep" src.cluster="c1" '
        "dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080 "
        'dst.service="echo.shop.svc.cluster.local" dst.workload="echo-1" dst.namespace="shop" '
        'dst.identity="spiffe://cluster.local/ns/shop/sa/echo" dst.cluster="c1" '
        'direction="outbound" bytes_sent=84 bytes_recv=175 duration="5ms"\n'
    )


def test_unknown_fields_are_left_out() -> None:
    """An early refusal knows addresses and an error alone."""
    early = Record(
        access_log.WARN,
        access_log.FAILED,
        Party("10.0.0.1:1"),
        Party("10.0.0.2:2"),
        "inbound",
        error='no "certificate"',
    )
    assert text_line(early, NOW) == (
        "2026-01-01T00:00:00.250000Z\twarn\taccess\tconnection failed\t"
        'src.addr=10.0.0.1:1 dst.addr=10.0.0.2:2 direction="inbound" '
        'error="no \\"certificate\\""\n'
    )


def test_json_line() -> None:
    """One object with the same fields; numbers are numbers."""
    line = json.loads(json_line(RECORD, NOW))
    assert line["scope"] == "access"
    assert line["level"] == "info"
    assert line["bytes_sent"] == 84
    assert line["dst.hbone_addr"] == "10.0.0.2:8080"
    assert line["duration"] == "5ms"
    assert "error" not in line


def test_no_field_breaks_the_line() -> None:
    """Text from a peer cannot start a line of its own."""
    evil = Record(
        access_log.ERROR, access_log.COMPLETE, Party("1"), Party("2"), "inbound", error="a\nb\x00"
    )
    assert text_line(evil, NOW).count("\n") == 1
    assert json_line(evil, NOW).count("\n") == 1
