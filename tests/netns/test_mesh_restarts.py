"""Nothing refused while parts of the mesh come and go."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from lab import Lab
from tests.netns.drive import result, start, tool, under_two_loops
from tests.netns.mesh_objects import server, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Lab]:
    with Lab("t-restart") as lab:
        lab.up(shop())
        yield lab


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
    victim = server("mesh", "victim", "node2")
    mesh.apply(victim)
    mesh.wait_ready()
    held = start(mesh, "mesh/client", "hold", "victim", "40")
    time.sleep(1)
    mesh.delete(victim)
    ended = result(held)
    assert ended["end"] != "held"
    assert float(ended["seconds"]) < 35  # type: ignore[arg-type]
