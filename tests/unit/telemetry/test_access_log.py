"""Access log lines, as Istio's ztunnel writes them."""

from __future__ import annotations

import json

from mesh.telemetry import access_log
from mesh.telemetry.access_log import Counts, Format, JsonFormat, Line, Party, TextFormat

NOW = 1_767_225_600.25  # 2026-01-01T00:00:00.25Z
SLEEP = Party("sleep-1", "shop", "spiffe://cluster.local/ns/shop/sa/sleep", "c1")
ECHO = Party("echo-1", "shop", "spiffe://cluster.local/ns/shop/sa/echo", "c1")


def complete(form: Format, error: str = "") -> str:
    line = Line(form, SLEEP, ECHO, "outbound", "echo.shop.svc.cluster.local")
    head = form.head(NOW, access_log.INFO, access_log.COMPLETE)
    to = ("10.0.0.1:4000", "10.0.0.2:15008", "10.0.0.2:8080")
    return line.render(head, *to, Counts(84, 175, 5), error)


def test_text_line() -> None:
    """Time, level, target, message, then fields: addresses and numbers bare, names quoted."""
    assert complete(TextFormat()) == (
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
    form = TextFormat()
    head = form.head(NOW, access_log.WARN, access_log.FAILED)
    early = Line(form, Party(), Party(), "inbound")
    assert early.render(head, "10.0.0.1:1", "10.0.0.2:2", error='no "certificate"') == (
        "2026-01-01T00:00:00.250000Z\twarn\taccess\tconnection failed\t"
        'src.addr=10.0.0.1:1 dst.addr=10.0.0.2:2 direction="inbound" '
        'error="no \\"certificate\\""\n'
    )


def test_json_line() -> None:
    """One object with the same fields; numbers are numbers."""
    line = json.loads(complete(JsonFormat()))
    assert line["scope"] == "access"
    assert line["level"] == "info"
    assert line["message"] == "connection complete"
    assert line["src.identity"] == SLEEP.identity
    assert line["bytes_sent"] == 84
    assert line["dst.addr"] == "10.0.0.2:15008"
    assert line["dst.hbone_addr"] == "10.0.0.2:8080"
    assert line["duration"] == "5ms"
    assert "error" not in line


def test_no_field_breaks_the_line() -> None:
    """Text from a peer cannot start a line of its own."""
    for form in (TextFormat(), JsonFormat()):
        assert complete(form, "a\nb\x00").count("\n") == 1
    assert json.loads(complete(JsonFormat(), 'a\n"b'))["error"] == 'a\n"b'
