"""The table of sandboxes, and the thread that asks the runtime: with /dev/null for namespaces."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.errors import BadInput, MeshError, Unavailable
from node_agent import runtime_watch
from node_agent.cri import SandboxFacts, SandboxName
from node_agent.runtime_watch import RuntimeWatch, newest
from node_agent.sandbox import StepError
from node_agent.sandbox_table import REMOVED, UNLISTED, Found, Look, SandboxTable

IPS = ("10.1.2.3",)


def null() -> int:
    return os.open("/dev/null", os.O_RDONLY)


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    """Every descriptor that was taken in is closed in the end."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def table() -> Iterator[SandboxTable]:
    made = SandboxTable()
    yield made
    made.close()


def look(began: float, ready: dict[str, str], *found: str) -> Look:
    return Look(began, ready, [Found(uid, ready[uid], null(), IPS) for uid in found], {})


def sandbox(table: SandboxTable, uid: str = "u") -> str:
    known = table.get(uid)
    return known.sandbox if known else ""


def test_the_runtime_s_sandboxes_come_and_go(table: SandboxTable) -> None:
    """Known while they are listed; another one of the same pod takes the place."""
    table.take(look(1, {"u": "a"}, "u"), 1)
    assert sandbox(table) == "a"
    known = table.get("u")
    assert known is not None
    assert Path(known.path).exists()
    table.take(look(2, {"u": "a"}), 2)
    assert table.get("u") is known
    table.take(look(3, {"u": "b"}, "u"), 3)
    assert sandbox(table) == "b"
    table.take(look(4, {}), 4)
    assert sandbox(table) == ""


def test_what_the_plugin_told_of_is_not_listed_yet(table: SandboxTable) -> None:
    """The runtime lists it when it has made it; one that never is goes in the end."""
    table.add("u", "a", null(), IPS, 10)
    table.take(look(5, {}), 11)
    table.take(look(12, {}), 12)
    assert sandbox(table) == "a"
    table.take(look(13, {"u": "a"}), 13)
    table.take(look(14, {}), 14)
    assert sandbox(table) == ""
    table.add("u", "b", null(), IPS, 20)
    table.take(look(21, {}), 20 + UNLISTED + 1)
    assert sandbox(table) == ""


def test_an_older_look_does_not_undo_what_the_plugin_told(table: SandboxTable) -> None:
    """The list was read while the old sandbox still stood."""
    table.add("u", "new", null(), IPS, 10)
    table.take(look(9, {"u": "old"}, "u"), 11)
    assert sandbox(table) == "new"
    table.take(look(12, {"u": "new"}, "u"), 13)
    assert sandbox(table) == "new"


def test_a_sandbox_that_was_removed_does_not_come_back(table: SandboxTable) -> None:
    """The runtime lists it as ready until the removal is over."""
    table.take(look(1, {"u": "a"}, "u"), 1)
    assert table.drop("a", 2)
    assert not table.drop("a", 2)
    table.take(look(3, {"u": "a"}, "u"), 3)
    assert sandbox(table) == ""
    table.take(look(4, {"u": "a"}, "u"), 5 + REMOVED)
    assert sandbox(table) == "a"
    table.drop("a", 500)
    table.add("u", "a", null(), IPS, 501)  # said again by the plugin itself
    table.take(look(502, {"u": "a"}, "u"), 503)
    assert sandbox(table) == "a"


def test_only_pods_that_there_are_keep_theirs(table: SandboxTable) -> None:
    table.add("u", "a", null(), IPS, 1)
    table.add("v", "b", null(), IPS, 1)
    table.retain({"v"})
    assert (sandbox(table), sandbox(table, "v")) == ("", "b")


class FakeRuntime:
    def __init__(self) -> None:
        self.sandboxes: list[SandboxName] = []
        self.asked: list[str] = []
        self.error: MeshError | None = None

    def ready(self) -> list[SandboxName]:
        if self.error:
            raise self.error
        return self.sandboxes

    def facts(self, sandbox: str) -> SandboxFacts | None:
        self.asked.append(sandbox)
        if sandbox == "gone":
            return None
        return SandboxFacts(sandbox, "u", IPS, 1, "", "", host_network=sandbox == "host")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    def open_sandbox(facts: SandboxFacts) -> int:
        if facts.sandbox == "closed":
            raise StepError("NetnsGone", "it is closed")
        return null()

    monkeypatch.setattr(runtime_watch, "open_sandbox", open_sandbox)
    return FakeRuntime()


def test_the_newest_sandbox_of_a_pod_counts() -> None:
    """An older one may be listed still."""
    names = [SandboxName("b", "u", 2), SandboxName("a", "u", 1), SandboxName("c", "v", 1)]
    assert newest(names) == {"u": "b", "v": "c"}


def test_only_what_is_needed_and_unknown_is_asked_for(runtime: FakeRuntime) -> None:
    """One question for each new sandbox, none for those that are known."""
    told: list[None] = []
    watch = RuntimeWatch(runtime, lambda: told.append(None))
    runtime.sandboxes = [SandboxName(s, s, 1) for s in ("a", "b", "c")]
    number = watch.want({"a": "", "b": "b", "absent": ""})
    watch.look()
    assert watch.answered == number
    taken = watch.take()
    assert taken is not None
    assert [f.sandbox for f in taken.found] == ["a"]
    assert taken.ready == {"a": "a", "b": "b", "c": "c"}
    assert runtime.asked == ["a"]
    assert len(told) == 1
    assert watch.take() is None
    for found in taken.found:
        os.close(found.netns)


def test_looks_that_nobody_took_are_put_together(runtime: FakeRuntime) -> None:
    """Nothing that was opened is lost or left open."""
    watch = RuntimeWatch(runtime, lambda: None)
    runtime.sandboxes = [SandboxName("a", "a", 1)]
    watch.want({"a": ""})
    watch.look()
    runtime.sandboxes = [SandboxName("a", "a", 1), SandboxName("b", "b", 1)]
    watch.want({"a": "", "b": ""})
    watch.look()
    taken = watch.take()
    assert taken is not None
    assert sorted(f.sandbox for f in taken.found) == ["a", "b"]
    for found in taken.found:
        os.close(found.netns)
    watch.look()
    watch.close()


def test_what_cannot_be_opened_is_said(runtime: FakeRuntime) -> None:
    """And costs the others nothing; pods of the host's network and vanished ones are passed by."""
    watch = RuntimeWatch(runtime, lambda: None)
    names = ("closed", "host", "gone", "good")
    runtime.sandboxes = [SandboxName(s, s, 1) for s in names]
    watch.want(dict.fromkeys(names, ""))
    watch.look()
    taken = watch.take()
    assert taken is not None
    assert [f.sandbox for f in taken.found] == ["good"]
    assert list(taken.problems) == ["closed"]
    assert "it is closed" in taken.problems["closed"]
    for found in taken.found:
        os.close(found.netns)


def test_a_runtime_that_does_not_answer_changes_nothing(runtime: FakeRuntime) -> None:
    """Its thread tries again, says why, and finds what there is when it is back."""
    told = threading.Event()
    watch = RuntimeWatch(runtime, told.set)
    runtime.error = Unavailable("the runtime is away")
    watch.want({"a": ""})
    watch.start()
    for _ in range(100):
        if watch.problem:
            break
        threading.Event().wait(0.02)
    assert watch.problem == "the runtime is away"
    assert watch.take() is None
    runtime.sandboxes = [SandboxName("a", "a", 1)]
    runtime.error = None
    assert told.wait(5)
    watch.close()
    watch._thread.join(5)


def test_nonsense_of_one_sandbox(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that says nothing of its sandbox is a problem of that pod alone."""

    def facts(sandbox: str) -> SandboxFacts | None:
        raise BadInput("no verbose information")

    monkeypatch.setattr(runtime, "facts", facts)
    watch = RuntimeWatch(runtime, lambda: None)
    runtime.sandboxes = [SandboxName("a", "a", 1)]
    watch.want({"a": ""})
    watch.look()
    taken = watch.take()
    assert taken is not None
    assert "no verbose information" in taken.problems["a"]
