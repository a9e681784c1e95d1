"""Status in a cluster: what differs, once, by the leader, and nobody's fields taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cp_support import policy
from fake_api import FakeApi

from control_plane.kubernetes import pacing
from control_plane.kubernetes import status as module
from control_plane.kubernetes.kinds import KINDS
from control_plane.kubernetes.pacing import FIRST, MOST, SPACING, Pacer
from control_plane.kubernetes.source import KubernetesSource
from control_plane.kubernetes.status import StatusApplier
from control_plane.metrics import Metrics
from mesh.findings import Condition
from mesh.kube.api import Api
from mesh.manifest import Key
from waypoint.config.status import Status

ACCEPTED = Condition("ZtunnelAccepted", True, "Accepted", "attached to ztunnel")
POLICIES = tuple(k for k in KINDS if k.name == "AuthorizationPolicy")


@pytest.fixture
def server() -> Iterator[FakeApi]:
    api = FakeApi().start()
    yield api
    if api._server is not None:
        api.stop()


def wait(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.01)


class Silent:
    def watch_restarted(self, kind: str) -> None:
        pass

    def relisted(self, kind: str) -> None:
        pass


class Replica:
    """Source and statuses of one control plane: every policy deserves the same condition."""

    def __init__(self, server: FakeApi, folder: Path, leads: bool = True) -> None:
        self.leads = leads
        self.condition = ACCEPTED
        self.api = Api.load(server.kubeconfig(folder))
        self.metrics = Metrics()
        self.source = KubernetesSource(self.api, POLICIES, Silent())
        self.status = StatusApplier(self.api, self.source, lambda: self.leads, self.metrics.writes)
        self.known: dict[Key, int] = {}
        self.ended = False
        self.source.start()
        self.status.start()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        wait(lambda: self.source.synced)
        while not self.ended:
            self.refresh()
            self.source.watch(0.1)

    def refresh(self) -> None:
        found, gone = self.source.changes(self.known)
        self.known.update({k: revision for k, (revision, _) in found.items()})
        for key in gone:
            del self.known[key]
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        changed = {k: o for k, (_, o) in found.items()}
        self.status.write(changed, gone, dict.fromkeys(self.known, Status((self.condition,))), now)

    def __enter__(self) -> Replica:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        self.thread.join(5)
        self.status.stop()
        self.source.close()
        self.api.close()


def writes(server: FakeApi) -> int:
    return len(server.asked("PATCH", "/status"))


def conditions(server: FakeApi, name: str) -> list[dict[str, Any]]:
    status = server.get("AuthorizationPolicy", "shop", name).get("status", {})
    found: list[dict[str, Any]] = status.get("conditions", [])
    return found


def test_one_write_for_one_difference(server: FakeApi, tmp_path: Path) -> None:
    """Applied under our name, without force; seen, and not written again."""
    server.put(policy("p"))
    with Replica(server, tmp_path) as r:
        wait(lambda: conditions(server, "p") and not r.status.pending)
        time.sleep(0.3)
        assert writes(server) == 1
        ((_, path, query),) = server.asked("PATCH", "/status")
        assert path == "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/p/status"
        assert query == {"fieldManager": "ambit-control-plane", "force": "false"}
        (condition,) = conditions(server, "p")
        assert condition["observedGeneration"] == 1
        server.put(policy("p", action="DENY"))
        wait(lambda: conditions(server, "p")[0]["observedGeneration"] == 2)
        wait(lambda: not r.status.pending)
        assert writes(server) == 2
        assert conditions(server, "p")[0]["lastTransitionTime"] == condition["lastTransitionTime"]


def test_another_condition_takes_the_place_of_ours(server: FakeApi, tmp_path: Path) -> None:
    """A policy that moved to a waypoint loses the old condition; others' stay."""
    theirs = {"type": "Ready", "status": "True", "reason": "x", "message": ""}
    p = policy("p")
    p["status"] = {"conditions": [theirs]}
    server.put(p)
    with Replica(server, tmp_path) as r:
        wait(lambda: len(conditions(server, "p")) == 2)
        r.condition = Condition("WaypointAccepted", False, "Invalid", "no waypoint")
        r.refresh()
        wait(lambda: [c["type"] for c in conditions(server, "p")] == ["Ready", "WaypointAccepted"])
        wait(lambda: not r.status.pending)
    assert conditions(server, "p")[0] == theirs


def test_two_replicas_write_once(server: FakeApi, tmp_path: Path) -> None:
    """The follower has the same wishes and writes none; it takes over what is left."""
    for i in range(20):
        server.put(policy(f"p{i}"))
    (tmp_path / "b").mkdir()
    with Replica(server, tmp_path) as a, Replica(server, tmp_path / "b", leads=False) as b:
        wait(lambda: writes(server) == 20)
        wait(lambda: not a.status.pending and not b.status.pending)
        assert writes(server) == 20
        a.leads = False
        server.put(policy("late"))
        wait(lambda: b.status.pending == 1)
        time.sleep(0.2)
        assert writes(server) == 20
        b.leads = True
        wait(lambda: not b.status.pending)
        assert writes(server) == 21


def test_many_changes_are_paced(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst, then a steady rate; in the end one write for each object."""
    monkeypatch.setattr(module, "RATE", 100.0)
    for i in range(150):
        server.put(policy(f"p{i}"))
    began = time.monotonic()
    with Replica(server, tmp_path) as r:
        wait(lambda: writes(server) == 150)
        assert time.monotonic() - began > (150 - module.BURST) / 100.0
        wait(lambda: not r.status.pending)
    assert writes(server) == 150


def test_somebody_who_undoes_it_makes_no_storm(server: FakeApi, tmp_path: Path) -> None:
    """What is undone is written again, ever less often."""
    server.put(policy("p"))
    with Replica(server, tmp_path):
        end = time.monotonic() + 3
        undone = 0
        while time.monotonic() < end:
            if conditions(server, "p"):
                p = server.get("AuthorizationPolicy", "shop", "p")
                p["status"] = {"conditions": []}
                server.put(p)
                undone += 1
            time.sleep(0.01)
    assert 1 <= writes(server) <= 4
    assert undone >= 1


def test_what_others_own_is_left_to_them(
    server: FakeApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A conflict is said once, and costs one try in a while."""
    p = policy("p")
    p["status"] = {"conditions": [{"type": "ZtunnelAccepted", "status": "False", "reason": "x"}]}
    server.put(p)
    server.own("AuthorizationPolicy", "shop", "p", "condition:ZtunnelAccepted", "istiod")
    with Replica(server, tmp_path) as r:
        wait(lambda: "istiod" in caplog.text)
        time.sleep(0.5)
        assert r.status.pending == 1
    assert writes(server) == 1
    assert conditions(server, "p")[0]["reason"] == "x"


def test_an_object_that_goes_or_a_server_that_goes(server: FakeApi, tmp_path: Path) -> None:
    """A deleted object is forgotten; without the API server wishes wait for it."""
    server.put(policy("p"))
    with Replica(server, tmp_path, leads=False) as r:
        wait(lambda: r.status.pending == 1)
        server.delete("AuthorizationPolicy", "shop", "p")
        wait(lambda: r.status.pending == 0)
        server.put(policy("q"))
        wait(lambda: r.status.pending == 1)
        server.stop()
        r.leads = True
        time.sleep(0.3)
        assert r.status.pending == 1
        server.start()
        wait(lambda: conditions(server, "q"))


def test_pacing() -> None:
    """New content soon, the same ever later, and from the start again after long peace."""
    p = Pacer()
    assert p.due_at("k", "a") == 0
    p.wrote("k", "a", 100.0)
    assert p.due_at("k", "b") == 100 + SPACING
    assert p.due_at("k", "a") == 100 + FIRST
    at = 100.0
    for _ in range(10):
        at = p.due_at("k", "a")
        p.wrote("k", "a", at)
    assert p.due_at("k", "a") == at + MOST
    at += MOST + pacing._FORGET + 1
    p.wrote("k", "a", at)
    assert p.due_at("k", "a") == at + FIRST
    p.trim(at + MOST + pacing._FORGET + 1)
    assert p.due_at("k", "a") == 0
