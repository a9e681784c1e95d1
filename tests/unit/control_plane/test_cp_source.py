"""The cluster's objects as changes: each told until it is known, and nothing told for nothing."""

from __future__ import annotations

import threading
from typing import Any

from cp_support import pod, service

from control_plane.kubernetes.kinds import KINDS
from control_plane.kubernetes.source import ObjectCache
from mesh.kube.kinds import Kind
from mesh.manifest import Key

POD = next(k for k in KINDS if k.name == "Pod")
SERVICE = next(k for k in KINDS if k.name == "Service")


class Engine:
    """A consumer as the engine is one."""

    def __init__(self, cache: ObjectCache) -> None:
        self.cache = cache
        self.known: dict[Key, int] = {}

    def take(self) -> tuple[list[str], list[str]]:
        changed, gone = self.cache.changes(self.known)
        self.known.update({k: revision for k, (revision, _) in changed.items()})
        for key in gone:
            del self.known[key]
        return sorted(k.name for k in changed), sorted(k.name for k in gone)


def put(cache: ObjectCache, obj: dict[str, Any], kind: Kind = POD) -> None:
    cache.put(kind, *kind.pack(obj, "v1"))


def test_changes_and_deletions_are_told_once() -> None:
    """All at first, then what differs."""
    cache = ObjectCache()
    engine = Engine(cache)
    for name in ("a", "b"):
        put(cache, pod(name))
    put(cache, service("s", "10.96.0.1", {}), SERVICE)
    assert engine.take() == (["a", "b", "s"], [])
    assert engine.take() == ([], [])
    put(cache, pod("b", ip="10.0.0.9"))
    cache.remove(POD, Key("Pod", "shop", "a"))
    assert engine.take() == (["b"], ["a"])
    assert engine.take() == ([], [])


def test_what_is_not_read_is_no_change() -> None:
    """A write that touches nothing that is kept wakes nobody."""
    cache = ObjectCache()
    engine = Engine(cache)
    put(cache, pod("a"))
    engine.take()
    assert cache.watch(0)
    again = pod("a")
    again["metadata"]["resourceVersion"] = "99"
    again["spec"]["containers"] = [{"name": "c", "image": "another"}]
    again["spec"].pop("containers")
    put(cache, again)
    assert not cache.watch(0)
    assert engine.take() == ([], [])


def test_an_answer_that_was_lost_is_given_again() -> None:
    """A call that was cut short before its answer was used costs nothing."""
    cache = ObjectCache()
    engine = Engine(cache)
    put(cache, pod("a"))
    engine.take()
    put(cache, pod("b"))
    cache.remove(POD, Key("Pod", "shop", "a"))
    cache.changes(engine.known)
    assert engine.take() == (["b"], ["a"])


def test_a_list_is_the_exact_difference() -> None:
    """A complete list takes what it does not have, and leaves what is the same alone."""
    cache = ObjectCache()
    engine = Engine(cache)
    for name in ("a", "b", "c"):
        put(cache, pod(name))
    put(cache, service("s", "10.96.0.1", {}), SERVICE)
    engine.take()
    objects = [pod("b"), pod("c", ip="10.0.0.9"), pod("d")]
    cache.replace(POD, dict(POD.pack(o, "v1") for o in objects))
    assert engine.take() == (["c", "d"], ["a"])
    assert cache.count("Pod") == 3
    assert cache.count("Service") == 1


def test_made_again_under_its_name_is_a_change() -> None:
    """A pod that was replaced by one like it has another uid."""
    cache = ObjectCache()
    engine = Engine(cache)
    put(cache, pod("a"))
    engine.take()
    cache.remove(POD, Key("Pod", "shop", "a"))
    new = pod("a")
    new["metadata"]["uid"] = "another"
    put(cache, new)
    assert engine.take() == (["a"], [])


def test_watch_wakes_for_news() -> None:
    """A waiting consumer is woken at once, and only once."""
    cache = ObjectCache()
    assert not cache.watch(0.01)
    threading.Timer(0.05, put, (cache, pod("a"))).start()
    assert cache.watch(5)
    assert not cache.watch(0)


def test_bytes_per_pod_are_bounded() -> None:
    """What is kept of a pod of ordinary size stays below a kilobyte."""
    cache = ObjectCache()
    labels = {"app": "catalog", "pod-template-hash": "5d4f8c7b9", "version": "v1"}
    for i in range(100):
        p = pod(f"catalog-5d4f8c7b9-{i:05}", labels=labels, ip=f"10.1.{i}.1")
        p["metadata"]["managedFields"] = [{"x": "y" * 3000}]
        p["metadata"]["ownerReferences"] = [
            {"kind": "ReplicaSet", "name": "catalog-5d4f8c7b9", "controller": True, "uid": "u" * 36}
        ]
        p["spec"]["containers"] = [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]
        put(cache, p)
    assert cache.size("Pod") / 100 < 1000
