"""300 pods come and go, and nothing of them stays behind on the nodes."""

from __future__ import annotations

import json

import pytest

from tests.k8s.installed import AMBIENT, NS, Mesh, until
from tests.k8s.objects import container as make_container
from tests.k8s.objects import namespace, workload

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(900)]
CHURN = "churn"
WAVES, PODS = 5, 60


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
            rss = run("sh", "-c", f"grep VmRSS /proc/{pid}/status 2>/dev/null || echo VmRSS: 0")
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
        scale(mesh, PODS)  # what grows once, and stays, is no leak
        scale(mesh, 0)
        before = {node: holdings(mesh, node) for node in mesh.cluster.nodes}
        for _ in range(WAVES):
            scale(mesh, PODS)
            scale(mesh, 0)
        until("the nodes are clean", lambda: is_clean(mesh, before), 60)
        print(json.dumps({"before": before, "after": {n: holdings(mesh, n) for n in before}}))
    finally:
        mesh.cluster.kubectl("delete", "namespace", CHURN, "--timeout=180s")


def is_clean(mesh: Mesh, before: dict[str, dict[str, int]]) -> bool:
    """As many namespaces and descriptors as before, memory within a tenth."""
    for node, then in before.items():
        now = holdings(mesh, node)
        for key, value in now.items():
            most = then[key] * 1.1 + 4096 if key.endswith("KiB") else then[key]
            if value > most:
                return False
    return True
