"""The node agent's one thread of events: it performs what the pure parts decide.

Pure: one PodMachine for each pod (enrol.py) and the Hub of proxies (hub.py). Here: their actions
carried out on sandboxes, redirections, sockets and the pod source, and what comes of it told back.
Events only mark what changed; `_settle` then works until nothing is left to do, so that no action
is ever started from within another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mesh.errors import MeshError
from node_agent import hub as h
from node_agent.enrol import Goal, PodMachine, Report, Rung, Step
from node_agent.metrics import Metrics
from node_agent.pods import Sandboxes
from node_agent.redirect import NFTABLES
from node_agent.sandbox import StepError
from node_agent.source import ENABLED, DesiredPod, PodSource, PodStatus
from node_agent.steps import Steps, Ways
from node_agent.zds_server import ZdsServer

log = logging.getLogger(__name__)

RECONCILE_INTERVAL: Final = 10.0  # seconds; finds what no event told
_DEBOUNCE: Final = 0.02
_HEARTBEAT: Final = 1.0


class Agent:
    """Keeps every pod of the node where it should be. Runs on one asyncio loop."""

    def __init__(
        self,
        source: PodSource,
        sandboxes: Sandboxes,
        ways: Ways,
        zds_path: Path,
        grace: float,
        metrics: Metrics,
        welcome: Callable[[int], None] | None = None,
    ) -> None:
        """`welcome`: called with the process of each proxy that connects; may raise MeshError."""
        self.machines: dict[str, PodMachine] = {}
        self.hub = h.Hub()
        self.ready = False
        self.heartbeat = time.monotonic()
        self.ways = ways
        self._source = source
        self._sandboxes = sandboxes
        self._grace = grace
        self._metrics = metrics
        self._welcome = welcome
        self._processes: dict[int, int] = {}  # connection of a proxy -> its process
        self._turned: dict[str, list[asyncio.Future[None]]] = {}  # who waits for a pod's next turn
        self._loop = asyncio.get_running_loop()
        self._server = ZdsServer(zds_path, self)
        self._outputs: deque[h.Output] = deque()
        self._steps = Steps(sandboxes, ways, self.hub, self._outputs, self._proved)
        self._dirty: dict[str, None] = {}  # a set that keeps its order
        self._unwritten: set[str] = set()
        self._settling = False
        self._stopping = False
        self._unheld = ""  # why the holder cannot keep listeners, as last logged
        self._timer: asyncio.TimerHandle | None = None
        self._due: asyncio.TimerHandle | None = None

    # ---- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Take over what an earlier agent left, then let proxies and changes in."""
        pods = self._source.pods()
        self._sandboxes.adopt(pods, self._source.expects)
        self._reconcile(pods)
        self._server.open()
        self._source.start(self._changed_elsewhere)
        self._loop.call_later(RECONCILE_INTERVAL, self._sweep)
        self._beat()
        self.ready = True

    async def stop(self) -> None:
        """Stop managing. What is captured stays so, and the holder keeps the listeners."""
        self.ready = False
        self._stopping = True  # from here on nothing is decided: all that follows is letting go
        self._server.close()
        await self._steps.stop()
        self._source.close()
        self._sandboxes.detach()

    def mode_of(self, uid: str) -> str:
        """Say how a pod is captured now, "" not at all."""
        sandbox = self._sandboxes.get(uid)
        return sandbox.mode if sandbox else ""

    # ---- for who starts pods (CniServer) ------------------------------------------------------

    def changed(self) -> None:
        """Look again at what is wanted, soon: a burst is one look."""
        self._changed()

    async def captured(self, uid: str, netns: str) -> None:
        """Return when a pod is captured in that namespace (the path its source gives)."""
        while not (self.is_captured(uid) and self.machines[uid].pod.netns == netns):
            turned = self._loop.create_future()
            self._turned.setdefault(uid, []).append(turned)
            try:
                await turned
            finally:
                waiting = self._turned.get(uid, [])
                if turned in waiting:
                    waiting.remove(turned)

    def is_captured(self, uid: str) -> bool:
        """Say whether a pod's connections are captured now, proved or not yet."""
        machine = self.machines.get(uid)
        return machine is not None and machine.goal is Goal.IN and machine.rung >= Rung.CAPTURED

    def obstacle(self, uid: str) -> str:
        """Say what keeps a pod from being captured."""
        machine = self.machines.get(uid)
        if machine is None:
            return "the node agent does not know the pod"
        if machine.failure is not None:
            return f"{machine.failure.reason}: {machine.failure.message}"
        if self.hub.newest() is None:
            return (
                "no ztunnel is connected to the node agent; see "
                "kubectl -n istio-system get pods -l app=ztunnel -o wide"
            )
        return f"it is {machine.state} still"

    # ---- events -------------------------------------------------------------------------------

    def proxy_connected(self, pid: int) -> int:
        """Take a proxy's connection (ZdsServer)."""
        if self._welcome:
            self._welcome(pid)
        number = self.hub.connected(time.monotonic())
        self._processes[number] = pid
        self._sandboxes.reclaimer.processes = set(self._processes.values())
        return number

    def proxy_received(self, number: int, data: bytes) -> None:
        """Take a proxy's datagram (ZdsServer)."""
        self._outputs.extend(self.hub.received(number, data, time.monotonic()))
        self._settle()

    def proxy_disconnected(self, number: int) -> None:
        """Take note of a proxy's end (ZdsServer)."""
        log.info("ztunnel %d disconnected", number)
        self._forget_process(number)
        self._outputs.extend(self.hub.disconnected(number, time.monotonic()))
        self._mark_all()
        self._settle()

    def _changed_elsewhere(self) -> None:
        """Hear of a change from the source's threads, which may outlive the loop."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._changed)

    def _changed(self) -> None:
        """Reconcile soon; a burst of changes is one."""
        if self._due is None:
            self._due = self._loop.call_later(_DEBOUNCE, self._reconcile_now)

    def _reconcile_now(self) -> None:
        self._due = None
        if self._stopping:
            return
        try:
            pods = self._source.pods()
        except (MeshError, OSError) as error:
            log.error("pods cannot be read: %s", error)
            return
        self._reconcile(pods)

    def _sweep(self) -> None:
        """Look at everything, in case an event was missed or a write failed."""
        if self._stopping:
            return
        self._loop.call_later(RECONCILE_INTERVAL, self._sweep)
        for uid in self._unwritten & set(self.machines):
            self.machines[uid].report_again()
        self._unwritten.clear()
        self._reconcile_now()
        if self.ways.ebpf:
            try:
                collected = self.ways.ebpf.datapath.collect()
            except (MeshError, OSError) as error:
                log.error("leftovers of dead pods cannot be collected: %s", error)
                return
            if collected:
                log.info("collected %d leftovers of dead pods", collected)

    def _beat(self) -> None:
        if self._stopping:
            return
        self.heartbeat = time.monotonic()
        self._loop.call_later(_HEARTBEAT, self._beat)
        complaint = ""
        try:
            self._sandboxes.mend()
        except (MeshError, OSError) as error:
            complaint = str(error)
        if complaint and complaint != self._unheld:
            log.error("listeners would not survive a restart of this agent: %s", complaint)
        self._unheld = complaint

    def _on_timer(self) -> None:
        now = time.monotonic()
        self._timer = None
        self._outputs.extend(self.hub.tick(now))
        for uid, machine in self.machines.items():
            wake = machine.wake_at()
            if wake is not None and wake <= now:
                self._dirty[uid] = None
        self._settle()

    # ---- deciding -----------------------------------------------------------------------------

    def _reconcile(self, pods: dict[str, DesiredPod]) -> None:
        captured = set(self.ways.ebpf.datapath.captured()) if self.ways.ebpf else set()
        for uid, pod in pods.items():
            if uid in self.machines:
                self.machines[uid].update(pod)
            elif pod.wants or pod.marked or uid in self._sandboxes or uid in captured:
                self.machines[uid] = self._new_machine(pod, uid in captured)
        for uid in set(self.machines) - set(pods):
            self.machines[uid].gone()
        for uid in self._sandboxes.moved(pods):
            log.info("pod %s: its runtime made a new sandbox", self.machines[uid].pod.title)
            self.machines[uid].rebuild()
        self._drop_strays(captured)
        self._mark_all()
        self._settle()

    def _drop_strays(self, captured: set[str]) -> None:
        """Let go of what an earlier agent left of pods that are gone."""
        for uid in captured - set(self.machines):
            if not self._source.expects(uid):
                log.info("pod %s ended while no agent ran: released", uid)
                self.ways.release_unknown(uid)
        for sandbox in self._sandboxes:
            if sandbox.uid not in self.machines and not self._source.expects(sandbox.uid):
                self._sandboxes.close(sandbox.uid)

    def _new_machine(self, pod: DesiredPod, hooked: bool) -> PodMachine:
        machine = PodMachine(pod, self._grace)
        sandbox = self._sandboxes.get(pod.uid)
        if sandbox is not None:
            machine.adopt(captured=hooked or sandbox.mode == NFTABLES)
        elif hooked or pod.marked:
            served = hooked and self.ways.ebpf and self.ways.ebpf.datapath.served(pod.uid)
            machine.remains(served=bool(served))
        return machine

    def _mark_all(self) -> None:
        self._dirty.update(dict.fromkeys(self.machines))

    def _settle(self) -> None:
        """Perform outputs and actions until there are none."""
        if self._settling or self._stopping:
            return
        self._settling = True
        try:
            while self._outputs or self._dirty:
                if self._outputs:
                    self._apply(self._outputs.popleft())
                else:
                    uid = next(iter(self._dirty))
                    del self._dirty[uid]
                    self._turn(uid)
        finally:
            self._settling = False
        self._arm()
        self._metrics.set_states(m.state for m in self.machines.values())
        self._metrics.ztunnel_connected.set(len(self.hub.sessions))

    def _arm(self) -> None:
        """Set the one timer to the earliest deadline of all."""
        times = [self.hub.wake_at(), *(m.wake_at() for m in self.machines.values())]
        earliest = min((t for t in times if t is not None), default=None)
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if earliest is not None:
            delay = max(0.0, earliest - time.monotonic())
            self._timer = self._loop.call_later(delay, self._on_timer)

    def _turn(self, uid: str) -> None:
        """Have one pod's machine do what it can do now, then tell who waits for it."""
        machine = self.machines.get(uid)
        if machine is None:
            return
        self._advance(uid, machine)
        waiting = self._turned.pop(uid, None)
        for turned in waiting or ():
            if not turned.done():
                turned.set_result(None)

    def _advance(self, uid: str, machine: PodMachine) -> None:
        proxy = self.hub.newest() is not None
        while (action := machine.poll(time.monotonic(), proxy)) is not None:
            if isinstance(action, Report):
                self._report(machine, action.status)
                continue
            try:
                finished = self._steps.perform(machine, action)
            except Exception as error:  # whatever it is, the step is tried again later
                self._fail(machine, action, error)
            else:
                if finished:
                    machine.done(action)
        if machine.finished:
            kind = "gone" if machine.goal is Goal.GONE else "remove"
            self._metrics.events.labels(kind).inc()
            del self.machines[uid]

    def _proved(self, machine: PodMachine, error: Exception | None) -> None:
        """Take the outcome of a proof."""
        uid = machine.pod.uid
        first = machine.status is None or machine.status.redirection != ENABLED
        if not machine.awaits(Step.PROVE):
            return
        if error is not None:
            self._fail(machine, Step.PROVE, error)
        else:
            machine.done(Step.PROVE)
            if first and machine.since is not None:
                took = time.monotonic() - machine.since
                self._metrics.enrolment.observe(took)
                self._metrics.events.labels("add").inc()
                log.info("pod %s: captured and proved in %.2f s", machine.pod.title, took)
        self._dirty[uid] = None
        self._settle()

    def _fail(self, machine: PodMachine, step: Step, error: Exception) -> None:
        reason = error.reason if isinstance(error, StepError) else f"{step.value.title()}Failed"
        unexpected = None if isinstance(error, MeshError | OSError) else error
        self._metrics.step_failures.labels(reason).inc()
        log.warning("pod %s: %s: %s", machine.pod.title, step.value, error, exc_info=unexpected)
        machine.failed(step, reason, str(error), time.monotonic())

    def _report(self, machine: PodMachine, status: PodStatus | None) -> None:
        try:
            self._source.report(machine.pod, status)
        except (MeshError, OSError) as error:
            log.warning("status of pod %s cannot be written: %s", machine.pod.title, error)
            self._unwritten.add(machine.pod.uid)

    def _apply(self, output: h.Output) -> None:
        """Perform one output of the hub."""
        now = time.monotonic()
        match output:
            case h.Send():
                fds = self._steps.descriptors(output.request)
                if not self._server.send(output.session, output.request, fds):
                    self._outputs.extend(self.hub.disconnected(output.session, now))
                    self._mark_all()
            case h.Drop():
                log.warning("ztunnel %d dropped: %s", output.session, output.reason)
                self._forget_process(output.session)
                self._server.drop(output.session)
                self._mark_all()
            case h.Greeted():
                kind = "takes" if output.held_listeners else "does not take"
                log.info("ztunnel %d connected; it %s held listeners", output.session, kind)
                self._fit_proxy()
                self._outputs.extend(self.hub.start(output.session, now))
            case h.Synced():
                log.info("ztunnel %d has acknowledged every pod", output.session)
            case h.Acked():
                self._tell(output.uid, lambda machine: machine.served())
            case h.Refused():
                self._tell(output.uid, lambda machine: machine.refused(output.reason, now))
            case h.Withdrawn():
                self._tell(output.uid, lambda machine: machine.done(Step.WITHDRAW))

    def _forget_process(self, number: int) -> None:
        self._processes.pop(number, None)
        self._sandboxes.reclaimer.processes = set(self._processes.values())

    def _fit_proxy(self) -> None:
        """Have every pod ready in the way the newest proxy needs, before it hears of any."""
        newest = self.hub.newest()
        for machine in self.machines.values():
            sandbox = self._sandboxes.get(machine.pod.uid)
            if newest and sandbox and bool(sandbox.listeners) != newest.held_listeners:
                machine.rebuild()
            elif machine.failure is not None:
                machine.nudge()
        for uid in list(self.machines):
            self._turn(uid)

    def _tell(self, uid: str, event: Callable[[PodMachine], None]) -> None:
        machine = self.machines.get(uid)
        if machine is not None:
            event(machine)
            self._dirty[uid] = None
