"""What workers report, made into metrics and access log lines.

Directions: metrics count `received` in the direction of the request at both reporters, as the
contract has it; log lines count from the reporter's own side.

Every connection of a node comes through here, in batches. What connections of the same two
workloads have in common (series, the fixed parts of their line) is looked up once per batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from mesh.ports import INBOUND_HBONE
from mesh.telemetry import access_log
from mesh.telemetry.access_log import Counts, JsonFormat, Line, Party, TextFormat
from mesh.telemetry.tcp import UNKNOWN, Labels, Series, TcpMetrics
from ztunnel import ipc

access = logging.getLogger("access")
log = logging.getLogger(__name__)

_CACHE: Final = 4096

ServiceOf = Callable[[str, int], ipc.ServiceRef | None]
_Key = tuple[str, ipc.Peer, ipc.Peer, ipc.ServiceRef | None, bool]


class _Kind:
    """Connections alike in everything but addresses: their labels and their line."""

    __slots__ = ("labels", "line")

    def __init__(self, labels: Labels, line: Line) -> None:
        self.labels = labels
        self.line = line


class _Tally:
    """What one batch says of one kind at one pod."""

    __slots__ = ("kind", "live", "series")

    def __init__(self, kind: _Kind, series: Series) -> None:
        self.kind = kind
        self.series = series
        self.live = 0  # opened less closed


class _Batch:
    """One batch on its way."""

    def __init__(self, now: float, wall: float) -> None:
        self.now = now
        self.wall = wall
        self.lines: list[str] = []
        self.heads: dict[str, str] = {}
        self.tallies: dict[tuple[object, ...], _Tally] = {}


class Telemetry:
    """Takes Reports of all workers.

    service_of: the service that a local pod's port belongs to, for inbound connections.
    write: takes the lines of one batch.
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
        self._format = JsonFormat() if json_format else TextFormat()
        self._policy_level = logging.INFO if policy_info else logging.DEBUG
        self._kinds: dict[_Key, _Kind] = {}
        self._early = {d: Line(self._format, Party(), Party(), d) for d in ("inbound", "outbound")}
        # Per worker: connections open, by the labels they were opened with.
        self._live: dict[int, dict[Labels, int]] = {}

    def reports(self, worker: int, batch: ipc.Reports, now: float, wall: float) -> None:
        """Take a batch; `now` is monotonic, `wall` unix seconds."""
        work = _Batch(now, wall)
        levels = {
            access_log.INFO: access.isEnabledFor(logging.INFO),
            access_log.WARN: access.isEnabledFor(logging.WARNING),
            access_log.ERROR: access.isEnabledFor(logging.ERROR),
        }
        opening = access.isEnabledFor(logging.DEBUG)
        for event in batch.events:
            if isinstance(event, ipc.DryRun):
                self._dry_run(event)
                continue
            tally = self._tally(work, event.conn)
            if isinstance(event, ipc.Closed):
                self._closed(work, tally, event)
                level = _level(event)
                if levels[level]:
                    self._log_closed(work, tally, event, level)
            elif isinstance(event, ipc.Opened):
                tally.series.opened += 1
                tally.live += 1
                if opening:
                    self._log_opened(work, tally, event.conn)
            else:
                received, sent = _request_first(event.conn, event.bytes_sent, event.bytes_recv)
                tally.series.received += received
                tally.series.sent += sent
        self._settle(self._live.setdefault(worker, {}), work)
        if work.lines:
            self._write("".join(work.lines))

    def worker_lost(self, worker: int, now: float) -> int:
        """Count the connections of a worker that died as closed; returns how many."""
        lost = self._live.pop(worker, {})
        for labels, count in lost.items():
            series = self.tcp.series(labels, "", now)
            series.closed += count
            series.live -= count
        return sum(lost.values())

    # ---- metrics -----------------------------------------------------------------------------

    def _tally(self, work: _Batch, conn: ipc.Connection) -> _Tally:
        # Within a batch equal parties are one object: identity is enough, and cheap.
        port = conn.dst[1] if conn.service is None else 0
        key = (
            id(conn.source),
            id(conn.destination),
            id(conn.service),
            port,
            conn.direction,
            conn.secure,
            conn.pod,
        )
        tally = work.tallies.get(key)
        if tally is None:
            kind = self._kind(conn)
            series = self.tcp.series(kind.labels, conn.pod, work.now)
            tally = work.tallies[key] = _Tally(kind, series)
        return tally

    def _kind(self, conn: ipc.Connection) -> _Kind:
        service = conn.service
        if service is None and conn.direction == "inbound":
            service = self._service_of(conn.pod, conn.dst[1])
        key = (conn.direction, conn.source, conn.destination, service, conn.secure)
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _CACHE:
                self._kinds.clear()
            name = service.hostname if service else ""
            line = Line(
                self._format,
                _party(conn.source, conn.secure),
                _party(conn.destination, conn.secure),
                conn.direction,
                name,
            )
            kind = self._kinds[key] = _Kind(_labels(conn, service), line)
        return kind

    def _closed(self, work: _Batch, tally: _Tally, event: ipc.Closed) -> None:
        series = tally.series
        if event.opened:
            tally.live -= 1
        else:
            series.opened += 1
        received, sent = _request_first(
            event.conn, event.bytes_sent - event.told_sent, event.bytes_recv - event.told_recv
        )
        series.received += max(0, received)
        series.sent += max(0, sent)
        if event.flag != "-":
            labels = tally.kind.labels._replace(response_flags=event.flag)
            series = self.tcp.series(labels, event.conn.pod, work.now)
            series.failed += 1
        series.closed += 1

    def _settle(self, live: dict[Labels, int], work: _Batch) -> None:
        """Bring the counts of open connections up to date."""
        for tally in work.tallies.values():
            labels, change = tally.kind.labels, tally.live
            if live.get(labels, 0) + change < 0:
                # The service guessed for them has changed since they were opened.
                like = (k for k in live if _but_service(k) == _but_service(labels))
                labels = max(like, key=lambda k: live[k], default=labels)
            count = live.get(labels, 0)
            change = max(change, -count)
            if change:
                self.tcp.series(labels, "", work.now).live += change
                live[labels] = count + change
            if not live.get(labels, 1):
                del live[labels]

    # ---- log ---------------------------------------------------------------------------------

    def _head(self, work: _Batch, level: str, message: str) -> str:
        head = work.heads.get(level)
        if head is None:
            head = work.heads[level] = self._format.head(work.wall, level, message)
        return head

    def _log_opened(self, work: _Batch, tally: _Tally, conn: ipc.Connection) -> None:
        head = self._head(work, access_log.DEBUG, access_log.OPENED)
        work.lines.append(tally.kind.line.render(head, *_addresses(conn)))

    def _log_closed(self, work: _Batch, tally: _Tally, event: ipc.Closed, level: str) -> None:
        src, dst, asked = _addresses(event.conn)
        if level == access_log.WARN:
            head = self._head(work, level, access_log.FAILED)
            line = self._early[event.conn.direction]
            work.lines.append(line.render(head, src, dst, error=event.error))
            return
        head = self._head(work, level, access_log.COMPLETE)
        counts = Counts(event.bytes_sent, event.bytes_recv, event.duration_ms)
        work.lines.append(tally.kind.line.render(head, src, dst, asked, counts, event.error))

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


def _labels(conn: ipc.Connection, service: ipc.ServiceRef | None) -> Labels:
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
    return Labels(**known)


def _but_service(labels: Labels) -> Labels:
    return labels._replace(
        destination_service="", destination_service_name="", destination_service_namespace=""
    )


def _join(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _party(peer: ipc.Peer, secure: bool) -> Party:
    return Party(
        peer.pod or peer.workload or peer.canonical_service,
        peer.namespace,
        peer.identity if secure else "",
        peer.cluster,
    )


def _addresses(conn: ipc.Connection) -> tuple[str, str, str]:
    """Give source, destination, and what the tunnel was asked for."""
    tunnel = conn.hbone
    if tunnel is None:
        return _join(conn.src), _join(conn.dst), ""
    if conn.direction == "inbound":
        tunnel = (conn.dst[0], INBOUND_HBONE)
    return _join(conn.src), _join(tunnel), _join(conn.dst)


def _level(event: ipc.Closed) -> str:
    """INFO it went well, ERROR it failed, WARN it was refused when only addresses were known."""
    if not event.error:
        return access_log.INFO
    if event.opened or event.flag == "DENY":
        return access_log.ERROR
    proved_nothing = event.conn.direction == "inbound" and not event.conn.secure
    return access_log.WARN if event.flag == "-" or proved_nothing else access_log.ERROR
