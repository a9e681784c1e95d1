"""Many certificates and many pods: rotation under load, and a hundred pods through restarts."""

from __future__ import annotations

import json

import pytest

from lab import Lab
from tests.netns.drive import result, start, tool, under_two_loops
from tests.netns.mesh_objects import client, pod, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def test_rotation_under_load_drops_nothing() -> None:
    """Certificates of a few seconds: many renewals, a held connection and a loop see none."""
    with Lab("t-rotate", env={"ztunnel": {"SECRET_TTL": "8s"}}) as lab:
        lab.up(shop())
        first = serials(lab)
        held = start(lab, "mesh/client", "hold", "server", "20")
        looped = start(lab, "mesh/client", "loop", "server", "20")
        loop, hold = result(looped), result(held)
        assert (loop["connect"], loop["exchange"]) == (0, 0), loop
        assert hold["end"] == "held", hold
        assert first.isdisjoint(serials(lab))


def serials(lab: Lab) -> set[str]:
    """Serial numbers of node1's leaf certificates."""
    dump = json.loads(lab.fetch("node1", 15000, "/config_dump"))
    found = {c["serialNumber"] for e in dump["certificates"] for c in e["certChain"][:1]}
    assert found
    return found


def test_a_hundred_pods() -> None:
    """The same with 100 pods: all captured, restarts refuse nothing."""
    crowd = [
        o
        for i in range(96)
        for o in pod("mesh", f"p{i}", f"node{i % 2 + 1}", ["sleep", "infinity"])
    ]
    with Lab("t-hundred") as lab:
        lab.up([*shop(), *client("mesh", "extra", "node1"), *crowd], timeout=120)
        captured = [
            p
            for p in lab.pods()
            if p["metadata"].get("annotations", {}).get("ambient.istio.io/redirection") == "enabled"
        ]
        assert len(captured) >= 100
        seen = under_two_loops(
            lab,
            20,
            lambda: lab.restart("ztunnel/node2", kill=True),
            lambda: lab.restart("agent/node1", kill=True),
            lambda: lab.restart("ztunnel/node1"),
        )
        for loop in seen:
            assert loop["connect"] == 0, loop
            assert loop["ok"] > 50, loop  # type: ignore[operator]
        assert tool(lab, "mesh/p0", "outcome", "server", "9000")["end"] == "data"
