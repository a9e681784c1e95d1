"""What workers report, made into metrics and access log lines.

Directions: metrics count `received` in the direction of the request at both reporters, as the
contract has it; log lines count from the reporter's own side.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from mesh.ports import INBOUND_HBONE
from mesh.telemetry import access_log
from mesh.telemetry.access_log import Party, Record
from mesh.telemetry.tcp import UNKNOWN, Labels, TcpMetrics
from ztunnel import ipc

access = logging.getLogger("access")
log = logging.getLogger(__name__)

_CACHE: Final = 4096
_LEVELS: Final = {
    access_log.DEBUG: logging.DEBUG,
    access_log.INFO: logging.INFO,
    access_log.WARN: logging.WARNING,
    access_log.ERROR: logging.ERROR,
}

ServiceOf = Callable[[str, int], ipc.ServiceRef | None]
_Key = tuple[str, ipc.Peer, ipc.Peer, ipc.ServiceRef | None, bool, str]


class Telemetry:
    """Takes Reports of all workers.

    service_of: the service that a local pod's port belongs to, for inbound connections.
    write: takes the lines of one batch. render: access_log.text_line or json_line.
    """

    def __init__(
        self,
        service_of: ServiceOf,
        write: Callable[[str], None],
        json_format: bool = False,
        policy_info: bool = False,
    ) -> None:
        self.tcp = TcpMetrics()
        self._service_of = service_of
        self._write = write
        self._render = access_log.json_line if json_format else access_log.text_line
        self._policy_level = logging.INFO if policy_info else logging.DEBUG
        self._labels: dict[_Key, Labels] = {}
        # Per worker: connections open by the labels they were opened with.
        self._live: dict[int, dict[Labels, int]] = {}

    def reports(self, worker: int, batch: ipc.Reports, now: float, wall: float) -> None:
        """Take a batch; `now` is monotonic, `wall` unix seconds."""
        lines: list[str] = []
        live = self._live.setdefault(worker, {})
        for event in batch.events:
            if isinstance(event, ipc.Closed):
                self._closed(live, event, now)
                record = _closed_record(event, self._service(event.conn))
                self._log(lines, record, wall)
            elif isinstance(event, ipc.Opened):
                self._opened(live, event, now)
                if access.isEnabledFor(logging.DEBUG):
                    self._log(lines, _opened_record(event, self._service(event.conn)), wall)
            elif isinstance(event, ipc.Progress):
                labels = self._labels_of(event.conn, "-")
                series = self.tcp.series(labels, event.conn.pod, now)
                received, sent = _request_first(event.conn, event.bytes_sent, event.bytes_recv)
                series.received += received
                series.sent += sent
            else:
                self._dry_run(event)
        if lines:
            self._write("".join(lines))

    def worker_lost(self, worker: int, now: float) -> int:
        """Count the connections of a worker that died as closed; returns how many."""
        lost = self._live.pop(worker, {})
        for labels, count in lost.items():
            series = self.tcp.series(labels, "", now)
            series.pods.discard("")
            series.closed += count
            series.live -= count
        return sum(lost.values())

    def forget(self) -> None:
        """Services or workloads changed: inbound connections may belong to another service."""
        self._labels.clear()

    # ---- metrics -----------------------------------------------------------------------------

    def _opened(self, live: dict[Labels, int], event: ipc.Opened, now: float) -> None:
        labels = self._labels_of(event.conn, "-")
        series = self.tcp.series(labels, event.conn.pod, now)
        series.opened += 1
        series.live += 1
        live[labels] = live.get(labels, 0) + 1

    def _closed(self, live: dict[Labels, int], event: ipc.Closed, now: float) -> None:
        conn = event.conn
        labels = self._labels_of(conn, "-")
        series = self.tcp.series(labels, conn.pod, now)
        if event.opened:
            self._no_longer_live(live, labels, conn.pod, now)
        else:
            series.opened += 1
        received, sent = _request_first(
            conn, event.bytes_sent - event.told_sent, event.bytes_recv - event.told_recv
        )
        series.received += max(0, received)
        series.sent += max(0, sent)
        if event.flag != "-":
            series = self.tcp.series(labels._replace(response_flags=event.flag), conn.pod, now)
            series.failed += 1
        series.closed += 1

    def _no_longer_live(
        self, live: dict[Labels, int], labels: Labels, pod: str, now: float
    ) -> None:
        if labels not in live:  # the service guessed for it has changed since it was opened
            labels = next((k for k in live if _but_service(k) == _but_service(labels)), labels)
        if labels not in live:
            return
        self.tcp.series(labels, pod, now).live -= 1
        live[labels] -= 1
        if not live[labels]:
            del live[labels]

    def _service(self, conn: ipc.Connection) -> ipc.ServiceRef | None:
        if conn.service is None and conn.direction == "inbound":
            return self._service_of(conn.pod, conn.dst[1])
        return conn.service

    def _labels_of(self, conn: ipc.Connection, flag: str) -> Labels:
        service = self._service(conn)
        key = (conn.direction, conn.source, conn.destination, service, conn.secure, flag)
        labels = self._labels.get(key)
        if labels is None:
            if len(self._labels) >= _CACHE:
                self._labels.clear()
            labels = self._labels[key] = _labels(conn, service, flag)
        return labels

    # ---- log ---------------------------------------------------------------------------------

    def _log(self, lines: list[str], record: Record, wall: float) -> None:
        if access.isEnabledFor(_LEVELS[record.level]):
            lines.append(self._render(record, wall))

    def _dry_run(self, event: ipc.DryRun) -> None:
        conn = event.conn
        log.log(
            self._policy_level,
            "dry-run: policy %s would have refused %s -> %s (%s)",
            event.policy,
            _join(conn.src),
            _join(conn.dst),
            conn.source.identity or "no identity",
        )


def _request_first(conn: ipc.Connection, sent: int, recv: int) -> tuple[int, int]:
    """Turn own-side bytes into (request, response) bytes: the client's side sends requests."""
    return (sent, recv) if conn.direction == "outbound" else (recv, sent)


def _labels(conn: ipc.Connection, service: ipc.ServiceRef | None, flag: str) -> Labels:
    s, d = conn.source, conn.destination
    named = service or ipc.ServiceRef()
    values = {
        "reporter": "source" if conn.direction == "outbound" else "destination",
        "source_workload": s.workload,
        "source_canonical_service": s.canonical_service,
        "source_canonical_revision": s.canonical_revision,
        "source_workload_namespace": s.namespace,
        # Only what TLS has proved.
        "source_principal": s.identity if conn.secure else "",
        "source_app": s.canonical_service,
        "source_version": s.canonical_revision,
        "source_cluster": s.cluster,
        "destination_service": named.hostname,
        "destination_service_namespace": named.namespace,
        "destination_service_name": named.name,
        "destination_workload": d.workload,
        "destination_canonical_service": d.canonical_service,
        "destination_canonical_revision": d.canonical_revision,
        "destination_workload_namespace": d.namespace,
        "destination_principal": d.identity,
        "destination_app": d.canonical_service,
        "destination_version": d.canonical_revision,
        "destination_cluster": d.cluster,
        "connection_security_policy": "mutual_tls" if conn.secure else "",
        "source_region": s.region,
        "source_zone": s.zone,
        "destination_region": d.region,
        "destination_zone": d.zone,
    }
    known = {name: value or UNKNOWN for name, value in values.items()}
    return Labels(**known, response_flags=flag)


def _but_service(labels: Labels) -> Labels:
    return labels._replace(
        destination_service="", destination_service_name="", destination_service_namespace=""
    )


def _join(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parties(conn: ipc.Connection) -> tuple[Party, Party, str]:
    """Give source, destination, and what the tunnel was asked for."""
    s, d = conn.source, conn.destination
    tunnel = conn.hbone
    if conn.direction == "outbound":
        at = _join(tunnel) if tunnel else _join(conn.dst)
    else:
        at = _join((conn.dst[0], INBOUND_HBONE)) if tunnel else _join(conn.dst)
    src = Party(
        _join(conn.src),
        s.pod or s.workload or s.canonical_service,
        s.namespace,
        s.identity if conn.secure else "",
        s.cluster,
    )
    dst = Party(
        at,
        d.pod or d.workload or d.canonical_service,
        d.namespace,
        d.identity if conn.secure else "",
        d.cluster,
    )
    return src, dst, _join(conn.dst) if tunnel else ""


def _opened_record(event: ipc.Opened, service: ipc.ServiceRef | None) -> Record:
    conn = event.conn
    src, dst, asked = _parties(conn)
    return Record(
        access_log.DEBUG,
        access_log.OPENED,
        src,
        dst,
        conn.direction,
        asked,
        service.hostname if service else "",
    )


def _is_early(event: ipc.Closed) -> bool:
    """Refused before anything was known but addresses."""
    proved_nothing = event.conn.direction == "inbound" and not event.conn.secure
    return not event.opened and event.flag != "DENY" and (event.flag == "-" or proved_nothing)


def _closed_record(event: ipc.Closed, service: ipc.ServiceRef | None) -> Record:
    conn = event.conn
    src, dst, asked = _parties(conn)
    if event.error and _is_early(event):
        return Record(
            access_log.WARN,
            access_log.FAILED,
            Party(src.addr),
            Party(dst.addr),
            conn.direction,
            error=event.error,
        )
    return Record(
        access_log.ERROR if event.error else access_log.INFO,
        access_log.COMPLETE,
        src,
        dst,
        conn.direction,
        asked,
        service.hostname if service else "",
        event.bytes_sent,
        event.bytes_recv,
        event.duration_ms,
        event.error,
    )
