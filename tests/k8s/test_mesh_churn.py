"""300 pods come and go, and nothing of them stays behind on the nodes."""

from __future__ import annotations

import json
import time

import pytest

from tests.k8s.installed import AMBIENT, NS, Mesh, until
from tests.k8s.objects import container as make_container
from tests.k8s.objects import namespace, workload

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(900)]
CHURN = "churn"
WAVES, PODS = 5, 60
# A leak is one per pod, so hundreds; connections to the control plane come and go meanwhile.
SPARE_FDS = 8


def holdings(mesh: Mesh, node: str) -> dict[str, int]:
    """What a node has: namespaces, what the mesh's processes hold, entries of its maps, memory."""
    run = mesh.cluster.nodes[node].run
    found = {"netns": len(run("ip", "netns").splitlines())}
    for app, name in (
        ("ambit-node-agent", "agent"),
        ("ambit-node-agent", "holder"),
        ("ztunnel", ""),
    ):
        pod = mesh.agent_pod(node) if app == "ambit-node-agent" else mesh.ztunnel_pod(node)
        status = mesh.cluster.get("pod", "-n", NS, pod)["status"]["containerStatuses"]
        ids = [c["containerID"].split("//")[1] for c in status if not name or c["name"] == name]
        for pid in pids(mesh, node, ids[0]):
            key = name or app
            fds = run("sh", "-c", f"ls /proc/{pid}/fd 2>/dev/null | wc -l")
            # Not what it has of files: programs come into memory, and go, with the machine's.
            rss = run("sh", "-c", f"grep RssAnon /proc/{pid}/status 2>/dev/null || echo RssAnon: 0")
            found[f"{key} fds"] = found.get(f"{key} fds", 0) + int(fds)
            found[f"{key} KiB"] = found.get(f"{key} KiB", 0) + int(rss.split()[1])
    return found


def pids(mesh: Mesh, node: str, container: str) -> list[int]:
    out = mesh.cluster.nodes[node].ctr("tasks", "ps", container)
    return [int(line.split()[0]) for line in out.splitlines()[1:]]


def scale(mesh: Mesh, replicas: int) -> None:
    mesh.cluster.kubectl("scale", "-n", CHURN, "deployment/many", f"--replicas={replicas}")

    def settled() -> bool:
        found = mesh.cluster.get("pods", "-n", CHURN)["items"]
        return len(found) == replicas and all(map(mesh.is_captured, found))

    until(f"{replicas} pods, all captured", settled, 150)


def test_300_pods_come_and_go_without_a_leak(mesh: Mesh) -> None:
    sleeper = make_container(["sleep", "infinity"])
    mesh.cluster.apply(
        namespace(CHURN, **AMBIENT),
        workload("Deployment", CHURN, "many", replicas=1, containers=[sleeper]),
    )
    try:
        scale(mesh, PODS)  # the first wave: what grows once, and stays, is no leak
        scale(mesh, 0)
        before = {node: holdings(mesh, node) for node in mesh.cluster.nodes}
        for _ in range(WAVES - 1):
            scale(mesh, PODS)
            scale(mesh, 0)
        deadline = time.monotonic() + 180  # nodes take pods down after they are gone
        while (left := left_behind(mesh, before)) and time.monotonic() < deadline:
            time.sleep(1)
        assert not left
        print(json.dumps({"before": before, "after": {n: holdings(mesh, n) for n in before}}))
    finally:
        mesh.cluster.kubectl("delete", "namespace", CHURN, "--timeout=180s")


def left_behind(mesh: Mesh, before: dict[str, dict[str, int]]) -> dict[str, tuple[int, int]]:
    """What is more than before, as (before, now): namespaces, descriptors, memory."""
    found = {}
    for node, then in before.items():
        for key, value in holdings(mesh, node).items():
            most = then.get(key, 0)
            if key.endswith("KiB"):
                most += most // 10 + 4096
            elif key.endswith("fds"):
                most += SPARE_FDS
            if value > most:
                found[f"{node} {key}"] = (then.get(key, 0), value)
    return found
