"""Status: our part of it, as an API object, beside what others say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cp_support import service
from fake_api import FakeApi

from control_plane.kubernetes.kinds import KINDS
from control_plane.kubernetes.source import KubernetesSource
from control_plane.kubernetes.status import StatusApplier
from control_plane.metrics import Metrics
from control_plane.status import StatusBook, StatusWriter, is_current, make_status
from mesh.findings import Condition
from mesh.kube.api import Api
from mesh.manifest import Key
from mesh.store import FolderStore
from waypoint.config.status import CONTROLLER, ParentStatus, Status

REF = {"kind": "Service", "name": "cart"}
OTHERS = {"parentRef": REF, "controllerName": "istio.io/gateway-controller", "conditions": []}
ROUTE = Key("HTTPRoute", "shop", "r")
BOUND = Status((Condition("istio.io/WaypointBound", True, "WaypointAccepted", "attached"),))


def route(*parents: dict[str, Any], generation: int = 1) -> dict[str, Any]:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "r", "namespace": "shop", "generation": generation},
        "spec": {},
        **({"status": {"parents": list(parents)}} if parents else {}),
    }


def accepted(status: bool = True, reason: str = "Accepted") -> Status:
    return Status(parents=(ParentStatus(REF, (Condition("Accepted", status, reason, "x"),)),))


# ---- pure --------------------------------------------------------------------------------------


def test_parents_beside_those_of_other_controllers() -> None:
    """Theirs stay as they are; ours are replaced, each with the time of its last change."""
    first = make_status(route(OTHERS), accepted(), "t1")
    assert first["parents"][0] == OTHERS
    assert first["parents"][1] == {
        "parentRef": REF,
        "controllerName": CONTROLLER,
        "conditions": [
            {
                "type": "Accepted",
                "status": "True",
                "reason": "Accepted",
                "message": "x",
                "lastTransitionTime": "t1",
                "observedGeneration": 1,
            }
        ],
    }
    again = route(*first["parents"], generation=2)
    second = make_status(again, accepted(reason="Other"), "t2")
    (condition,) = second["parents"][1]["conditions"]
    assert (condition["lastTransitionTime"], condition["observedGeneration"]) == ("t1", 2)
    third = make_status(route(*second["parents"]), accepted(False), "t3")
    assert third["parents"][1]["conditions"][0]["lastTransitionTime"] == "t3"
    assert is_current(route(*third["parents"]), third)
    assert not is_current(again, third)


def test_what_is_said_no_more_is_taken_out() -> None:
    ours = make_status(route(OTHERS), accepted(), "t1")["parents"]
    assert make_status(route(*ours), Status(), "t2") == {"parents": [OTHERS]}
    assert make_status(route(OTHERS), Status(), "t2") == {}


def test_ancestors_of_policies() -> None:
    obj = {**route(), "kind": "XBackendTrafficPolicy"}
    made = make_status(obj, accepted(), "t1")
    assert [e["ancestorRef"] for e in made["ancestors"]] == [REF]


def test_conditions_within_fields() -> None:
    """Listeners are told apart by name; the times of each stay its own."""
    listeners = [
        {"name": n, "conditions": (Condition("Accepted", True, "Accepted", n),)} for n in "ab"
    ]
    status = Status(fields={"addresses": [], "listeners": listeners})
    obj = {**route(), "kind": "Gateway"}
    obj["status"] = make_status(obj, status, "t1")
    swapped = Status(
        fields={
            "addresses": [],
            "listeners": [
                listeners[1],
                {"name": "a", "conditions": (Condition("Accepted", False, "No", "a"),)},
            ],
        }
    )
    after = make_status(obj, swapped, "t2")["listeners"]
    assert [(x["name"], x["conditions"][0]["lastTransitionTime"]) for x in after] == [
        ("b", "t1"),
        ("a", "t2"),
    ]


def test_an_object_that_did_not_change_is_looked_up() -> None:
    """A Namespace's label says something about Services that nobody touched."""
    cart = service("cart", "10.96.0.7", {})
    book = StatusBook({Key("Service", "shop", "cart"): cart}.get)
    ((key, obj, wanted),) = book.update({}, set(), {Key("Service", "shop", "cart"): BOUND}, "t1")
    assert (key.name, obj) == ("cart", cart)
    assert wanted is not None
    assert wanted["conditions"][0]["type"] == "istio.io/WaypointBound"


def test_what_an_earlier_process_said_is_taken_back() -> None:
    """Its condition is there, and there is nothing to say about the object any more."""
    cart = service("cart", "10.96.0.7", {})
    cart["status"] = make_status(cart, BOUND, "t0")
    key = Key("Service", "shop", "cart")
    book = StatusBook(lambda _: None)
    ((_, _, wanted),) = book.update({key: cart}, set(), {}, "t1")
    assert wanted == {}
    theirs = {**route(), "kind": "Gateway"}  # of another controller: same types, not ours to take
    theirs["status"] = {"conditions": [{"type": "Accepted", "status": "True"}]}
    assert not list(book.update({Key("Gateway", "shop", "r"): theirs}, set(), {}, "t2"))


# ---- in a folder -------------------------------------------------------------------------------


def test_in_a_folder_it_comes_and_goes(tmp_path: Path) -> None:
    """Nothing of ours is left when there is nothing to say."""
    store = FolderStore(tmp_path)
    store.apply(route())
    store.patch("HTTPRoute", "shop", "r", "others", {"status": {"note": "theirs"}})
    writer = StatusWriter(store)
    assert writer.write({}, set(), {ROUTE: accepted()}, "t1") == 1
    found = store.get(*ROUTE)
    assert found is not None
    assert found["status"]["parents"][0]["controllerName"] == CONTROLLER
    assert writer.write({ROUTE: found}, set(), {}, "t2") == 0
    assert writer.write({}, set(), {ROUTE: None}, "t3") == 1
    found = store.get(*ROUTE)
    assert found is not None
    assert found["status"] == {"note": "theirs"}
    store.close()


# ---- in a cluster ------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[FakeApi]:
    api = FakeApi().start()
    yield api
    api.stop()


class Silent:
    def watch_restarted(self, kind: str) -> None:
        pass

    def relisted(self, kind: str) -> None:
        pass


def wait(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.01)


class Replica:
    """Source and statuses; says `said` of everything there is."""

    def __init__(self, server: FakeApi, folder: Path, kind: str, said: Status | None) -> None:
        self.said = said
        self.api = Api.load(server.kubeconfig(folder))
        kinds = tuple(k for k in KINDS if k.name == kind)
        self.source = KubernetesSource(self.api, kinds, Silent())
        self.status = StatusApplier(self.api, self.source, lambda: True, Metrics().writes)
        self.known: dict[Key, int] = {}
        self.ended = False
        self.source.start()
        self.status.start()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        wait(lambda: self.source.synced)
        while not self.ended:
            found, gone = self.source.changes(self.known)
            self.known.update({k: revision for k, (revision, _) in found.items()})
            changed = {k: o for k, (_, o) in found.items()}
            self.status.write(changed, gone, dict.fromkeys(self.known, self.said), "now")
            self.source.watch(0.1)

    def __enter__(self) -> Replica:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        self.thread.join(5)
        self.status.stop()
        self.source.close()
        self.api.close()


def parents(server: FakeApi) -> list[Any]:
    status = server.get("HTTPRoute", "shop", "r").get("status") or {}
    return list(status.get("parents", []))


def test_parents_are_merged_with_what_is_there_now(server: FakeApi, tmp_path: Path) -> None:
    """Read and written where nobody wrote meanwhile; another controller's entry stays."""
    server.put(route(OTHERS))
    with Replica(server, tmp_path, "HTTPRoute", accepted()) as r:
        wait(lambda: len(parents(server)) == 2)
        assert parents(server)[0] == OTHERS
        wait(lambda: not r.status.pending)
        time.sleep(0.3)
        assert len(server.asked("PATCH", "/status")) == 1
        r.said = None
        wait(lambda: parents(server) == [OTHERS])
        wait(lambda: not r.status.pending)


def test_a_condition_of_a_service_comes_and_goes(server: FakeApi, tmp_path: Path) -> None:
    """Taken back by applying nothing; what others say stays."""
    cart = service("cart", "10.96.0.7", {})
    cart["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    server.put(cart)

    def types() -> list[str]:
        return [c["type"] for c in server.get("Service", "shop", "cart")["status"]["conditions"]]

    with Replica(server, tmp_path, "Service", BOUND) as r:
        wait(lambda: types() == ["Ready", "istio.io/WaypointBound"])
        wait(lambda: not r.status.pending)
        r.said = None
        wait(lambda: types() == ["Ready"])
        wait(lambda: not r.status.pending)


def test_what_others_wrote_under_our_type_costs_one_try(server: FakeApi, tmp_path: Path) -> None:
    """Another mesh's WaypointBound is not ours to take, and not asked about for ever."""
    cart = service("cart", "10.96.0.7", {})
    cart["status"] = {"conditions": [{"type": "istio.io/WaypointBound", "status": "True"}]}
    server.put(cart)
    server.own("Service", "shop", "cart", "condition:istio.io/WaypointBound", "istiod")
    with Replica(server, tmp_path, "Service", None) as r:
        wait(lambda: server.asked("PATCH", "/status"))
        wait(lambda: not r.status.pending)
        time.sleep(0.3)
    assert len(server.asked("PATCH", "/status")) == 1
    assert len(server.get("Service", "shop", "cart")["status"]["conditions"]) == 1
