"""The state machine of one pod, driven like the shell drives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.enrol import BACKOFF_MAX, PodMachine, Report, Rung, Step
from node_agent.source import ENABLED, PENDING, DesiredPod, PodStatus

GRACE = 3.0
POD = DesiredPod(
    uid="u1",
    namespace="shop",
    name="cart",
    service_account="cart",
    addresses=("10.244.1.5",),
    netns="/run/netns/p",
    cgroup="/sys/fs/cgroup/p",
    probe_ports=(8080,),
    wants=True,
)
SLOW = {Step.ANNOUNCE, Step.PROVE, Step.WITHDRAW}


@dataclass
class World:
    """A pod's machine with the machine room it acts upon, as plain flags."""

    pod: DesiredPod = POD
    now: float = 100.0
    proxy: bool = True
    broken: set[Step] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    reports: list[PodStatus | None] = field(default_factory=list)
    running: Step | None = None
    listening: bool = False
    announced: bool = False
    captured: bool = False

    def __post_init__(self) -> None:
        self.machine = PodMachine(self.pod, GRACE)

    def turn(self) -> None:
        """Perform what the machine wants, finishing quick steps at once."""
        while (action := self.machine.poll(self.now, self.proxy)) is not None:
            if isinstance(action, Report):
                self.reports.append(action.status)
                continue
            self.steps.append(action)
            self.running = None
            self._begin(action)
            if action in self.broken:
                self.machine.failed(action, "Broken", f"{action.value} is broken", self.now)
            elif action in SLOW and not (action is Step.WITHDRAW and not self.pod_lives):
                self.running = action
            else:
                self._end(action)

    pod_lives: bool = True

    def _begin(self, step: Step) -> None:
        """Check that a step's ground is there; a begun capture may be half in."""
        if step is Step.ANNOUNCE:
            assert self.listening
        elif step is Step.CAPTURE:
            assert self.listening
            assert self.announced
            self.captured = True
        elif step is Step.PROVE:
            assert self.captured
        elif step is Step.CLOSE:
            assert not self.captured
            assert not self.announced
        elif step is Step.WITHDRAW:
            assert not self.captured, "ztunnel told to forget a pod that is still captured"

    def _end(self, step: Step) -> None:
        if step is Step.LISTEN:
            self.listening = True
        elif step is Step.ANNOUNCE:
            self.announced = True
        elif step is Step.RELEASE:
            self.captured = False
        elif step is Step.WITHDRAW:
            self.announced = False
        elif step is Step.CLOSE:
            self.listening = False
        self.machine.done(step)

    def finish(self) -> None:
        """Let the slow step that runs succeed."""
        step, self.running = self.running, None
        assert step is not None
        if step is Step.ANNOUNCE:
            self.announced = True
            self.machine.served()
        else:
            self._end(step)
        self.turn()

    def fail(self, reason: str = "NotProved") -> None:
        """Let the slow step that runs fail."""
        step, self.running = self.running, None
        assert step is not None
        self.machine.failed(step, reason, f"{step.value} failed", self.now)
        self.turn()

    def settle(self) -> None:
        """Turn, finish slow steps and wait out timers until nothing more happens."""
        self.turn()
        for _ in range(50):
            if self.running is not None:
                self.finish()
            elif (wake := self.machine.wake_at()) is not None:
                self.now = max(self.now, wake)
                self.turn()
            else:
                return
        raise AssertionError("the machine never comes to rest")

    def want(self, wants: bool | None) -> None:
        self.machine.update(replace(self.machine.pod, wants=wants))
        self.turn()

    def vanish(self) -> None:
        self.pod_lives = False
        if self.running is Step.WITHDRAW:
            self.running = None
        self.machine.gone()
        self.turn()

    def happen(self, event: str) -> None:
        """One event of the storm; one that cannot happen now does not."""
        effects: dict[str, Callable[[], object]] = {
            "in": lambda: self.want(True),
            "out": lambda: self.want(False),
            "finish": lambda: self.running and self.finish(),
            "fail": lambda: self.running and self.fail(),
            "served": lambda: self.announced and self.machine.served(),
            "refused": lambda: self.machine.refused("no", self.now),
            "rebuild": self.machine.rebuild,
            "tick": lambda: setattr(self, "now", self.now + 0.3),
            "wait": lambda: setattr(self, "now", self.now + 5.0),
            "proxy": lambda: setattr(self, "proxy", not self.proxy),
        }
        effects[event]()

    @property
    def said(self) -> str:
        """The redirection annotation as a reader of the API sees it."""
        last = self.reports[-1] if self.reports else None
        return last.redirection if last else ""


def proved() -> World:
    world = World()
    world.settle()
    assert world.machine.rung is Rung.PROVED
    world.steps.clear()
    return world


def test_a_pod_climbs_in_order_and_is_enabled_only_after_the_proof() -> None:
    """Listeners, ztunnel, hooks, proof; `pending` until the last has succeeded."""
    world = World()
    world.turn()
    assert world.steps == [Step.LISTEN, Step.ANNOUNCE]
    world.finish()
    assert world.steps == [Step.LISTEN, Step.ANNOUNCE, Step.CAPTURE, Step.PROVE]
    assert world.said == PENDING
    world.finish()
    assert world.said == ENABLED
    assert [r.redirection for r in world.reports if r] == [PENDING, ENABLED]
    assert world.machine.state == "proved"


def test_an_unlabelled_pod_comes_down_in_order_with_grace() -> None:
    """Hooks out, annotation gone, grace in which 15008 is served, then ztunnel and listeners."""
    world = proved()
    world.want(False)
    assert world.steps == [Step.RELEASE]
    assert world.said == ""
    assert world.machine.state == "releasing"
    wake = world.machine.wake_at()
    assert wake == world.now + GRACE
    world.now = wake - 0.01
    world.turn()
    assert world.steps == [Step.RELEASE]
    world.now = wake
    world.turn()
    assert world.steps == [Step.RELEASE, Step.WITHDRAW]
    assert not world.machine.finished
    world.finish()
    assert world.steps == [Step.RELEASE, Step.WITHDRAW, Step.CLOSE]
    assert world.machine.finished


def test_the_annotation_stays_until_the_hooks_are_out() -> None:
    """A release that fails is retried, and the pod is not called released meanwhile."""
    world = proved()
    world.broken = {Step.RELEASE}
    world.want(False)
    assert world.said == ENABLED
    world.broken.clear()
    world.now += 1
    world.turn()
    assert world.said == ""


def test_a_pod_relabelled_in_its_grace_is_captured_and_proved_again() -> None:
    """Listeners and ztunnel are still there: only hooks and proof are needed."""
    world = proved()
    world.want(False)
    world.want(True)
    assert world.steps == [Step.RELEASE, Step.CAPTURE, Step.PROVE]
    world.finish()
    assert world.said == ENABLED
    assert world.machine.wake_at() is None


def test_a_pod_relabelled_while_ztunnel_forgets_it_starts_over() -> None:
    """The add never overtakes the del: WITHDRAW ends before LISTEN or ANNOUNCE come again."""
    world = proved()
    world.want(False)
    world.now += GRACE
    world.turn()
    assert world.running is Step.WITHDRAW
    world.want(True)
    assert world.steps[-1] is Step.WITHDRAW
    world.finish()
    assert world.steps[-1] is Step.ANNOUNCE
    world.settle()
    assert world.said == ENABLED


@pytest.mark.parametrize("depth", range(8))
def test_a_pod_deleted_in_every_state_leaves_nothing(depth: int) -> None:
    """After any number of steps up: everything begun is undone at once, without grace."""
    world = World()
    stops = [
        lambda: None,
        world.turn,  # announcing
        world.finish,  # proving
        world.finish,  # proved
        lambda: world.want(False),  # grace
        lambda: (setattr(world, "now", world.now + GRACE), world.turn()),  # withdrawing
        world.finish,  # closed
        lambda: world.want(True),  # announcing again
    ]
    for stop in stops[:depth]:
        stop()
    before = world.now
    world.vanish()
    world.turn()
    assert (world.listening, world.announced, world.captured) == (False, False, False)
    assert world.machine.finished
    assert world.said == ""
    assert world.now == before


@pytest.mark.parametrize("step", [Step.LISTEN, Step.CAPTURE])
def test_a_failing_step_backs_off_and_says_why(step: Step) -> None:
    """0.25 s doubling to 30 s; the reason is in the status; success clears it."""
    world = World(broken={step})
    world.turn()
    if step is Step.CAPTURE:
        world.finish()
    delays = []
    for _ in range(10):
        wake = world.machine.wake_at()
        assert wake is not None
        delays.append(wake - world.now)
        world.now = wake
        world.turn()
    assert delays[:3] == pytest.approx([0.25, 0.5, 1.0])
    assert delays[-1] == BACKOFF_MAX
    assert world.machine.state == "failed"
    assert world.reports[-1] == PodStatus(PENDING, "Broken", f"{step.value} is broken")
    world.broken.clear()
    world.settle()
    assert world.said == ENABLED
    assert world.machine.failure is None


def test_a_failed_proof_puts_the_hooks_in_again_before_the_next() -> None:
    """What is not proved is not trusted to be there."""
    world = World()
    world.turn()
    world.finish()
    world.fail()
    assert world.said == PENDING
    assert world.reports[-1] == PodStatus(PENDING, "NotProved", "prove failed")
    world.now += 0.25
    world.turn()
    assert world.steps[-2:] == [Step.CAPTURE, Step.PROVE]
    assert len([r for r in world.reports if r and r.reason == "NotProved"]) == 1


def test_ztunnels_refusal_keeps_the_pod_pending_and_is_retried() -> None:
    """The ack's error text is what the user reads."""
    world = World()
    world.turn()
    world.machine.refused("no certificate yet", world.now)
    world.turn()
    assert world.reports[-1] == PodStatus(PENDING, "ZtunnelRefused", "no certificate yet")
    assert Step.CAPTURE not in world.steps
    world.now += 0.25
    world.turn()
    assert world.steps[-1] is Step.ANNOUNCE
    world.settle()
    assert world.said == ENABLED


def test_without_a_proxy_a_pod_waits_and_says_so() -> None:
    """No listener is opened before it is known whose they are to be."""
    world = World(proxy=False)
    world.turn()
    assert world.steps == []
    last = world.reports[-1]
    assert last is not None
    assert last.reason == "NoZtunnel"
    assert world.machine.wake_at() is None
    world.proxy = True
    world.settle()
    assert world.said == ENABLED


def test_a_new_proxy_has_the_pod_proved_again_without_calling_it_pending() -> None:
    """Rule 4: traffic stays captured while proxies change."""
    world = proved()
    world.proxy = False
    world.turn()
    world.proxy = True
    world.machine.served()
    world.turn()
    assert world.running is Step.PROVE
    assert world.said == ENABLED
    world.finish()
    assert world.said == ENABLED
    assert len(world.reports) == 2


def test_one_failed_reproof_is_forgiven_the_second_is_not() -> None:
    """A pod that stops being captured is called pending within half a second."""
    world = proved()
    world.machine.served()
    world.turn()
    world.fail()
    assert world.said == ENABLED
    world.now += 0.25
    world.turn()
    world.fail()
    assert world.said == PENDING
    world.settle()
    assert world.said == ENABLED


def test_an_adopted_pod_stays_enabled_and_is_announced_and_proved_again() -> None:
    """An agent's restart opens no listener anew and never says `pending`."""
    world = World(pod=replace(POD, marked=ENABLED), proxy=False)
    world.listening = world.captured = True
    world.machine.adopt(captured=True)
    world.turn()
    assert world.said == ENABLED
    world.proxy = True
    world.settle()
    assert world.steps == [Step.ANNOUNCE, Step.CAPTURE, Step.PROVE]
    assert {r.redirection for r in world.reports if r} == {ENABLED}


def test_a_mark_without_capture_is_not_believed() -> None:
    """After a reboot the annotation says enabled and nothing is captured: pending at once."""
    world = World(pod=replace(POD, marked=ENABLED), proxy=False)
    world.machine.remains()
    world.turn()
    assert world.said == PENDING


def test_an_unwanted_pod_with_remains_is_released() -> None:
    """Unlabelled while no agent ran: everything is taken out and the mark too."""
    world = World(pod=replace(POD, wants=False, marked=ENABLED))
    world.captured = True
    world.machine.remains()
    world.settle()
    assert world.steps == [Step.RELEASE, Step.WITHDRAW, Step.CLOSE]
    assert world.reports[-1] is None
    assert world.machine.finished


def test_a_pod_nobody_speaks_for_is_left_as_it_is() -> None:
    """Its object is deleted while its processes still end: traffic stays captured."""
    world = proved()
    world.want(None)
    assert world.steps == []
    assert world.machine.state == "proved"


def test_new_probe_ports_are_put_in_without_leaving_the_mesh() -> None:
    """Only hooks and proof again, still enabled."""
    world = proved()
    world.machine.update(replace(POD, probe_ports=(9090,)))
    world.settle()
    assert world.steps == [Step.CAPTURE, Step.PROVE]
    assert world.said == ENABLED


def test_probe_ports_that_change_during_a_proof_are_put_in() -> None:
    """The proof of the old entry does not count for the new one."""
    world = World()
    world.turn()
    world.finish()
    assert world.running is Step.PROVE
    world.machine.update(replace(POD, probe_ports=(9090,)))
    world.machine.done(Step.PROVE)
    world.turn()
    assert world.steps[-2:] == [Step.CAPTURE, Step.PROVE]
    assert world.said == PENDING


def test_a_new_sandbox_starts_over_without_a_release_in_between() -> None:
    """Rebuilding never opens the pod: nothing is released on the way."""
    world = proved()
    world.machine.rebuild()
    world.turn()
    assert world.said == PENDING
    world.settle()
    assert world.steps == [Step.LISTEN, Step.ANNOUNCE, Step.CAPTURE, Step.PROVE]
    assert world.said == ENABLED


def test_an_outcome_of_an_abandoned_step_is_ignored() -> None:
    """A proof that ends, well or badly, after the pod was unlabelled changes nothing."""
    world = World()
    world.turn()
    world.finish()
    assert world.running is Step.PROVE
    world.want(False)
    world.machine.done(Step.PROVE)
    assert world.machine.rung is Rung.ANNOUNCED
    world.machine.failed(Step.PROVE, "NotProved", "late", world.now)
    assert world.machine.failure is None
    world.turn()
    assert world.said == ""
    assert world.machine.state == "releasing"


EVENTS = st.sampled_from(
    ["in", "out", "finish", "fail", "served", "refused", "rebuild", "tick", "wait", "proxy"]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(EVENTS, max_size=40), st.sampled_from(["in", "out", "gone"]))
def test_whatever_happens_the_pod_ends_where_it_should(events: list[str], end: str) -> None:
    """Flapping labels, failures and proxies in any order: no step lacks its ground (World), no
    annotation lies, and when the storm is over the pod reaches its goal and no more is left."""
    world = World()
    world.turn()
    for event in events:
        world.happen(event)
        world.turn()
        assert world.said != ENABLED or world.captured
    world.proxy = True
    if end == "gone":
        world.vanish()
    else:
        world.want(end == "in")
    world.settle()
    if end == "in":
        assert world.said == ENABLED
        assert world.captured
    else:
        assert (world.listening, world.announced, world.captured) == (False, False, False)
        assert world.said == ""
        assert world.machine.finished
