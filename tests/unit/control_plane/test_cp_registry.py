"""The registry follows changes, and recomputes no more than they touch."""

from __future__ import annotations

from typing import Any

import pytest
from cp_support import pod, policy, service

from control_plane.registry import Registry
from control_plane.resources import Snapshot
from control_plane.status import StatusWriter
from control_plane.translate.pods import MeshConfig
from mesh.manifest import Key
from mesh.model import Service, Workload
from mesh.model.convert import ADDRESS_TYPE, AUTHORIZATION_TYPE, address_untrusted
from waypoint.config.status import Status


def key(obj: dict[str, Any]) -> Key:
    return Key(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])


class World:
    def __init__(self, *objects: dict[str, Any]) -> None:
        self.registry = Registry(
            MeshConfig("istio-system", "cluster.local", "Kubernetes", "cluster.local")
        )
        self.apply(*objects)

    def apply(self, *objects: dict[str, Any]) -> Snapshot:
        return self.registry.update({key(o): o for o in objects}, set())

    def delete(self, obj: dict[str, Any]) -> Snapshot:
        return self.registry.update({}, {key(obj)})

    def address(self, name: str) -> Workload | Service:
        return address_untrusted(self.registry.snapshot.resources[ADDRESS_TYPE][name].payload)


def test_nothing_changed_is_the_same_snapshot() -> None:
    """An object written again without a change that matters makes no push."""
    w = World(pod("a"), service("s", "10.96.0.1", {"app": "a"}))
    before = w.registry.snapshot
    again = pod("a")
    again["metadata"]["annotations"]["unrelated"] = "x"
    assert w.apply(again) is before
    assert w.apply({"kind": "Deployment", "metadata": {"name": "d", "namespace": "shop"}}) is before


def test_snapshots_do_not_change_once_made() -> None:
    """A connection may hold an old snapshot while new ones are made."""
    w = World(pod("a", labels={"app": "a"}), service("s", "10.96.0.1", {"app": "a"}))
    before = w.registry.snapshot
    names = {t: dict(r) for t, r in before.resources.items()}
    aliases, members = dict(before.aliases), dict(before.members)
    w.apply(pod("b", ip="10.244.1.6", labels={"app": "a"}))
    w.delete(pod("a"))
    w.delete(service("s", "", {}))
    assert before.resources == names
    assert (before.aliases, before.members) == (aliases, members)


def test_unaffected_resources_are_untouched() -> None:
    """A change leaves every other resource the very same object: nothing is encoded again."""
    w = World(
        *(pod(f"p{i}", ip=f"10.244.1.{i}", labels={"app": f"a{i % 3}"}) for i in range(1, 30)),
        *(service(f"s{i}", f"10.96.0.{i}", {"app": f"a{i}"}) for i in range(3)),
    )
    before = dict(w.registry.snapshot.resources[ADDRESS_TYPE])
    changed = pod("p3", ip="10.244.1.3", labels={"app": "a1"})
    after = w.apply(changed).resources[ADDRESS_TYPE]
    assert [n for n in after if after[n] is not before[n]] == ["Kubernetes//Pod/shop/p3"]


def test_service_membership_follows_labels_and_selectors() -> None:
    """A relabelled pod leaves; a changed selector takes other pods."""
    s = "shop/s.shop.svc.cluster.local"
    w = World(
        pod("a", labels={"app": "a"}),
        pod("b", ip="10.244.1.6", labels={"app": "b"}),
        service("s", "10.96.0.1", {"app": "a"}),
    )
    assert w.registry.snapshot.members[s] == ("Kubernetes//Pod/shop/a",)
    w.apply(service("s", "10.96.0.1", {"app": "b"}))
    assert w.registry.snapshot.members[s] == ("Kubernetes//Pod/shop/b",)
    w.apply(pod("b", ip="10.244.1.6", labels={}))
    assert s not in w.registry.snapshot.members
    b = w.address("Kubernetes//Pod/shop/b")
    assert isinstance(b, Workload)
    assert not b.services


def test_locality_follows_the_node() -> None:
    """A node's labels may come after its pods, and change."""
    w = World(pod("a"))
    node: dict[str, Any] = {"kind": "Node", "metadata": {"namespace": "", "name": "n1"}}
    for zone in ("z1", "z2"):
        node["metadata"]["labels"] = {"topology.kubernetes.io/zone": zone}
        w.apply(node)
        a = w.address("Kubernetes//Pod/shop/a")
        assert isinstance(a, Workload)
        assert a.locality.zone == zone
    w.delete(node)
    a = w.address("Kubernetes//Pod/shop/a")
    assert isinstance(a, Workload)
    assert a.locality.zone == ""


def test_enrolment_shows_as_hbone() -> None:
    """HBONE exactly while the annotation says that capture was proved."""
    w = World(pod("a", enrolled=False))
    seen = []
    for enrolled in (False, True, False):
        w.apply(pod("a", enrolled=enrolled))
        a = w.address("Kubernetes//Pod/shop/a")
        assert isinstance(a, Workload)
        seen.append(a.tunnel.name)
    assert seen == ["NONE", "HBONE", "NONE"]


def test_address_reused_by_another_pod() -> None:
    """An address names both pods while both have it, and then the one that is left."""
    w = World(pod("old"), pod("new"))
    assert w.registry.snapshot.aliases["/10.244.1.5"] == (
        "Kubernetes//Pod/shop/new",
        "Kubernetes//Pod/shop/old",
    )
    w.delete(pod("old"))
    assert w.registry.snapshot.aliases["/10.244.1.5"] == ("Kubernetes//Pod/shop/new",)


def test_object_that_breaks_its_translation_keeps_the_last_reading(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One impossible object is logged by name and costs nothing else."""
    w = World(service("s", "10.96.0.1", {"app": "a"}))
    bad = service("s", "10.96.0.1", {"app": "a"})
    bad["spec"]["ports"] = 7
    snapshot = w.apply(bad, pod("a", labels={"app": "a"}))
    assert "Service shop/s" in caplog.text
    assert snapshot.members["shop/s.shop.svc.cluster.local"] == ("Kubernetes//Pod/shop/a",)


def test_policy_change_touches_selected_workloads_only() -> None:
    """New rules change the policy alone; a new selector changes who refers to it."""
    w = World(pod("a", labels={"app": "a"}), pod("b", ip="10.244.1.6", labels={"app": "b"}))
    p = policy("p", selector={"matchLabels": {"app": "a"}}, rules=[{}])
    w.apply(p)
    before = w.registry.snapshot
    p["spec"]["rules"] = []
    after = w.apply(p)
    assert after.resources[ADDRESS_TYPE] == before.resources[ADDRESS_TYPE]
    assert after.resources[AUTHORIZATION_TYPE] != before.resources[AUTHORIZATION_TYPE]
    p["spec"]["selector"] = {"matchLabels": {"app": "b"}}
    w.apply(p)
    refers = {}
    for name in ("a", "b"):
        found = w.address(f"Kubernetes//Pod/shop/{name}")
        assert isinstance(found, Workload)
        refers[name] = found.authorization_policies
    assert refers == {"a": (), "b": ("shop/p",)}


class FakeStore:
    """Remembers patches; merges them as the store would."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, dict[str, Any]]] = []

    def get(self, kind: str, namespace: str | None, name: str) -> dict[str, Any] | None:
        return None

    def patch(self, kind: str, namespace: str | None, name: str, manager: str, patch: Any) -> bool:
        assert manager == "control-plane"
        self.writes.append((name, patch))
        return True


def test_status_writes_what_differs_only() -> None:
    """Same outcome, no write; the transition time changes with the status, not with the message."""
    store = FakeStore()
    writer = StatusWriter(store)
    w = World()
    obj = policy("p", action="DENY", rules=[{"to": [{"operation": {"ports": ["80"]}}]}])

    def said() -> dict[Key, Status | None]:
        return {k: Status((c,)) for k, c in w.registry.conditions.items()}

    def step(now: str) -> None:
        obj["metadata"]["generation"] = obj["metadata"].get("generation", 0) + 1
        w.apply(obj)
        writer.write({key(obj): obj}, set(), said(), now)
        if store.writes:
            obj["status"] = store.writes[-1][1]["status"]

    step("t1")
    (condition,) = obj["status"]["conditions"]
    assert condition == {
        "type": "ZtunnelAccepted",
        "status": "True",
        "reason": "Accepted",
        "message": "attached to ztunnel",
        "lastTransitionTime": "t1",
        "observedGeneration": 1,
    }
    assert writer.write({key(obj): obj}, set(), said(), "t2") == 0
    assert len(store.writes) == 1
    obj["spec"]["rules"][0]["to"][0]["operation"]["methods"] = ["GET"]
    step("t3")
    assert obj["status"]["conditions"][0]["lastTransitionTime"] == "t1"
    assert obj["status"]["conditions"][0]["reason"] == "UnsupportedValue"
    obj["spec"]["rules"][0]["to"][0]["operation"]["ports"] = ["bad"]
    step("t4")
    assert obj["status"]["conditions"][0]["lastTransitionTime"] == "t4"
    w.delete(obj)
    assert writer.write({}, {key(obj)}, said(), "t6") == 0
