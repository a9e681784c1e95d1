"""Statuses beside the loop: collected while one is written, the newest counts, none is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from control_plane import speaking
from control_plane.speaking import Speaker
from control_plane.status import StatusWriter
from mesh.findings import Condition
from mesh.manifest import Key
from mesh.store import FolderStore
from waypoint.config.status import Status

A, B = Key("HTTPRoute", "shop", "a"), Key("HTTPRoute", "shop", "b")
Call = tuple[Mapping[Key, Any], set[Key], Mapping[Key, Status | None]]


def status(reason: str) -> Status:
    return Status((Condition("istio.io/WaypointBound", True, reason, "for this test"),))


class SlowSink:
    """Holds the first write until told."""

    def __init__(self, failures: int = 0) -> None:
        self.calls: list[Call] = []
        self.go = threading.Event()
        self._failures = failures

    def write(
        self,
        changed: Mapping[Key, Any],
        gone: set[Key],
        said: Mapping[Key, Status | None],
        now: str,
    ) -> int:
        assert now
        self.calls.append((changed, gone, said))
        assert self.go.wait(5)
        if len(self.calls) <= self._failures:
            raise OSError(28, "No space left on device")
        return 1

    async def until(self, calls: int) -> None:
        for _ in range(1000):
            if len(self.calls) >= calls:
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"{len(self.calls)} calls, not {calls}")


def test_what_happens_during_a_write_is_one_write() -> None:
    """Telling never waits; of each object the newest is written."""
    sink = SlowSink()

    async def run() -> None:
        speaker = Speaker(sink)
        running = asyncio.ensure_future(speaker.run())
        speaker.tell({A: {"n": 1}}, set(), {A: status("one")})
        await sink.until(1)
        for n in range(2, 5):
            speaker.tell({A: {"n": n}, B: {"n": n}}, set(), {A: status(str(n))})
        speaker.tell({}, {B}, {})
        sink.go.set()
        await sink.until(2)
        running.cancel()

    asyncio.run(run())
    assert sink.calls[0] == ({A: {"n": 1}}, set(), {A: status("one")})
    assert sink.calls[1] == ({A: {"n": 4}}, {B}, {A: status("4")})
    assert len(sink.calls) == 2


def test_an_object_that_came_again_says_nothing_of_the_old_one() -> None:
    """Deleted and created during one write: what was said before is taken back."""
    sink = SlowSink()

    async def run() -> None:
        speaker = Speaker(sink)
        running = asyncio.ensure_future(speaker.run())
        speaker.tell({B: {}}, set(), {})
        await sink.until(1)
        speaker.tell({}, {A}, {})
        speaker.tell({A: {"new": True}}, set(), {})
        speaker.tell({}, {B}, {})
        speaker.tell({B: {"new": True}}, set(), {B: status("new")})
        sink.go.set()
        await sink.until(2)
        running.cancel()

    asyncio.run(run())
    both = {A: {"new": True}, B: {"new": True}}
    assert sink.calls[1] == (both, set(), {A: None, B: status("new")})


def test_a_failed_write_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk ends nothing, even when nothing else happens."""
    monkeypatch.setattr(speaking, "_AGAIN", 0.01)
    sink = SlowSink(failures=1)
    sink.go.set()

    async def run() -> None:
        speaker = Speaker(sink)
        running = asyncio.ensure_future(speaker.run())
        speaker.tell({}, set(), {A: status("one")})
        await sink.until(2)
        running.cancel()

    asyncio.run(run())


def test_the_folder_s_writer_knows_what_it_owes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk refused is written by the next call, which need not name it."""
    store = FolderStore(tmp_path)
    for key in (A, B):
        metadata = {"name": key.name, "namespace": key.namespace}
        version = "gateway.networking.k8s.io/v1"
        store.apply({"apiVersion": version, "kind": key.kind, "metadata": metadata})
    writer = StatusWriter(store)

    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(store, "patch", full)
        with pytest.raises(OSError, match="No space"):
            writer.write({}, set(), {A: status("one"), B: status("one")}, "t1")
    assert writer.write({}, {B}, {}, "t2") == 1
    found = store.get(*A)
    assert found is not None
    assert found["status"]["conditions"][0]["reason"] == "one"
    store.close()
