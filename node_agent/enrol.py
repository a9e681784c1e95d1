"""How one pod gets into the mesh and out again: the state machine, without any I/O.

Theory. A pod climbs one ladder, one step at a time, and each rung is kept by something real:

    ABSENT --LISTEN--> LISTENING --ANNOUNCE--> ANNOUNCED --CAPTURE--> CAPTURED --PROVE--> PROVED

    LISTEN    open its netns, check that it holds the pod's addresses, make the listening sockets
    ANNOUNCE  hand netns and listeners to ztunnel; done when ztunnel acknowledged that it serves it
    CAPTURE   put the redirection in
    PROVE     connect through it, both ways; done when the connections arrived where they must

and comes down by RELEASE (redirection out), a grace in which established peers still reach 15008,
WITHDRAW (ztunnel told to forget) and CLOSE. A pod that is gone comes down at once, without grace.

Rules.
1. `poll` gives one action; the shell performs it and says `done` or `failed`. ANNOUNCE, PROVE and
   WITHDRAW may take time; while one runs `poll` gives nothing, unless the goal turned round: then
   it is abandoned, and the step that undoes it comes next.
2. What was begun is undone, even if it never succeeded: `_touched` is the highest rung ever tried.
3. A failure keeps the rung, says why in the status and tries again after a back-off. A failed
   proof falls back below CAPTURE, so that the redirection is put in anew before the next proof.
4. `enabled` is said only after a proof. A pod once proved stays `enabled` through an agent's or a
   ztunnel's restart (its traffic is still captured) and through one failed re-proof; the second
   failure makes it `pending`.
5. The status is reported only when it changes, after the actions that made it true: hooks are
   released first, the annotation goes second.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from node_agent.source import ENABLED, PENDING, DesiredPod, PodStatus

BACKOFF_FIRST: Final = 0.25  # seconds
BACKOFF_MAX: Final = 30.0
_FORGIVEN: Final = 1  # failures after which a proved pod still counts as captured

_PROVED_STATUS: Final = PodStatus(ENABLED, "Proved", "a connection through its own hooks arrived")


class Rung(IntEnum):
    """What stands for a pod now."""

    ABSENT = 0
    LISTENING = 1
    ANNOUNCED = 2
    CAPTURED = 3
    PROVED = 4


class Step(Enum):
    """What the shell is asked to do."""

    LISTEN = "listen"
    ANNOUNCE = "announce"
    CAPTURE = "capture"
    PROVE = "prove"
    RELEASE = "release"
    WITHDRAW = "withdraw"
    CLOSE = "close"


class Goal(Enum):
    """Where a pod should end: in the mesh, out of it, or it is gone altogether."""

    IN = "in"
    OUT = "out"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Report:
    """Write this status; None removes what was written."""

    status: PodStatus | None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the last try of a step did not succeed; reason is one CamelCase word."""

    step: Step
    reason: str
    message: str


_UP: Final = {
    Rung.ABSENT: Step.LISTEN,
    Rung.LISTENING: Step.ANNOUNCE,
    Rung.ANNOUNCED: Step.CAPTURE,
    Rung.CAPTURED: Step.PROVE,
}
# Rung reached when the step succeeds; climbing steps also touch it when they start.
_REACHES: Final = {
    Step.LISTEN: Rung.LISTENING,
    Step.ANNOUNCE: Rung.ANNOUNCED,
    Step.CAPTURE: Rung.CAPTURED,
    Step.PROVE: Rung.PROVED,
    Step.RELEASE: Rung.ANNOUNCED,
    Step.WITHDRAW: Rung.LISTENING,
    Step.CLOSE: Rung.ABSENT,
}
_CLIMBING: Final = frozenset(_UP.values())


class PodMachine:
    """One pod's place on the ladder. `now` is any monotonic clock, seconds."""

    def __init__(self, pod: DesiredPod, grace: float) -> None:
        self.pod = pod
        self.goal = Goal.IN if pod.wants else Goal.OUT
        self.rung = Rung.ABSENT
        self.failure: Failure | None = None
        self.since: float | None = None  # when the way up began, for the duration metric
        self._grace = grace
        self._touched = Rung.ABSENT
        self._running: Step | None = None
        self._attempts = 0
        self._retry_at: float | None = None
        self._grace_until: float | None = None
        self._proved = False
        self._proxy = False
        self._unreported = True
        self._reported: PodStatus | None = None

    # ---- what happened ------------------------------------------------------------------------

    def adopt(self, captured: bool) -> None:
        """Its listeners outlived an earlier agent; `captured`: so did its redirection.

        ztunnel and the proof are asked anew; meanwhile a pod that was `enabled` stays so if it is
        still captured.
        """
        self.rung = Rung.LISTENING
        self._touched = Rung.CAPTURED if captured else Rung.ANNOUNCED
        self._proved = captured and self.pod.marked == ENABLED

    def remains(self, served: bool = False) -> None:
        """An earlier agent left a redirection or half of one: coming down must take it out.

        `served`: it is whole, and what it leads to is there: a proxy must have it. A pod that was
        `enabled` stays so then.
        """
        self._touched = Rung.CAPTURED
        self._proved = served and self.pod.marked == ENABLED

    def update(self, pod: DesiredPod) -> None:
        """Take the pod's present description."""
        old, self.pod = self.pod, pod
        if (old.addresses, old.netns, old.cgroup) != (pod.addresses, pod.netns, pod.cgroup):
            self.rebuild()
        elif old.probe_ports != pod.probe_ports:
            self.rung = min(self.rung, Rung.ANNOUNCED)
            if self._running is Step.PROVE:
                self._running = None  # it would prove what was captured before
        if pod.wants is not None:
            self._aim(Goal.IN if pod.wants else Goal.OUT)

    def gone(self) -> None:
        """The pod's sandbox is no more."""
        self._aim(Goal.GONE)

    def rebuild(self) -> None:
        """Its sandbox or the kind of proxy changed: start over, without opening it meanwhile."""
        self.rung = Rung.ABSENT
        self._proved = False
        if self._running in _CLIMBING:
            self._running = None
        self.nudge()

    def served(self) -> None:
        """Tell that a proxy acknowledged the pod; a captured pod is proved again."""
        if self._running is Step.ANNOUNCE:
            self.done(Step.ANNOUNCE)
        elif self.goal is Goal.IN and self.rung is Rung.PROVED:
            self.rung = Rung.CAPTURED

    def refused(self, message: str, now: float) -> None:
        """Tell that the proxy which should serve the pod says it cannot."""
        if self._running is Step.ANNOUNCE:
            self.failed(Step.ANNOUNCE, "ZtunnelRefused", message, now)
        elif self.goal is Goal.IN and self.rung >= Rung.ANNOUNCED:
            self.rung = Rung.LISTENING
            self._running = None  # a proof without a proxy proves nothing
            self._fail(Failure(Step.ANNOUNCE, "ZtunnelRefused", message), now)

    def awaits(self, step: Step) -> bool:
        """Whether the outcome of `step` still matters: it was not abandoned meanwhile."""
        return step is self._running

    def done(self, step: Step) -> None:
        """`step` succeeded. A step that was abandoned meanwhile is ignored."""
        if not self.awaits(step):
            return
        self._running = None
        reached = _REACHES[step]
        if step in _CLIMBING:
            self.rung = reached
        else:
            self.rung = min(self.rung, reached)
            self._touched = min(self._touched, reached)
            self._proved = False
        if self.failure and self.failure.step is step:
            self.failure = None
        if reached is Rung.PROVED:
            self._proved = True
            self.failure = None
            self._attempts = 0

    def failed(self, step: Step, reason: str, message: str, now: float) -> None:
        """`step` did not succeed. A step that was abandoned meanwhile is ignored."""
        if not self.awaits(step):
            return
        self._running = None
        if step is Step.PROVE:
            self.rung = Rung.ANNOUNCED
        self._fail(Failure(step, reason, message), now)

    def nudge(self) -> None:
        """Something outside changed: what failed is tried again now."""
        self._retry_at = None
        self._attempts = 0

    def report_again(self) -> None:
        """The last report could not be written."""
        self._unreported = True

    # ---- what to do ---------------------------------------------------------------------------

    def poll(self, now: float, proxy: bool) -> Step | Report | None:
        """Give the next action, or None while there is nothing to do. `proxy`: one is connected."""
        self._proxy = proxy
        status = self._status()
        if self._unreported or status != self._reported:
            self._unreported = False
            self._reported = status
            return Report(status)
        if self._running is not None or (self._retry_at is not None and now < self._retry_at):
            return None
        self._retry_at = None
        step = self._up(now) if self.goal is Goal.IN else self._down(now)
        if step is not None:
            self._running = step
            if step in _CLIMBING:
                self._touched = max(self._touched, _REACHES[step])
        return step

    def wake_at(self) -> float | None:
        """When poll() may have something that no event announces."""
        if self._running is not None:
            return None
        return self._grace_until if self._retry_at is None else self._retry_at

    @property
    def finished(self) -> bool:
        """Nothing is left of a pod that is not wanted: the machine can be dropped."""
        return (
            self.goal is not Goal.IN
            and self._touched is Rung.ABSENT
            and self._running is None
            and not self._unreported
            and self._reported is None
        )

    @property
    def may_be_captured(self) -> bool:
        """A redirection may be in, whole or in part."""
        return self._touched >= Rung.CAPTURED

    @property
    def state(self) -> str:
        """One word for metrics and `ambit status`."""
        if self.goal is not Goal.IN:
            return "absent" if self._touched is Rung.ABSENT else "releasing"
        return "failed" if self.failure else self.rung.name.lower()

    @property
    def status(self) -> PodStatus | None:
        """What was last reported."""
        return self._reported

    # ---- inside -------------------------------------------------------------------------------

    def _aim(self, goal: Goal) -> None:
        if goal is self.goal:
            return
        self.goal = goal
        self.failure = None
        self.since = None
        self._grace_until = None
        self.nudge()
        # A climbing step has no business any more. An unhurried WITHDRAW is overtaken by the
        # pod's end; otherwise it finishes first, so that an add never overtakes its del.
        if goal is Goal.GONE or (goal is Goal.OUT and self._running in _CLIMBING):
            self._running = None

    def _up(self, now: float) -> Step | None:
        self._grace_until = None
        if self.since is None:
            self.since = now
        if self.rung is Rung.ABSENT and not self._proxy:
            return None  # which listeners are ours to make depends on the proxy
        return _UP.get(self.rung)

    def _down(self, now: float) -> Step | None:
        if self._touched >= Rung.CAPTURED:
            return Step.RELEASE
        if self._touched is Rung.ANNOUNCED:
            if self.goal is Goal.OUT and self.rung is Rung.ANNOUNCED:
                if self._grace_until is None:
                    self._grace_until = now + self._grace
                if now < self._grace_until:
                    return None
            self._grace_until = None
            return Step.WITHDRAW
        return Step.CLOSE if self._touched is Rung.LISTENING else None

    def _fail(self, failure: Failure, now: float) -> None:
        self.failure = failure
        self._attempts += 1
        self._retry_at = now + min(BACKOFF_FIRST * 2 ** min(self._attempts - 1, 16), BACKOFF_MAX)
        if self._attempts > _FORGIVEN:
            self._proved = False

    def _status(self) -> PodStatus | None:
        if self.goal is not Goal.IN:
            still_captured = self.goal is Goal.OUT and self._touched >= Rung.CAPTURED
            return self._reported if still_captured else None
        if self._proved:
            return _PROVED_STATUS
        if self.failure:
            return PodStatus(PENDING, self.failure.reason, self.failure.message)
        if not self._proxy:
            return PodStatus(PENDING, "NoZtunnel", "no ztunnel is connected to the node agent")
        return PodStatus(PENDING, "Enrolling", "not proved yet")
