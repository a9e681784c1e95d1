"""Statuses and events on their way to the API server: what is written, when, and how often."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from mesh.errors import Unavailable
from mesh.kube.api import APPLY, ApiError
from node_agent.outbox import Outbox
from node_agent.pod_object import read
from node_agent.pod_status import (
    EVENT_AGAIN,
    EVENT_BURST,
    HEAL,
    PATIENCE,
    Events,
    StatusWriter,
    patch,
)
from node_agent.source import CONDITION, ENABLED, PENDING, PodStatus

POD = read({"metadata": {"name": "web-1", "namespace": "shop", "uid": "u-1"}})
PROVED = PodStatus(ENABLED, "Proved", "it arrived")
ENROLLING = PodStatus(PENDING, "Enrolling", "not proved yet")
FAILED = PodStatus(PENDING, "PortTaken", "15001 is taken")


class FakeApi:
    """Remembers requests; `answers` are raised one after the other."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.options: list[dict[str, Any]] = []
        self.answers: list[Exception] = []

    def request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        self.requests.append((method, path, options.pop("body")))
        self.options.append(options)
        if self.answers:
            raise self.answers.pop(0)
        return {}


class Now:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


class Box:
    """An outbox without threads: what is due is done by `work`."""

    def __init__(self, now: Now) -> None:
        self._now = now
        self.entries: dict[str, tuple[Callable[[int], float | None], float, int]] = {}

    def put(self, key: str, write: Callable[[int], float | None], delay: float = 0.0) -> bool:
        self.entries[key] = (write, self._now() + delay, 0)
        return True

    def drop(self, key: str) -> None:
        self.entries.pop(key, None)

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def work(self) -> None:
        for key, (write, due, tries) in list(self.entries.items()):
            if due <= self._now():
                wait = write(tries)
                if wait is None:
                    del self.entries[key]
                else:
                    self.entries[key] = (write, self._now() + wait, tries + 1)


class Rig:
    def __init__(self) -> None:
        self.api, self.now = FakeApi(), Now()
        self.box = Box(self.now)
        self.writer = StatusWriter(self.api, self.box, self.now)  # type: ignore[arg-type]
        self.events = Events(self.api, self.box, "n1", self.now)  # type: ignore[arg-type]

    def pass_time(self, seconds: float = 0.0) -> None:
        self.now.time += seconds
        self.box.work()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_only_what_is_ours_is_applied(rig: Rig) -> None:
    """Server-side apply to the status, as ourselves, for that very pod."""
    rig.writer.report(POD, PROVED)
    rig.pass_time()
    ((method, path, body),) = rig.api.requests
    assert (method, path) == ("PATCH", "/api/v1/namespaces/shop/pods/web-1/status")
    assert rig.api.options[0]["content_type"] == APPLY
    assert rig.api.options[0]["query"] == {"fieldManager": "ambit-node-agent", "force": "true"}
    assert body["metadata"]["uid"] == "u-1"
    assert body["metadata"]["annotations"] == {"ambient.istio.io/redirection": "enabled"}
    (condition,) = body["status"]["conditions"]
    assert (condition["type"], condition["status"]) == (CONDITION, "True")
    assert patch(POD, None).keys() == {"apiVersion", "kind", "metadata"}


def test_a_pod_that_is_captured_at_once_costs_one_write(rig: Rig) -> None:
    """The state on the way is written only when it lasts."""
    rig.writer.report(POD, ENROLLING)
    rig.pass_time(PATIENCE / 2)
    rig.writer.report(POD, PROVED)
    rig.pass_time(PATIENCE)
    assert [b["status"]["conditions"][0]["reason"] for _, _, b in rig.api.requests] == ["Proved"]
    rig.writer.report(replace(POD, uid="u-2"), ENROLLING)
    rig.pass_time(PATIENCE + 0.1)
    assert len(rig.api.requests) == 2


def test_a_pod_that_was_enabled_is_pending_at_once(rig: Rig) -> None:
    """Others would go on dialling a tunnel that is not there."""
    rig.writer.report(replace(POD, marked=ENABLED, status=PROVED), ENROLLING)
    rig.pass_time()
    assert len(rig.api.requests) == 1


def test_nothing_is_written_when_equal(rig: Rig) -> None:
    """Neither what the object says already nor what was written before."""
    rig.writer.report(replace(POD, marked=ENABLED, status=PROVED), PROVED)
    rig.pass_time(5)
    assert rig.api.requests == []
    rig.writer.report(POD, FAILED)
    rig.pass_time()
    rig.writer.report(POD, FAILED)
    rig.pass_time(5)
    assert len(rig.api.requests) == 1


def test_a_change_that_is_taken_back_is_written_over(rig: Rig) -> None:
    """What was on its way may have been sent."""
    shown = replace(POD, marked=ENABLED, status=PROVED)
    rig.writer.report(shown, FAILED)
    rig.writer.report(shown, PROVED)
    rig.pass_time()
    assert rig.api.requests[-1][2]["status"]["conditions"][0]["reason"] == "Proved"


@pytest.mark.parametrize(
    "error", [Unavailable("away"), ApiError(500, "", "etcd"), ApiError(429, "", "slow", 7.0)]
)
def test_what_fails_is_tried_again(rig: Rig, error: Exception) -> None:
    """After a pause that grows, and that the server may name."""
    rig.api.answers = [error, error]
    rig.writer.report(POD, PROVED)
    rig.pass_time()
    rig.pass_time(0.01)
    assert len(rig.api.requests) == 1
    for _ in range(3):
        rig.pass_time(10)
    assert len(rig.api.requests) == 3


@pytest.mark.parametrize("status", [404, 409, 422])
def test_a_pod_that_is_gone_is_let_go(rig: Rig, status: int) -> None:
    """It is not tried for ever, nor healed afterwards."""
    rig.api.answers = [ApiError(status, "", "no")]
    rig.writer.report(POD, PROVED)
    rig.pass_time()
    rig.writer.heal([POD])
    rig.pass_time(HEAL + 1)
    rig.writer.heal([POD])
    rig.pass_time(HEAL + 1)
    assert len(rig.api.requests) == 1


def test_what_somebody_changed_is_put_right_in_a_while(rig: Rig) -> None:
    """Once in HEAL seconds, and not for a pod that leaves."""
    rig.writer.report(POD, PROVED)
    rig.pass_time()
    shown = replace(POD, marked=ENABLED, status=PROVED)
    rig.pass_time(HEAL + 1)
    rig.writer.heal([shown])
    rig.pass_time()
    assert len(rig.api.requests) == 1
    for _ in range(5):
        rig.writer.heal([replace(shown, marked="", status=None)])
        rig.pass_time()
    assert len(rig.api.requests) == 2
    rig.pass_time(HEAL + 1)
    rig.writer.heal([replace(POD, leaving=True)])
    rig.pass_time()
    assert len(rig.api.requests) == 2
    rig.writer.heal([])
    assert rig.writer._written == {}


def test_events_tell_of_first_capture_and_of_each_failure(rig: Rig) -> None:
    """Not of what is on its way, nor again within a while, nor of what an object says already."""
    for status in (ENROLLING, FAILED, FAILED, PROVED, PROVED):
        rig.events.report(POD, status)
    rig.pass_time()
    events = [body for _, _, body in rig.api.requests]
    assert [(e["type"], e["reason"]) for e in events] == [
        ("Warning", "PortTaken"),
        ("Normal", "Captured"),
    ]
    assert events[0]["involvedObject"]["uid"] == "u-1"
    assert "15001 is taken" in events[0]["message"]
    rig.events.report(replace(POD, uid="u-2", marked=ENABLED), PROVED)
    rig.pass_time(EVENT_AGAIN + 1)
    assert len(rig.api.requests) == 2
    rig.events.report(POD, FAILED)
    rig.pass_time()
    assert len(rig.api.requests) == 3


def test_events_of_many_pods_are_bounded(rig: Rig) -> None:
    """A node that comes up must not flood the API server."""
    for i in range(300):
        rig.events.report(replace(POD, uid=f"u-{i}"), PROVED)
    rig.pass_time()
    assert len(rig.api.requests) == EVENT_BURST


def test_an_event_that_cannot_be_written_is_given_up(rig: Rig) -> None:
    """After a few tries; at once when it is not allowed."""
    rig.api.answers = [Unavailable("away")] * 10
    rig.events.report(POD, FAILED)
    for _ in range(10):
        rig.pass_time(10)
    assert len(rig.api.requests) == 3
    rig.api.answers = [ApiError(403, "", "no")]
    rig.events.report(replace(POD, uid="u-2"), FAILED)
    rig.pass_time(10)
    rig.pass_time(10)
    assert len(rig.api.requests) == 4


# ---- the outbox itself ---------------------------------------------------------------------------


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    made = Outbox(workers=2)
    made.start()
    yield made
    made.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_latest_entry_of_a_key_wins(outbox: Outbox) -> None:
    done: list[str] = []

    def write(text: str) -> Callable[[int], None]:
        return lambda tries: done.append(text)

    outbox.put("a", write("first"), delay=0.2)
    outbox.put("a", write("second"), delay=0.1)
    assert "a" in outbox
    wait_for(lambda: "a" not in outbox)
    time.sleep(0.2)
    assert done == ["second"]


def test_an_entry_that_waits_does_not_keep_others_from_their_turn(outbox: Outbox) -> None:
    done: list[str] = []
    outbox.put("slow", lambda tries: done.append("slow"), delay=60)
    for i in range(20):
        outbox.put(f"k{i}", lambda tries: done.append("quick"))
    wait_for(lambda: len(done) == 20)
    outbox.drop("slow")
    assert len(outbox) == 0


def test_a_write_of_a_key_is_never_made_twice_at_once(outbox: Outbox) -> None:
    """What comes while one is under way is done after it."""
    running, most, done = [0], [0], []
    gate = threading.Event()

    def write(text: str) -> Callable[[int], None]:
        def work(tries: int) -> None:
            running[0] += 1
            most[0] = max(most[0], running[0])
            gate.wait(5)
            running[0] -= 1
            done.append(text)

        return work

    outbox.put("a", write("first"))
    wait_for(lambda: running[0] == 1)
    outbox.put("a", write("second"))
    time.sleep(0.05)
    gate.set()
    wait_for(lambda: len(done) == 2)
    assert (done, most[0]) == (["first", "second"], 1)


def test_tries_are_counted_and_bugs_survived(outbox: Outbox) -> None:
    """An entry says how long to wait; one that raises keeps nobody else from being written."""
    tries: list[int] = []

    def write(number: int) -> float | None:
        tries.append(number)
        return 0.01 if number < 3 else None

    def broken(number: int) -> None:
        raise ValueError("a bug")

    outbox.put("broken", broken)
    outbox.put("a", write)
    wait_for(lambda: "a" not in outbox)
    assert tries == [0, 1, 2, 3]
    assert "broken" in outbox
