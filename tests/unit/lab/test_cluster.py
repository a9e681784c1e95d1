"""The cluster's turn, where it can be seen without root."""

from __future__ import annotations

from typing import Any

import pytest

from lab.cluster import Cluster


class Runner:
    """What the cluster asks of a running pod."""

    key = "shop/cart"
    number = 2

    def __init__(self) -> None:
        self.node = type("Node", (), {"name": "node1"})()
        self.seen: list[dict[str, Any]] = []
        self.stopped = False

    def update(self, pod: dict[str, Any]) -> None:
        self.seen.append(pod)

    def stop(self, now: float) -> None:
        self.stopped = True


def pod(**metadata: str) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"namespace": "shop", "name": "cart", **metadata},
        "spec": {"nodeName": "node1"},
    }


@pytest.fixture
def running() -> tuple[Cluster, Runner]:
    """One pod runs; no node would take another."""
    cluster = Cluster.__new__(Cluster)
    runner = Runner()
    cluster._pods = {"u1": runner}  # type: ignore[dict-item]
    cluster._nodes = {}
    cluster._by_key = {}
    return cluster, runner


def test_a_pod_rewritten_by_hand_in_mid_turn_runs_on(running: tuple[Cluster, Runner]) -> None:
    cluster, runner = running
    cluster._adopt_pods([pod()], now=1.0)  # its file has no uid until the next turn
    assert not runner.stopped
    cluster._adopt_pods([pod(uid="u1")], now=2.0)
    assert not runner.stopped
    assert [p["metadata"]["uid"] for p in runner.seen] == ["u1"]


def test_a_new_pod_without_identity_waits_and_a_deleted_one_ends(
    running: tuple[Cluster, Runner],
) -> None:
    cluster, runner = running
    other = pod()
    other["metadata"]["name"] = "other"
    cluster._adopt_pods([other], now=1.0)
    assert runner.stopped
    assert list(cluster._pods) == ["u1"]
