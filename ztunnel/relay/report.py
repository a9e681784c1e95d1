"""Flows, and what of them is told to the control process: batched, cheap per connection.

A sweep every few seconds finds what lives long: it reports its bytes and closes what was idle or
half-open for too long, so that the byte path itself never looks at a clock.
"""

from __future__ import annotations

from typing import Final

from ztunnel import ipc
from ztunnel.relay.loop import Handler, Loop

SWEEP: Final = 5.0
LONG: Final = 1.0  # seconds; what ends sooner is told once, by Closed
PEER_WAIT: Final = 2.0  # how long a report waits for the name of a peer
NONE_SEEN: Final = -1


class Owner(Handler):
    """What holds a flow: it can be told to give it up, and says how far it is closed."""

    def abort(self, flag: str, error: str) -> None:
        """Reset both ends; the flow is reported with this flag and text."""
        raise NotImplementedError

    def half_closed(self) -> bool:
        """One direction is over."""
        raise NotImplementedError

    def on_crash(self, error: BaseException) -> None:
        """See Handler."""
        self.abort("-", f"internal error: {error!r}")


class Flow:
    """One captured connection as telemetry sees it: who, how many bytes, how it ended."""

    def __init__(self, now: float) -> None:
        self.conn: ipc.Connection | None = None
        self.started: float = now
        self.ended: float = 0.0
        self.sent: int = 0  # toward the far end
        self.recv: int = 0
        self.told_sent: int = 0  # of those, reported by Progress
        self.told_recv: int = 0
        self.seen: int = NONE_SEEN  # sent + recv at the last sweep
        self.quiet_since: float = now
        self.opened: bool = False
        self.flag: str = "-"
        self.error: str = ""
        self.owner: Owner | None = None
        self.home: dict[Flow, None] = {}  # the pod's flows

    def resolve(self, final: bool) -> ipc.Connection | None:
        """Who this is, or None while a name is still asked for; final: do not wait any longer."""
        return self.conn


class Reporter(Handler):
    """Collects events; a ticker of the loop."""

    def __init__(self, loop: Loop, idle: float, half_open: float) -> None:
        super().__init__()
        self.loop = loop
        self.idle = idle
        self.half_open = half_open
        self.flows: dict[Flow, None] = {}
        self._opened: list[Flow] = []
        self._closed: list[Flow] = []
        self._dry: list[tuple[Flow, str]] = []
        self._next_sweep: float = loop.now + SWEEP

    def add(self, flow: Flow) -> None:
        """Watch a flow until `closed`."""
        self.flows[flow] = None

    def opened(self, flow: Flow) -> None:
        """Its bytes may move."""
        if not flow.opened:
            flow.opened = True
            self._opened.append(flow)

    def closed(self, flow: Flow, flag: str, error: str) -> None:
        """It is over."""
        if flow.ended:
            return
        flow.ended = self.loop.now
        flow.flag = flag
        flow.error = error
        flow.owner = None
        self.flows.pop(flow, None)
        flow.home.pop(flow, None)
        self._closed.append(flow)

    def dry_run(self, flow: Flow, policy: str) -> None:
        """A policy that is only tried would have refused it."""
        self._dry.append((flow, policy))

    def take(self) -> tuple[ipc.Opened | ipc.Closed | ipc.Progress | ipc.DryRun, ...]:
        """Everything since the last call whose parties are known."""
        if not (self._opened or self._closed or self._dry):
            return ()
        events: list[ipc.Opened | ipc.Closed | ipc.Progress | ipc.DryRun] = []
        final = self.loop.now - PEER_WAIT
        wait_open: list[Flow] = []
        for flow in self._opened:
            conn = flow.resolve(flow.started < final)
            if conn is None:
                wait_open.append(flow)
            else:
                events.append(ipc.Opened(conn))
        self._opened = wait_open
        wait_dry: list[tuple[Flow, str]] = []
        for flow, policy in self._dry:
            conn = flow.resolve(flow.started < final)
            if conn is None:
                wait_dry.append((flow, policy))
            else:
                events.append(ipc.DryRun(conn, policy))
        self._dry = wait_dry
        wait_closed: list[Flow] = []
        for flow in self._closed:
            conn = flow.resolve(flow.started < final)
            if conn is None:
                wait_closed.append(flow)
            else:
                ms = int((flow.ended - flow.started) * 1000)
                events.append(
                    ipc.Closed(
                        conn,
                        flow.sent,
                        flow.recv,
                        ms,
                        flow.flag,
                        flow.error,
                        flow.opened,
                        flow.told_sent,
                        flow.told_recv,
                    )
                )
        self._closed = wait_closed
        return tuple(events)

    def sweep(self) -> tuple[ipc.Progress, ...]:
        """Progress of flows that live long, when it is time; closes idle and half-open ones."""
        now = self.loop.now
        if now < self._next_sweep:
            return ()
        self._next_sweep = now + SWEEP
        events: list[ipc.Progress] = []
        for flow in list(self.flows):
            total = flow.sent + flow.recv
            if total != flow.seen:
                flow.seen = total
                flow.quiet_since = now
                conn = flow.conn
                if flow.opened and conn is not None and now - flow.started >= LONG:
                    events.append(
                        ipc.Progress(conn, flow.sent - flow.told_sent, flow.recv - flow.told_recv)
                    )
                    flow.told_sent = flow.sent
                    flow.told_recv = flow.recv
            elif flow.owner is not None:
                self._judge_quiet(flow, flow.owner, now - flow.quiet_since)
        return tuple(events)

    def _judge_quiet(self, flow: Flow, owner: Owner, quiet: float) -> None:
        if quiet >= self.idle:
            owner.abort("-", f"idle for {self.idle:g} s")
        elif quiet >= self.half_open and owner.half_closed():
            owner.abort("-", f"half-closed and idle for {self.half_open:g} s")
