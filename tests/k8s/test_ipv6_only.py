"""The mesh in a cluster that has IPv6 alone: nothing of it depends on IPv4."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.k8s.cluster import Cluster
from tests.k8s.installed import AMBIENT, NS, Mesh, ambit, gateway_crds, load_images, until
from tests.k8s.objects import namespace, pod, service, workload

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(400)]
SHOP, OUT = "shop", "outside"
STRICT = {
    "apiVersion": "security.istio.io/v1",
    "kind": "PeerAuthentication",
    "metadata": {"namespace": SHOP, "name": "strict"},
    "spec": {"mtls": {"mode": "STRICT"}},
}


@pytest.fixture(scope="module")
def six() -> Iterator[Mesh]:
    """A cluster of its own, with the mesh and a server on each node."""
    cluster = Cluster("six", ("ipv6",))
    try:
        cluster.up(print)
        load_images(cluster)
        words = ["--profile", "demo", "-y", "--gateway-api-crds", str(gateway_crds())]
        done = ambit(cluster, "install", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        cluster.apply(
            namespace(SHOP, **AMBIENT),
            namespace(OUT),
            workload("DaemonSet", SHOP, "web"),
            service(SHOP, "web"),
            pod(SHOP, "one", "n1"),
            pod(OUT, "two", "n2"),
        )
        rollout = ["rollout", "status", "-n", SHOP, "daemonset/web", "--timeout=120s"]
        cluster.kubectl(*rollout)
        mesh = Mesh(cluster)
        mesh.wait_ready(SHOP)
        mesh.wait_ready(OUT)
        yield mesh
    finally:
        cluster.down()


def test_everything_is_there_and_has_no_ipv4_address(six: Mesh) -> None:
    six.wait_components()
    six.wait_captured(SHOP)
    for ns in (NS, SHOP, OUT):
        addresses = [a["ip"] for p in six.pods(ns) for a in p["status"]["podIPs"]]
        assert addresses, ns
        assert all(":" in a for a in addresses), addresses


def test_requests_to_both_nodes_go_by_mutual_tls(six: Mesh) -> None:
    """STRICT: others are refused, probes stay green, servers see the caller's address."""
    six.cluster.apply(STRICT)
    until("strict", lambda: six.is_refused(OUT, "two", "http://web.shop"))
    started = time.time()
    answers = [six.curl(SHOP, "one", "http://web").split() for _ in range(12)]
    assert len({server for server, _ in answers}) == 2
    mine = six.cluster.get("pod", "-n", SHOP, "one")["status"]["podIP"]
    assert {client for _, client in answers} == {mine}
    lines = [x for x in six.access_log(started) if "/ns/shop/sa/default" in x]
    assert len(lines) >= 12 + 5, "the server's proxy names the identity, and the client's"
    six.wait_ready(SHOP)


def test_a_waypoint_serves(six: Mesh) -> None:
    """Its Deployment gets ready, and the path that its policy denies is refused."""
    made = ambit(six.cluster, "waypoint", "apply", "-n", SHOP, "--wait")
    assert made.returncode == 0, made.stdout + made.stderr
    label = "istio.io/use-waypoint=waypoint"
    six.cluster.kubectl("label", "-n", SHOP, "service/web", label)
    six.cluster.apply(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"namespace": SHOP, "name": "no-secrets"},
            "spec": {
                "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "action": "DENY",
                "rules": [{"to": [{"operation": {"paths": ["/secret"]}}]}],
            },
        }
    )

    def code(path: str) -> str:
        words = ["-o", "/dev/null", "-w", "%{http_code}"]
        return six.curl(SHOP, "one", f"http://web{path}", *words)

    until("the waypoint judges", lambda: code("/secret") == "403", 60)
    assert code("/open") == "200"
