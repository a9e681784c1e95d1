"""The control core: when a pod is served, and what its worker is told. Workers are a list."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from mesh.ca.held import Held
from mesh.ca.store import CertStore
from mesh.model import Action, Authorization, Gateway, Port, Scope, Service, Tunnel, Workload
from mesh.model.convert import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.wire import zds
from mesh.xds.delta import DeltaClient, Update
from ztunnel import control as control_module
from ztunnel import ipc
from ztunnel.control import Control
from ztunnel.desk import Desk, OnDemand
from ztunnel.telemetry import Telemetry

POD = Workload(
    "c//Pod/shop/web-1",
    "web-1",
    "shop",
    ("10.244.1.5",),
    "web",
    tunnel=Tunnel.HBONE,
    workload_name="web",
    authorization_policies=("shop/selected",),
)
ADD = zds.Add("uid-1", "web-1", "shop", "web", (zds.OUTBOUND_V4,), zds.REDIRECT_EBPF)
IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"


class Workers:
    """A pool that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Any, int]] = []

    def __len__(self) -> int:
        return 2

    def shard(self, uid: str) -> int:
        return int(uid[-1]) % 2

    def alive(self) -> list[int]:
        return [0, 1]

    def send(self, index: int, message: object, fds: Iterable[int] = ()) -> None:
        self.told.append((index, message, len(list(fds))))

    def broadcast(self, message: object) -> None:
        for index in self.alive():
            self.send(index, message)

    def take(self) -> list[Any]:
        told, self.told = self.told, []
        return [message for _, message, _ in told]


class Rig:
    def __init__(self) -> None:
        self.control = Control("cluster.local", "", CertStore(lambda: 0.5))
        self.workers = Workers()
        self.telemetry = Telemetry(self.control.service_of, lambda lines: None)
        self.control.attach(self.workers, self.telemetry)
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1

    def address(self, *values: Workload | Service, removed: tuple[str, ...] = ()) -> None:
        named = [(v.uid if isinstance(v, Workload) else v.key, v) for v in values]
        self.control.update(Update(ADDRESS_TYPE, tuple(named), removed), True)

    def policy(self, *values: Authorization, removed: tuple[str, ...] = ()) -> None:
        named = tuple((v.key, v) for v in values)
        self.control.update(Update(AUTHORIZATION_TYPE, named, removed), True)

    def certificate(self, identity: str = IDENTITY) -> ipc.Certificate:
        certificate = ipc.Certificate(identity, b"c", b"k", b"r", time.time() + 1000)
        held = Held(certificate, time.time(), (), ())
        self.control.certs.due(time.time())
        assert self.control.certs.granted(identity, held, time.time())
        self.control.certificate(held)
        return certificate

    def add(self, add: zds.Add = ADD) -> asyncio.Future[str]:
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(1 + len(add.listeners))]
        return asyncio.ensure_future(self.control.add(add, fds, self.wake))

    async def serve(self) -> None:
        self.address(POD)
        adding = self.add()
        await asyncio.sleep(0)
        self.certificate()
        assert await adding == ""
        self.workers.take()


def run(body: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        rig = Rig()
        await body(rig)
        rig.control.close()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors leaked"


def policy(name: str, scope: Scope = Scope.WORKLOAD_SELECTOR) -> Authorization:
    return Authorization(name, "shop", scope, Action.DENY)


def test_served_when_workload_policies_and_certificate_are_known() -> None:
    """In whatever order they come; the worker gets the certificate first, then all the rest."""

    async def body(rig: Rig) -> None:
        adding = rig.add()
        await asyncio.sleep(0)
        assert rig.woken == 1
        assert rig.workers.take() == []
        certificate = rig.certificate()
        assert rig.workers.take() == []
        rig.policy(policy("selected"), policy("other"), policy("all", Scope.NAMESPACE))
        assert rig.workers.take() == []
        rig.address(POD)
        assert await adding == ""
        index, told, fds = rig.workers.told[1]
        assert rig.workers.told[0][1] == certificate
        assert (index, fds) == (1, 2)
        assert told.uid == "uid-1"
        assert told.addresses == ("10.244.1.5",)
        assert told.peer.identity == IDENTITY
        assert [p.name for p in told.policies] == ["all", "selected"]

    run(body)


def test_a_pod_that_is_about_to_start_is_promised() -> None:
    """Without an address it is no workload yet: its connections wait in the listeners."""

    async def body(rig: Rig) -> None:
        rig.policy(policy("selected"))
        adding = rig.add()
        await asyncio.sleep(0)
        assert not adding.done(), "without a certificate nothing is promised"
        rig.certificate()
        assert await adding == ""
        assert rig.workers.take() == [], "nor is anything served without its policies"
        rig.address(POD)
        _, told = rig.workers.take()
        assert [p.name for p in told.policies] == ["selected"]

    run(body)


def test_nothing_is_served_before_the_policies_came_once() -> None:
    """A restarted proxy must not serve a pod without the policies it had."""

    async def body(rig: Rig) -> None:
        rig.control.update(Update(ADDRESS_TYPE, ((POD.uid, POD),), ()), synced=False)
        adding = rig.add()
        await asyncio.sleep(0)
        rig.certificate()
        assert rig.workers.take() == []
        rig.policy(policy("selected"))
        assert await adding == ""

    run(body)


@pytest.mark.parametrize("missing", ["answer", "workload", "certificate"])
def test_deadline_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """The agent is told why, and the pod is forgotten."""
    monkeypatch.setattr(control_module, "ADD_DEADLINE", 0.05)

    async def body(rig: Rig) -> None:
        if missing == "workload":
            rig.policy()
        if missing == "certificate":
            rig.address(POD)
        error = await rig.add()
        expected = {
            "answer": "has not answered yet",
            "workload": "has not sent it as a workload",
            "certificate": f"no certificate for {IDENTITY}",
        }
        assert expected[missing] in error
        assert rig.control.pods == {}
        assert rig.control.certs.identities == {}

    run(body)


def test_only_concerned_pods_hear_of_policies() -> None:
    """A selector policy that is listed, a namespace's, a global one; not another pod's."""

    async def body(rig: Rig) -> None:
        await rig.serve()
        rig.policy(policy("unlisted"))
        assert rig.workers.take() == []
        rig.policy(policy("selected"))
        (told,) = rig.workers.take()
        assert told == ipc.Policies("uid-1", (policy("selected"),))
        rig.policy(policy("selected"))
        assert rig.workers.take() == [], "nothing has changed"
        rig.policy(removed=("shop/selected",))
        assert rig.workers.take() == [ipc.Policies("uid-1", ())]

    run(body)


def test_workload_that_lists_another_policy_gets_it() -> None:
    """The list is the workload's: its change is a change of policies."""

    async def body(rig: Rig) -> None:
        await rig.serve()
        rig.policy(policy("new"))
        rig.address(replace(POD, authorization_policies=("shop/new",)))
        (told,) = rig.workers.take()
        assert isinstance(told, ipc.PodAdd)
        assert told.policies == (policy("new"),)

    run(body)


def test_workers_forget_only_what_may_have_changed() -> None:
    """Answers rest on resources; a change of others does not disturb."""

    async def body(rig: Rig) -> None:
        await rig.serve()
        desk = Desk(rig.control)
        desk.worker_said(1, ipc.RouteQuery(7, "uid-1", "10.96.0.1", 80))
        assert rig.workers.take() == [ipc.RouteReply(7, ipc.Route(passthrough=True))]
        rig.address(Service("x", "shop", "x.shop", vips=("10.96.0.2",)))
        assert rig.workers.take() == []
        rig.address(Service("y", "shop", "y.shop", vips=("10.96.0.1",), ports=(Port(80, 80),)))
        assert rig.workers.take() == [ipc.Forget(), ipc.Forget()]

    run(body)


def test_question_of_an_unknown_pod_is_answered() -> None:
    """A pod that was just removed: refused, not left waiting."""

    async def body(rig: Rig) -> None:
        Desk(rig.control).worker_said(0, ipc.RouteQuery(7, "gone", "10.96.0.1", 80))
        (reply,) = rig.workers.take()
        assert "local workload" in reply.route.error

    run(body)


def test_new_certificate_goes_to_the_workers_that_use_it() -> None:
    """Renewal reaches a running pod's worker once, and nobody else."""

    async def body(rig: Rig) -> None:
        await rig.serve()
        certificate = rig.certificate()
        assert [(i, m) for i, m, _ in rig.workers.told] == [(1, certificate)]

    run(body)


def test_fresh_worker_is_told_everything_again() -> None:
    """Certificate, listeners and policies of its own pods."""

    async def body(rig: Rig) -> None:
        await rig.serve()
        rig.control.worker_started(0)
        assert rig.workers.take() == []
        rig.control.worker_started(1)
        first, second = rig.workers.take()
        assert isinstance(first, ipc.Certificate)
        assert isinstance(second, ipc.PodAdd)

    run(body)


def test_certificate_is_sent_again_after_its_last_pod_left() -> None:
    """A worker drops keys with the last pod that uses them, and gets them with the next."""

    async def body(rig: Rig) -> None:
        await rig.serve()
        third = replace(ADD, uid="uid-2", name="web-2")  # another worker's
        rig.address(replace(POD, uid="web-2", name="web-2", addresses=("10.244.1.6",)))
        assert await rig.add(third) == ""
        rig.control.remove("uid-1")
        rig.workers.take()
        assert await rig.add() == ""
        assert [type(m) for m in rig.workers.take()] == [ipc.Certificate, ipc.PodAdd]

    run(body)


def test_pod_said_again_replaces_its_descriptors() -> None:
    """A restarted agent sends every pod again: the worker takes the new listeners at once."""

    async def body(rig: Rig) -> None:
        await rig.serve()
        assert await rig.add() == ""
        (told,) = rig.workers.take()
        assert isinstance(told, ipc.PodAdd)
        assert rig.control.started == 1
        assert rig.control.remove("uid-1")
        assert rig.workers.take() == [ipc.PodDel("uid-1")]
        assert not rig.control.remove("uid-1")

    run(body)


def test_refused_again_takes_the_pod_from_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that was served and, said again, cannot be: its worker must not go on."""
    monkeypatch.setattr(control_module, "ADD_DEADLINE", 0.05)

    async def body(rig: Rig) -> None:
        await rig.serve()
        other = replace(ADD, service_account="other")
        assert "has not sent it" in await rig.add(other)
        assert rig.workers.take() == [ipc.PodDel("uid-1")]

    run(body)


def test_workload_that_the_control_plane_forgets_is_kept_for_its_pod() -> None:
    """The pod is still here: its policies and its name stay as they were."""

    async def body(rig: Rig) -> None:
        await rig.serve()
        rig.address(removed=(POD.uid,))
        assert rig.control.pods["uid-1"].workload == POD
        assert [m for m in rig.workers.take() if not isinstance(m, ipc.Forget)] == []

    run(body)


def test_inbound_service_of_a_pod() -> None:
    """For labels and logs of inbound connections."""

    async def body(rig: Rig) -> None:
        service = Service("web", "shop", "web.shop", ports=(Port(80, 8080),))
        rig.address(service, replace(POD, services={service.key: ()}))
        adding = rig.add()
        await asyncio.sleep(0)
        rig.certificate()
        await adding
        assert rig.control.service_of("uid-1", 8080) == ipc.ServiceRef("web", "shop", "web.shop")
        assert rig.control.service_of("uid-1", 1) is None
        assert rig.control.service_of("gone", 8080) is None

    run(body)


class Asked:
    """An xDS client that only remembers what it was asked for."""

    def __init__(self) -> None:
        self.state = DeltaClient({ADDRESS_TYPE: bytes.decode}, [ADDRESS_TYPE])
        self.names: list[str] = []

    def demand(self, type_url: str, name: str) -> None:
        self.names.append(name)


def test_on_demand_question_waits_for_its_answer() -> None:
    """The address is asked for once; the answer comes when the resource has."""

    async def body(rig: Rig) -> None:
        await rig.serve()
        asked = Asked()
        rig.control.demand = OnDemand(asked)  # type: ignore[arg-type]
        desk = Desk(rig.control)
        for query in (1, 2):
            desk.worker_said(1, ipc.RouteQuery(query, "uid-1", "10.244.2.9", 80))
        await asyncio.sleep(0.01)
        assert asked.names == ["/10.244.2.9"]
        assert rig.workers.take() == []
        rig.address(replace(POD, uid="late", name="late", addresses=("10.244.2.9",)))
        await asyncio.sleep(0.01)
        replies = [m for m in rig.workers.take() if isinstance(m, ipc.RouteReply)]
        assert [r.query for r in replies] == [1, 2]
        assert replies[0].route.endpoints[0].peer.pod == "late"

    run(body)


def test_on_demand_fetches_the_waypoint_too() -> None:
    """A service that names a waypoint nobody asked for yet: that is asked for next."""

    async def body(rig: Rig) -> None:
        await rig.serve()
        asked = Asked()
        rig.control.demand = OnDemand(asked)  # type: ignore[arg-type]
        desk = Desk(rig.control)
        desk.worker_said(1, ipc.RouteQuery(1, "uid-1", "10.96.0.1", 80))
        await asyncio.sleep(0.01)
        gateway = Gateway(15008, namespace="shop", hostname="wp.shop")
        rig.address(Service("y", "shop", "y.shop", vips=("10.96.0.1",), waypoint=gateway))
        await asyncio.sleep(0.01)
        assert asked.names == ["/10.96.0.1", "shop/wp.shop"]
        rig.address(Service("wp", "shop", "wp.shop", vips=("10.96.0.9",)))
        await asyncio.sleep(0.01)
        (reply,) = [m for m in rig.workers.take() if isinstance(m, ipc.RouteReply)]
        assert "unknown waypoint" in reply.route.error
        desk.worker_said(1, ipc.RouteQuery(2, "uid-1", "10.96.0.1", 80))
        assert [m for m in rig.workers.take() if isinstance(m, ipc.RouteReply)], "all is known"

    run(body)
