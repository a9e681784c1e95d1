"""Objects, sandboxes and what the plugin brings, put together; no API server, no runtime."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest

from mesh.kube.kinds import Kind
from mesh.manifest import Key
from mesh.ports import ANNOTATION_REDIRECTION, LABEL_DATAPLANE_MODE
from node_agent.kube_cache import KubeCache
from node_agent.kubernetes_source import CATCH_UP, KubernetesSource
from node_agent.metrics import Metrics
from node_agent.pod_object import NAMESPACES, PodObject, pods_of, read
from node_agent.sandbox_table import Found, Look
from node_agent.source import ENABLED, DesiredPod, PodStatus

PODS = pods_of("n1")
AMBIENT = {LABEL_DATAPLANE_MODE: "ambient"}
PROVED = PodStatus(ENABLED, "Proved", "it arrived")


class FakeApi:
    """Never asked: the reflectors are not started."""

    address = ""


class Watch:
    """A runtime that is asked by hand."""

    def __init__(self) -> None:
        self.needs: dict[str, str] = {}
        self.answered = 0
        self.look: Look | None = None
        self._number = 0

    def want(self, needs: dict[str, str]) -> int:
        if needs != self.needs or not self._number:
            self._number += 1
            self.needs = dict(needs)
        return self._number

    def take(self) -> Look | None:
        look, self.look = self.look, None
        return look


class Told:
    """Writer and events that remember."""

    def __init__(self) -> None:
        self.reported: list[tuple[str, PodStatus | None]] = []
        self.forgotten: list[str] = []

    def report(self, pod: PodObject, status: PodStatus | None) -> None:
        self.reported.append((pod.uid, status))

    def forget(self, uid: str) -> None:
        self.forgotten.append(uid)

    def heal(self, pods: object) -> None:
        pass


class Rig:
    def __init__(self) -> None:
        self.changes = 0
        self.cache = KubeCache(FakeApi(), "n1", Metrics(), self.count)  # type: ignore[arg-type]
        self.watch, self.writer, self.events = Watch(), Told(), Told()
        self.now = 100.0
        self.source = KubernetesSource(
            self.cache,
            self.watch,  # type: ignore[arg-type]
            self.writer,  # type: ignore[arg-type]
            self.events,  # type: ignore[arg-type]
            lambda: self.now,
        )

    def count(self) -> None:
        self.changes += 1

    def put(self, kind: Kind, obj: dict[str, Any]) -> Key:
        key, data = kind.pack(obj, "v1")
        self.cache.put(kind, key, data)
        return key

    def namespace(self, **labels: str) -> None:
        self.put(NAMESPACES, {"metadata": {"name": "shop", "labels": labels}})

    def pod(self, uid: str = "u", **parts: Any) -> Key:
        return self.put(PODS, pod(uid, **parts))

    def found(self, *uids: str, problems: dict[str, str] | None = None) -> None:
        """Have the runtime tell of sandboxes."""
        found = [Found(u, f"s-{u}", os.open("/dev/null", os.O_RDONLY), ("10.1.1.1",)) for u in uids]
        ready = {uid: f"s-{uid}" for uid in uids}
        self.watch.look = Look(self.now, ready, found, problems or {})
        self.now += 1


def pod(uid: str = "u", **parts: Any) -> dict[str, Any]:
    metadata = {"name": f"web-{uid}", "namespace": "shop", "uid": uid} | parts.pop("metadata", {})
    return {"metadata": metadata, "spec": {}, "status": {"phase": "Running"}} | parts


@pytest.fixture
def rig() -> Iterator[Rig]:
    gc.collect()  # what earlier tests left must not go away in between
    before = len(os.listdir("/proc/self/fd"))
    made = Rig()
    made.namespace(**AMBIENT)
    yield made
    made.source.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_running_pod_is_found_by_the_runtime(rig: Rig) -> None:
    """It is asked for once it is wanted, and is there when the runtime has answered."""
    rig.pod()
    assert rig.source.pods() == {}
    assert rig.watch.needs == {"u": ""}
    assert rig.source.expects("u")
    rig.found("u")
    (found,) = rig.source.pods().values()
    assert (found.title, found.addresses, found.wants) == ("shop/web-u", ("10.1.1.1",), True)
    assert os.path.exists(found.netns)
    assert rig.watch.needs == {"u": "s-u"}


@pytest.mark.parametrize(
    "parts",
    [
        {"spec": {"hostNetwork": True}},
        {"status": {"phase": "Succeeded"}},
        {"metadata": {"labels": {LABEL_DATAPLANE_MODE: "none"}}},
    ],
)
def test_pods_that_are_not_wanted_cost_no_question(rig: Rig, parts: dict[str, Any]) -> None:
    rig.pod(**parts)
    assert rig.source.pods() == {}
    assert rig.watch.needs == {}
    assert not rig.source.expects("u")


def test_a_pod_that_was_captured_once_is_found_to_be_released(rig: Rig) -> None:
    """Its annotation says so, even though nobody wants it any more."""
    rig.namespace()
    rig.pod(metadata={"annotations": {ANNOTATION_REDIRECTION: ENABLED}})
    rig.source.pods()
    rig.found("u")
    (found,) = rig.source.pods().values()
    assert (found.wants, found.marked) == (False, ENABLED)


def test_labels_of_pod_and_namespace_turn_it_on_and_off(rig: Rig) -> None:
    """Changes of either are heard of."""
    rig.pod()
    rig.source.pods()
    rig.found("u")
    assert rig.source.pods()["u"].wants
    before = rig.changes
    rig.namespace()
    assert rig.changes == before + 1
    assert rig.source.pods()["u"].wants is False
    rig.pod(metadata={"labels": AMBIENT})
    assert rig.source.pods()["u"].wants
    before = rig.changes
    rig.pod(metadata={"labels": AMBIENT, "resourceVersion": "99"})
    assert rig.changes == before, "what is not kept is no change"


def test_a_deleted_pod_goes_with_its_namespace_descriptor(rig: Rig) -> None:
    key = rig.pod()
    rig.source.pods()
    rig.found("u")
    path = rig.source.pods()["u"].netns
    rig.cache.remove(PODS, key)
    assert rig.source.pods() == {}
    assert not os.path.exists(path)


def test_the_same_name_with_another_uid_is_another_pod(rig: Rig) -> None:
    """A StatefulSet's pod, deleted and made again."""
    rig.pod("u1", metadata={"name": "db-0"})
    rig.source.pods()
    rig.found("u1")
    assert set(rig.source.pods()) == {"u1"}
    rig.pod("u2", metadata={"name": "db-0"})
    assert rig.source.pods() == {}
    assert rig.watch.needs == {"u2": ""}
    assert rig.cache.pod("u1") is None


def test_a_pod_whose_sandbox_cannot_be_opened_says_why(rig: Rig) -> None:
    """It is wanted, so it must not be passed over in silence."""
    rig.pod()
    rig.source.pods()
    rig.found(problems={"u": "sandbox s-u: it is gone"})
    (found,) = rig.source.pods().values()
    assert found.problem == "sandbox s-u: it is gone"
    rig.found("u")
    assert rig.source.pods()["u"].problem == ""


def bring(rig: Rig, uid: str = "u", sandbox: str = "s-new") -> DesiredPod:
    fd = os.open("/dev/null", os.O_RDONLY)
    path = rig.source.bring(read(pod(uid)), sandbox, fd, ("10.1.1.9",))
    found = rig.source.pods()[uid]
    assert found.netns == path
    return found


def test_what_the_plugin_brings_is_there_at_once(rig: Rig) -> None:
    """Before the watch knows pod, address or label."""
    rig.namespace()
    found = bring(rig)
    assert (found.wants, found.addresses) == (True, ("10.1.1.9",))
    assert rig.watch.needs == {"u": "s-new"}
    rig.pod()
    assert rig.source.pods()["u"].wants, "the watch of namespaces may be behind still"
    rig.namespace(**AMBIENT)
    rig.now += CATCH_UP + 1
    assert rig.source.pods()["u"].wants
    rig.namespace()
    assert rig.source.pods()["u"].wants is False


def test_a_brought_pod_that_was_deleted_is_not_kept_alive(rig: Rig) -> None:
    """Once the watch has shown it, the watch alone says whether it is there."""
    bring(rig)
    key = rig.pod()
    rig.source.pods()
    rig.cache.remove(PODS, key)
    assert rig.source.pods() == {}
    assert not rig.source.expects("u")
    bring(rig, "v")
    rig.now += CATCH_UP + 1
    assert rig.source.pods() == {}, "nor one that the watch never shows"


def test_a_new_sandbox_takes_the_place_of_the_old_one(rig: Rig) -> None:
    """The runtime made the pod's sandbox again: another namespace, another path."""
    rig.pod()
    rig.source.pods()
    rig.found("u")
    old = rig.source.pods()["u"].netns
    new = bring(rig).netns
    assert new != old
    assert not os.path.exists(old)


def test_a_removed_sandbox_is_dropped(rig: Rig) -> None:
    """DEL, or an ADD that could not be answered with yes."""
    rig.pod()
    bring(rig)
    rig.source.drop("somebody else's")
    assert "u" in rig.source.pods()
    rig.source.drop("s-new")
    assert rig.source.pods() == {}


def test_reports_go_to_the_object_that_is_there(rig: Rig) -> None:
    """Nothing is taken back from a pod that leaves or has left."""
    rig.pod()
    found = bring(rig)
    rig.source.report(found, PROVED)
    assert rig.writer.reported == rig.events.reported == [("u", PROVED)]
    rig.pod(metadata={"deletionTimestamp": "T"})
    rig.source.report(found, None)
    assert rig.writer.forgotten == ["u"]
    rig.source.report(found, PROVED)
    assert len(rig.writer.reported) == 2


def test_lists_replace_what_was_there(rig: Rig) -> None:
    """After a 410 everything is listed again: what is missing is gone, what is equal is no news."""
    a, b = rig.pod("a"), rig.pod("b")
    packed = dict(PODS.pack(pod(uid), "v1") for uid in ("b", "c"))
    before = rig.changes
    rig.cache.replace(PODS, packed)
    assert rig.changes == before + 1
    assert sorted(p.uid for p in rig.cache.pods()) == ["b", "c"]
    rig.cache.replace(PODS, packed)
    assert rig.changes == before + 1
    assert a not in packed
    assert b in packed


def test_synced_when_objects_are_listed_and_sandboxes_found(rig: Rig) -> None:
    """Not before: what the holder keeps would be dropped as nobody's."""

    async def body() -> None:
        syncing = asyncio.ensure_future(rig.source.synced())
        await asyncio.sleep(0.12)
        assert not syncing.done()
        rig.pod()
        for reflector in rig.cache._reflectors:
            reflector.listed = True
        await asyncio.sleep(0.12)
        assert not syncing.done()
        assert rig.watch.needs == {"u": ""}
        rig.found("u")
        rig.watch.answered = 99
        rig.source.changed()
        await asyncio.wait_for(syncing, 1)
        assert "u" in rig.source.pods()

    asyncio.run(body())
