"""One leader at most, whatever the clocks say, and soon another when it goes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api import FakeApi

from control_plane.kubernetes import election as module
from control_plane.kubernetes.election import DEADLINE, DURATION, Election, LeaderElection
from mesh.kube.api import Api


class Lease:
    """The API server's copy, with versions."""

    def __init__(self) -> None:
        self.spec: dict[str, Any] | None = None
        self.version = 0

    def read(self) -> tuple[dict[str, Any] | None, int]:
        return ({"spec": dict(self.spec)} if self.spec is not None else None), self.version

    def write(self, spec: dict[str, Any], version: int) -> bool:
        if version != self.version:
            return False
        self.spec, self.version = spec, self.version + 1
        return True


class Candidate:
    """An election with a clock of its own, which may be off and run at another pace."""

    def __init__(self, name: str, lease: Lease, offset: float = 0.0, pace: float = 1.0) -> None:
        self.election = Election(name)
        self.lease = lease
        self.offset, self.pace = offset, pace
        self.reached = True

    def now(self, true: float) -> float:
        return true * self.pace + self.offset

    def leads(self, true: float) -> bool:
        return self.election.leading(self.now(true))

    def attempt(self, true: float, late: float = 0.0) -> None:
        """One round; `late`: seconds the write takes to arrive."""
        if not self.reached:
            return
        lease, version = self.lease.read()
        spec = self.election.wish(lease, self.now(true), f"{self.now(true):.3f}")
        if spec is None:
            return
        if self.lease.write(spec, version):
            self.election.won(self.now(true))
        else:
            self.election.lost()


def test_first_comes_first_and_the_other_waits() -> None:
    """The one that finds no lease leads; the other takes over when it has run out, not before."""
    lease = Lease()
    a, b = Candidate("a", lease), Candidate("b", lease)
    a.attempt(0)
    b.attempt(0)
    assert (a.leads(0), b.leads(0)) == (True, False)
    a.reached = False
    for t in range(1, 15):
        b.attempt(t)
        assert not b.leads(t)
    b.attempt(DURATION)
    assert b.leads(DURATION)
    assert not a.leads(DURATION)
    assert lease.spec is not None
    assert lease.spec["leaseTransitions"] == 1


def test_a_leader_that_cannot_renew_stops_by_itself() -> None:
    """Before the lease runs out for others it is over for the holder."""
    lease = Lease()
    a = Candidate("a", lease)
    a.attempt(0)
    assert a.leads(DEADLINE - 0.1)
    assert not a.leads(DEADLINE)
    assert DEADLINE < DURATION
    a.attempt(12)
    assert a.leads(13)


def test_a_lease_taken_by_another_is_lost_at_once() -> None:
    """Reading another holder ends leadership, although time is left."""
    lease = Lease()
    a = Candidate("a", lease)
    a.attempt(0)
    lease.spec = {**(lease.spec or {}), "holderIdentity": "b"}
    lease.version += 1
    a.attempt(1)
    assert not a.leads(1)


def test_a_released_lease_is_taken_without_waiting() -> None:
    """An empty holder is nobody."""
    lease = Lease()
    a, b = Candidate("a", lease), Candidate("b", lease)
    a.attempt(0)
    lease.spec = {**(lease.spec or {}), "holderIdentity": "", "leaseDurationSeconds": 1}
    lease.version += 1
    b.attempt(0.5)
    assert b.leads(0.5)


def test_the_lease_says_how_long_it_holds() -> None:
    """A longer duration, written by another version, is honoured."""
    lease = Lease()
    lease.spec = {"holderIdentity": "old", "renewTime": "x", "leaseDurationSeconds": 60}
    b = Candidate("b", lease)
    for t in range(0, 60, 2):
        b.attempt(t)
        assert not b.leads(t)
    b.attempt(60)
    assert b.leads(60)


@pytest.mark.parametrize("seed", range(20))
def test_never_two_leaders(seed: int) -> None:
    """Clocks apart by hours and 2 % of pace, partitions at random: never two at one moment."""
    rng = random.Random(seed)
    lease = Lease()
    candidates = [
        Candidate(f"c{i}", lease, rng.uniform(-9e4, 9e4), rng.uniform(0.98, 1.02)) for i in range(3)
    ]
    led = set()
    for step in range(4000):
        true = step * 0.25
        for candidate in candidates:
            if rng.random() < 0.01:
                candidate.reached = not candidate.reached
            if rng.random() < 0.15:
                candidate.attempt(true)
        leaders = [c.election.identity for c in candidates if c.leads(true)]
        assert len(leaders) <= 1
        led.update(leaders)
    assert len(led) > 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    monkeypatch.setattr(module, "RETRY", 0.05)
    monkeypatch.setattr(module, "DURATION", 1.0)
    monkeypatch.setattr(module, "DEADLINE", 0.6)
    monkeypatch.setattr(module, "_TIMEOUT", 0.3)
    api = FakeApi().start()
    yield api
    if api._server is not None:
        api.stop()


def _wait(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_processes_and_a_server_that_dies(server: FakeApi, tmp_path: Path) -> None:
    """One leads; its end hands over at once; without an API server nobody leads, then one again."""
    api = Api.load(server.kubeconfig(tmp_path))
    a, b = (LeaderElection(api, "istio-system", "ambit-control-plane", n) for n in ("a", "b"))
    a.start()
    _wait(a.leading)
    b.start()
    time.sleep(0.2)
    assert a.leading()
    assert not b.leading()
    began = time.monotonic()
    a.stop()
    _wait(b.leading)
    assert time.monotonic() - began < 0.5
    assert not a.leading()
    server.stop()
    _wait(lambda: not b.leading())
    server.start()
    _wait(b.leading)
    lease = server.get("Lease", "istio-system", "ambit-control-plane")
    assert lease["spec"]["holderIdentity"] == b.identity
    assert lease["metadata"]["labels"] == {"app.kubernetes.io/part-of": "ambit"}
    b.stop()
    lease = server.get("Lease", "istio-system", "ambit-control-plane")
    assert lease["spec"]["holderIdentity"] == ""
    api.close()
