"""Nothing refused while parts of the mesh come and go."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from lab import Lab
from tests.netns.mesh_objects import TOOL, client, line, pod, shop
from tests.netns.test_mesh_traffic import tool

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Lab]:
    with Lab("t-restart") as lab:
        lab.up(shop())
        yield lab


def start(lab: Lab, who: str, *args: str) -> subprocess.Popen[str]:
    """Run a verb in the background; returns once it is under way."""
    process = lab.popen(who, [sys.executable, TOOL, *args])
    assert process.stdout is not None
    process.stdout.readline()
    return process


def result(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=60)
    assert out.strip(), err
    return line(out)


def under_two_loops(
    lab: Lab, seconds: int, *disturb: Callable[[], None]
) -> list[dict[str, object]]:
    """Two loops of connects, across nodes both ways, while each disturbance happens."""
    loops = [
        start(lab, "mesh/client", "loop", "server", str(seconds)),
        start(lab, "mesh/other", "loop", "near", str(seconds)),
    ]
    pause = seconds / (len(disturb) + 1)
    for action in disturb:
        time.sleep(pause)
        action()
    return [result(p) for p in loops]


@pytest.mark.parametrize("kill", [False, True], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("part", ["ztunnel", "agent"])
def test_a_restart_refuses_no_connect(mesh: Lab, part: str, kill: bool) -> None:
    """ztunnel or the agent goes and comes back on both nodes: every connect() succeeds."""
    seen = under_two_loops(
        mesh,
        12,
        lambda: mesh.restart(f"{part}/node2", kill=kill),
        lambda: mesh.restart(f"{part}/node1", kill=kill),
    )
    for loop in seen:
        assert loop["connect"] == 0, loop
        assert loop["ok"] > 50, loop  # type: ignore[operator]
        if part == "agent":
            assert loop["exchange"] == 0, loop
    mesh.wait_ready()


def test_the_peers_death_ends_the_connection_and_its_return_heals(mesh: Lab) -> None:
    """The far ztunnel is killed: live streams end as errors, new ones work once it is back."""
    held = start(mesh, "mesh/client", "hold", "server", "15")
    time.sleep(1)
    mesh.restart("ztunnel/node2", kill=True)
    assert result(held)["end"] != "held"
    mesh.wait_ready()
    assert tool(mesh, "mesh/client", "outcome", "server", "9000")["end"] == "data"


def test_the_control_planes_absence_is_not_noticed_by_traffic(mesh: Lab) -> None:
    """What is known goes on while the control plane restarts."""
    for loop in under_two_loops(mesh, 8, lambda: mesh.restart("control-plane", kill=True)):
        assert (loop["connect"], loop["exchange"]) == (0, 0), loop


def test_label_and_unlabel_while_traffic_flows(mesh: Lab) -> None:
    """A namespace leaves the mesh and comes back: no restart, no connection attempt lost."""
    before = {p["metadata"]["uid"] for p in mesh.pods()}
    seen = under_two_loops(
        mesh,
        20,
        lambda: mesh.label("Namespace", "", "mesh", {"istio.io/dataplane-mode": None}),
        lambda: mesh.label("Namespace", "", "mesh", {"istio.io/dataplane-mode": "ambient"}),
    )
    for loop in seen:
        assert (loop["connect"], loop["exchange"]) == (0, 0), loop
    mesh.wait_ready()
    assert {p["metadata"]["uid"] for p in mesh.pods()} == before
    for p in mesh.pods():
        mode = p["metadata"].get("annotations", {}).get("ambient.istio.io/redirection")
        assert (mode == "enabled") == (p["metadata"]["namespace"] == "mesh")


def test_a_pod_label_opts_out(mesh: Lab) -> None:
    """The pod's own `none` beats its namespace, live."""
    mesh.label("Pod", "mesh", "other", {"istio.io/dataplane-mode": "none"})
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        other = mesh.get("Pod", "mesh", "other")
        if "ambient.istio.io/redirection" not in other["metadata"].get("annotations", {}):
            break
        time.sleep(0.2)
    else:
        pytest.fail("still captured 15 s after the label")
    assert tool(mesh, "mesh/other", "outcome", "server", "9000")["end"] == "data"
    mesh.label("Pod", "mesh", "other", {"istio.io/dataplane-mode": None})
    mesh.wait_ready()


def test_a_pod_deleted_in_mid_transfer_ends_the_connection(mesh: Lab) -> None:
    """The client sees an error soon, not a hang, and the node forgets the pod."""
    from tests.netns.mesh_objects import server

    victim = server("mesh", "victim", "node2")
    mesh.apply(victim)
    mesh.wait_ready()
    held = start(mesh, "mesh/client", "hold", "victim", "40")
    time.sleep(1)
    mesh.delete(victim)
    ended = result(held)
    assert ended["end"] != "held"
    assert float(ended["seconds"]) < 35  # type: ignore[arg-type]


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
    import json

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
