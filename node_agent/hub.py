"""Which proxy is told what: the agent's side of ZDS, without sockets.

Several proxies may be connected, because an upgrade overlaps two. Each gets the whole snapshot when
it has said hello; later adds go to the newest alone, deletes to every proxy that was told of the
pod. When the newest leaves, the one before it gets what it missed. To each proxy there is one
request in flight at a time, answered within ACK_DEADLINE or the connection is given up.

The shell feeds bytes and the clock and performs the returned outputs, in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from mesh.errors import BadInput
from mesh.wire import zds


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod as proxies hear of it. roles: listeners the agent holds, in the order of their fds."""

    uid: str
    namespace: str
    name: str
    service_account: str
    roles: tuple[int, ...]
    redirect: int

    def request(self, held_listeners: bool) -> zds.Add:
        """Word it for a proxy that takes our listeners, or for one that opens its own."""
        roles, redirect = (self.roles, self.redirect) if held_listeners else ((), 0)
        return zds.Add(self.uid, self.name, self.namespace, self.service_account, roles, redirect)


# ---- outputs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send one datagram; an Add goes with the pod's netns and the listeners it names."""

    session: int
    request: zds.Request


@dataclass(frozen=True, slots=True)
class Drop:
    """Close a proxy's connection; the hub has forgotten it."""

    session: int
    reason: str


@dataclass(frozen=True, slots=True)
class Greeted:
    """A proxy said hello. Bring the wants up to date, then call start()."""

    session: int
    held_listeners: bool


@dataclass(frozen=True, slots=True)
class Synced:
    """A proxy has acknowledged the whole snapshot."""

    session: int


@dataclass(frozen=True, slots=True)
class Acked:
    """A proxy serves this pod as it was last wanted."""

    uid: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The newest proxy will not or cannot serve this pod, and says why."""

    uid: str
    reason: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """No connected proxy serves this pod any more."""

    uid: str


Output = Send | Drop | Greeted | Synced | Acked | Refused | Withdrawn


@dataclass(frozen=True, slots=True)
class _Entry:
    """A request that waits for its turn; `what` is a class of mesh.wire.zds."""

    what: type[zds.Add] | type[zds.Keep] | type[zds.Del] | type[zds.SnapshotSent]
    uid: str = ""
    generation: int = 0  # of the want that was sent; set when it is sent


@dataclass(slots=True)
class Session:
    """One connected proxy."""

    number: int
    since: float
    held_listeners: bool | None = None  # None until hello
    started: bool = False
    synced: bool = False
    deadline: float | None = None  # of the hello or of the ack
    in_flight: _Entry | None = None
    queue: deque[_Entry] = field(default_factory=deque)
    told: set[str] = field(default_factory=set)  # uids it may be serving
    serving: set[str] = field(default_factory=set)  # uids it acknowledged


class Hub:
    """All connected proxies and all wanted workloads."""

    def __init__(self) -> None:
        self.sessions: dict[int, Session] = {}  # in order of arrival
        self._next = 1
        self._wanted: dict[str, tuple[Workload, int]] = {}  # uid -> workload, generation
        self._kept: set[str] = set()
        self._generation = 0
        self._leaving: dict[str, set[int]] = {}  # uid -> sessions whose del is not yet answered

    # ---- wants --------------------------------------------------------------------------------

    def want(self, workload: Workload, now: float) -> list[Output]:
        """Have the workload served by the newest proxy and by all to come; again means anew."""
        self._generation += 1
        self._wanted[workload.uid] = (workload, self._generation)
        self._kept.discard(workload.uid)
        self._leaving.pop(workload.uid, None)
        newest = self.newest()
        if newest is None or not newest.started:
            return []
        self._unqueue(newest, workload.uid)
        newest.queue.append(_Entry(zds.Add, workload.uid))
        return self._pump(newest, now)

    def keep(self, uid: str) -> None:
        """Tell proxies to come that they may go on serving a pod whose netns we cannot open."""
        if uid not in self._wanted:
            self._kept.add(uid)

    def unwant(self, uid: str, now: float, everyone: bool = False) -> list[Output]:
        """Have no proxy serve it; Withdrawn follows when that is so.

        `everyone`: tell also proxies that were not told of it here: an earlier agent may have.
        """
        self._wanted.pop(uid, None)
        self._kept.discard(uid)
        outputs: list[Output] = []
        waiting = set()
        for session in self.sessions.values():
            self._unqueue(session, uid)
            greeted = session.held_listeners is not None
            if greeted and (everyone or uid in session.told):
                waiting.add(session.number)
                session.queue.append(_Entry(zds.Del, uid))
        self._leaving[uid] = waiting
        for number in waiting:
            outputs += self._pump(self.sessions[number], now)
        return outputs + self._settle(uid)

    # ---- proxies ------------------------------------------------------------------------------

    def connected(self, now: float) -> int:
        """Take a new connection; it has ACK_DEADLINE to say hello."""
        number = self._next
        self._next += 1
        self.sessions[number] = Session(number, now, deadline=now + zds.ACK_DEADLINE)
        return number

    def start(self, number: int, now: float) -> list[Output]:
        """Send the snapshot to a proxy that was Greeted."""
        session = self.sessions.get(number)
        if session is None or session.started:
            return []
        session.started = True
        entries = [_Entry(zds.Add, uid) for uid in self._wanted]
        entries += [_Entry(zds.Keep, uid) for uid in sorted(self._kept)]
        session.queue.extend([*entries, _Entry(zds.SnapshotSent)])
        return self._pump(session, now)

    def received(self, number: int, data: bytes, now: float) -> list[Output]:
        """Take one datagram from a proxy."""
        session = self.sessions.get(number)
        if session is None:
            return []
        try:
            if session.held_listeners is None:
                hello = zds.decode_hello_untrusted(data)
                session.held_listeners = hello.held_listeners
                session.deadline = None
                return [Greeted(number, hello.held_listeners)]
            ack = zds.decode_response_untrusted(data)
        except BadInput as error:
            return self._drop(session, str(error), now)
        if session.in_flight is None:
            return self._drop(session, "an ack that nothing was sent for", now)
        entry, session.in_flight, session.deadline = session.in_flight, None, None
        return self._answered(session, entry, ack.error) + self._pump(session, now)

    def disconnected(self, number: int, now: float) -> list[Output]:
        """Take note that a proxy's connection has ended."""
        session = self.sessions.get(number)
        return self._forget(session, now) if session else []

    def tick(self, now: float) -> list[Output]:
        """Give up proxies that have not answered in time."""
        outputs: list[Output] = []
        for session in list(self.sessions.values()):
            if session.deadline is None or now < session.deadline:
                continue
            entry = session.in_flight
            if entry is None:
                outputs += self._drop(session, "no hello in time", now)
                continue
            reason = f"ztunnel did not answer within {zds.ACK_DEADLINE:.0f} s"
            if entry.what is zds.Add and session is self.newest():
                outputs.append(Refused(entry.uid, reason))
            outputs += self._drop(session, f"{entry.what.__name__} {entry.uid}: {reason}", now)
        return outputs

    def wake_at(self) -> float | None:
        """When tick() will next have something to do."""
        deadlines = [s.deadline for s in self.sessions.values() if s.deadline is not None]
        return min(deadlines, default=None)

    def newest(self) -> Session | None:
        """Give the proxy that adds go to: the last that said hello."""
        greeted = [s for s in self.sessions.values() if s.held_listeners is not None]
        return greeted[-1] if greeted else None

    # ---- inside -------------------------------------------------------------------------------

    def _answered(self, session: Session, entry: _Entry, error: str) -> list[Output]:
        if entry.what is zds.SnapshotSent:
            session.synced = True
            return [Synced(session.number)]
        if entry.what is zds.Del:
            # An error here means that it never knew the pod, which is what was asked for.
            session.told.discard(entry.uid)
            session.serving.discard(entry.uid)
            self._leaving.get(entry.uid, set()).discard(session.number)
            return self._settle(entry.uid)
        if entry.what is not zds.Add:
            return []
        current = self._wanted.get(entry.uid, (None, -1))[1] == entry.generation
        if error:
            session.serving.discard(entry.uid)
            return [Refused(entry.uid, error)] if current and session is self.newest() else []
        session.serving.add(entry.uid)
        return [Acked(entry.uid)] if current else []

    def _pump(self, session: Session, now: float) -> list[Output]:
        if session.in_flight is not None or not session.queue:
            return []
        entry = session.queue.popleft()
        request: zds.Request
        if entry.what is zds.Add:
            workload, generation = self._wanted[entry.uid]
            entry = _Entry(zds.Add, entry.uid, generation)
            session.told.add(entry.uid)
            request = workload.request(bool(session.held_listeners))
        elif entry.what is zds.Keep:
            session.told.add(entry.uid)
            request = zds.Keep(entry.uid)
        elif entry.what is zds.Del:
            request = zds.Del(entry.uid)
        else:
            request = zds.SnapshotSent()
        session.in_flight = entry
        session.deadline = now + zds.ACK_DEADLINE
        return [Send(session.number, request)]

    def _unqueue(self, session: Session, uid: str) -> None:
        """Take back what was not yet sent about a pod (a del too: a new want supersedes it)."""
        session.queue = deque(e for e in session.queue if e.uid != uid)

    def _settle(self, uid: str) -> list[Output]:
        if uid in self._leaving and not self._leaving[uid]:
            del self._leaving[uid]
            return [Withdrawn(uid)]
        return []

    def _drop(self, session: Session, reason: str, now: float) -> list[Output]:
        return [Drop(session.number, reason), *self._forget(session, now)]

    def _forget(self, session: Session, now: float) -> list[Output]:
        was_newest = session is self.newest()
        del self.sessions[session.number]
        outputs: list[Output] = []
        for uid, waiting in list(self._leaving.items()):
            waiting.discard(session.number)
            outputs += self._settle(uid)
        heir = self.newest()
        if not was_newest or heir is None or not heir.started:
            return outputs
        coming = {e.uid for e in heir.queue}
        sent = heir.in_flight
        if sent and self._wanted.get(sent.uid, (None, -1))[1] == sent.generation:
            coming.add(sent.uid)
        for uid in self._wanted:
            if uid not in heir.serving and uid not in coming:
                heir.queue.append(_Entry(zds.Add, uid))
        return outputs + self._pump(heir, now)
