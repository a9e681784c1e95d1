"""`ambit status` and `ambit ztunnel` against a running mesh, as an operator types them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab import Lab
from tests.netns.drive import tool
from tests.netns.mesh_objects import policy, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

NAME = "t-views"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Lab]:
    with Lab(NAME) as lab:
        lab.up(shop())
        yield lab


def ambit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments, "--name", NAME],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def view(*arguments: str) -> Any:
    done = ambit("ztunnel", *arguments, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def eventually(true: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_a_mesh_that_is_well_says_so(mesh: Lab) -> None:
    """Exit code 0; every captured pod counted on its node, hooks and proxies named."""
    done = ambit("status", "-o", "json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["problems"]) == (0, [])
    enrolled = sum(node["pods"]["enrolled"] for node in report["nodes"])
    captured = [p for p in mesh.pods() if p["metadata"]["namespace"] == "mesh"]
    assert enrolled == len(captured) > 0
    assert all(node["redirect"] == "ebpf" for node in report["nodes"])
    assert all(node["ztunnel"]["ready"] for node in report["nodes"])
    assert report["controlPlane"]["connectedProxies"] == len(report["nodes"])
    assert "all is well" in ambit("status").stdout


def test_workloads_and_services_are_those_of_the_cluster(mesh: Lab) -> None:
    """Captured pods by HBONE, others by TCP; the service's VIP as the cluster has it."""
    found = {(w["namespace"], w["name"]): w for w in view("workload")}
    for pod in mesh.pods():
        meta = pod["metadata"]
        w = found[meta["namespace"], meta["name"]]
        assert pod["status"]["podIP"] in w["workloadIps"]
        assert w["protocol"] == ("HBONE" if meta["namespace"] == "mesh" else "TCP")
    vip = mesh.get("Service", "mesh", "server")["spec"]["clusterIP"]
    (service,) = view("service", "--address", vip)
    assert service["name"] == "server"


def test_every_captured_identity_has_a_valid_certificate(mesh: Lab) -> None:
    """One leaf per identity and node, within its validity."""
    done = ambit("ztunnel", "certificate", "-n", "mesh")
    leaves = [line for line in done.stdout.splitlines() if " Leaf " in line]
    assert leaves
    assert all(" true " in line for line in leaves)


def test_live_connections_are_shown_at_both_ends(mesh: Lab) -> None:
    """While a transfer stands: outbound at the client's node, inbound at the server's."""
    hold = (
        "import socket, time; s = socket.create_connection(('server.mesh', 9000)); time.sleep(60)"
    )
    with mesh.popen("mesh/client", [sys.executable, "-c", hold]) as process:
        try:
            both = {"inbound", "outbound"}

            def shown() -> bool:
                live = view("connections", "-n", "mesh")
                seen = {d for s in live for d in both if s.get("connections", {}).get(d)}
                return seen == both

            assert eventually(shown)
        finally:
            process.kill()


def test_a_policy_beyond_l4_is_wrong_and_explained(mesh: Lab) -> None:
    """Exit code 1, the policy and the field named, and a next step."""
    rule = {"to": [{"operation": {"methods": ["POST"], "ports": ["9009"]}}]}
    objects = [policy("mesh", "by-method", "server", "DENY", [rule])]
    mesh.apply(objects)
    try:
        assert eventually(lambda: ambit("status").returncode == 1)
        text = ambit("status").stdout
        assert "AuthorizationPolicy mesh/by-method" in text
        assert "methods" in text
        assert "next:" in text
    finally:
        mesh.delete(objects)
    assert eventually(lambda: ambit("status").returncode == 0)


def test_after_an_agents_death_the_mesh_is_well_again(mesh: Lab) -> None:
    """Its successor finds every pod captured and the proxy connected."""
    mesh.restart("agent/node1", kill=True)
    assert eventually(lambda: ambit("status").returncode == 0, seconds=20)


def test_log_level_changes_and_goes_back(mesh: Lab) -> None:
    """At every node, and -r undoes it."""
    assert ambit("ztunnel", "log", "--level", "access:debug").stdout.count("access=debug") == 2
    assert "access=debug" not in ambit("ztunnel", "log", "-r").stdout


def test_traffic_still_flows(mesh: Lab) -> None:
    """Looking did not disturb."""
    assert tool(mesh, "mesh/client", "outcome", "server.mesh", "9000")["end"] == "data"
