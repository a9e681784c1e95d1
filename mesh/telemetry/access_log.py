"""Access log lines, as text and as JSON, with the fields and the look of Istio's ztunnel. Pure."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import Final

INFO: Final = "info"
WARN: Final = "warn"
ERROR: Final = "error"
DEBUG: Final = "debug"

COMPLETE: Final = "connection complete"
OPENED: Final = "connection opened"
FAILED: Final = "connection failed"


@dataclass(frozen=True, slots=True)
class Party:
    """One end. Empty text is unknown and is left out of the line."""

    addr: str  # ip:port
    workload: str = ""
    namespace: str = ""
    identity: str = ""
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One line. Bytes are from the reporter's own side; None where nothing was counted."""

    level: str
    message: str
    src: Party
    dst: Party
    direction: str  # inbound | outbound
    hbone_addr: str = ""  # what the tunnel was asked for; dst.addr is then the tunnel's far end
    service: str = ""
    bytes_sent: int | None = None
    bytes_recv: int | None = None
    duration_ms: int | None = None
    error: str = ""


def _fields(r: Record) -> list[tuple[str, str | int, bool]]:
    """Give name, value, and whether text form quotes it."""
    src, dst = r.src, r.dst
    fields: list[tuple[str, str | int, bool]] = [
        ("src.addr", src.addr, False),
        ("src.workload", src.workload, True),
        ("src.namespace", src.namespace, True),
        ("src.identity", src.identity, True),
        ("src.cluster", src.cluster, True),
        ("dst.addr", dst.addr, False),
        ("dst.hbone_addr", r.hbone_addr, False),
        ("dst.service", r.service, True),
        ("dst.workload", dst.workload, True),
        ("dst.namespace", dst.namespace, True),
        ("dst.identity", dst.identity, True),
        ("dst.cluster", dst.cluster, True),
        ("direction", r.direction, True),
    ]
    if r.bytes_sent is not None and r.bytes_recv is not None:
        fields += [("bytes_sent", r.bytes_sent, False), ("bytes_recv", r.bytes_recv, False)]
    if r.duration_ms is not None:
        fields.append(("duration", f"{r.duration_ms}ms", True))
    fields.append(("error", r.error, True))
    return [f for f in fields if f[1] != ""]


def _stamp(now: float) -> str:
    at = dt.datetime.fromtimestamp(now, dt.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _quoted(value: str | int) -> str:
    return json.dumps(value, ensure_ascii=False)


def text_line(record: Record, now: float) -> str:
    """Render a line; `now` is unix seconds."""
    rendered = " ".join(
        f"{name}={_quoted(value) if quote else value}" for name, value, quote in _fields(record)
    )
    return f"{_stamp(now)}\t{record.level}\taccess\t{record.message}\t{rendered}\n"


def json_line(record: Record, now: float) -> str:
    """Render a line as one JSON object."""
    line: dict[str, str | int] = {
        "level": record.level,
        "time": _stamp(now),
        "scope": "access",
        "message": record.message,
    }
    line.update((name, value) for name, value, _ in _fields(record))
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"
