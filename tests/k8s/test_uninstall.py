"""`ambit uninstall --purge` takes the mesh out of a cluster and of every node.

Runs last of all files here: what it removes, the others use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.k8s.cluster import Cluster
from tests.k8s.installed import Mesh, ambit, until
from tests.k8s.objects import pod, service, web

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(400)]

NS = "leaving"
LABEL = "istio.io/dataplane-mode=ambient"
FOLDERS = ("/run/ambit", "/run/ztunnel", "/var/lib/ambit", "/sys/fs/bpf/ambit")
KINDS = (
    "ns,crd,clusterrole,clusterrolebinding,role,rolebinding,validatingadmissionpolicy,"
    "validatingadmissionpolicybinding,configmap,secret,serviceaccount,service,daemonset,"
    "deployment,lease,poddisruptionbudget"
)


@pytest.fixture(scope="module")
def gone(mesh: Mesh) -> Iterator[Cluster]:
    """A cluster that had the mesh and captured pods on both nodes, and has it no more."""
    cluster = mesh.cluster
    cluster.kubectl("create", "namespace", NS)
    cluster.apply(
        pod(NS, "near", "n1"), pod(NS, "far", "n2", containers=[web()]), service(NS, "far")
    )
    mesh.wait_ready(NS)
    cluster.kubectl("label", "namespace", NS, LABEL)
    mesh.wait_captured(NS)
    assert "far" in mesh.curl(NS, "near", "http://far")
    done = ambit(cluster, "uninstall", "--purge", "-y")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clean nodes: 2" in done.stdout
    yield cluster
    cluster.kubectl("delete", "namespace", NS, "--timeout=90s")


def test_nothing_of_it_is_in_the_api(gone: Cluster) -> None:
    """No object with our label, no namespace, no definition, and no mark on a pod."""
    left = gone.get(KINDS, "-A", "-l", "app.kubernetes.io/part-of=ambit")["items"]
    assert [f"{i['kind']} {i['metadata']['name']}" for i in left] == []
    names = {i["metadata"]["name"] for i in gone.get("ns,crd")["items"]}
    assert not [n for n in names if "istio" in n or n.endswith("gateway.networking.k8s.io")]
    maps = gone.get("configmap", "-A")["items"]
    assert "istio-ca-root-cert" not in {m["metadata"]["name"] for m in maps}
    for one in gone.get("pod", "-A")["items"]:
        text = json.dumps([one["metadata"].get("annotations"), one["status"].get("conditions")])
        assert "ambient.istio.io/redirection" not in text, one["metadata"]["name"]
        assert "ambit.io/" not in text, one["metadata"]["name"]


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_nothing_of_it_is_on_a_node(gone: Cluster, node: str) -> None:
    """No folder, no pin, no plugin, no line in the CNI configuration, no process."""
    there = gone.nodes[node].run("sh", "-c", f"ls -d {' '.join(FOLDERS)} 2>/dev/null || true")
    assert there.split() == []
    assert "ambit" not in gone.nodes[node].run("ls", "/opt/cni/bin")
    text = gone.nodes[node].run("sh", "-c", "ls /etc/cni/net.d; cat /etc/cni/net.d/*")
    assert "ambit" not in text


def test_pods_go_on_and_new_ones_start(gone: Cluster) -> None:
    """The label is still there and means nothing; nobody listens inside pods any more."""
    until("far answers", lambda: "far" in gone.exec(NS, "near", "curl", "-sm5", "http://far"), 30)
    for name in ("near", "far"):
        listening = gone.exec(NS, name, "cat", "/proc/net/tcp", "/proc/net/tcp6")
        ports = {
            int(line.split()[1].rpartition(":")[2], 16)
            for line in listening.splitlines()
            if len(line.split()) > 3 and line.split()[3] == "0A"
        }
        assert not ports & {15001, 15006, 15008}, name
    gone.apply(pod(NS, "late", "n2"))
    gone.kubectl("wait", "-n", NS, "--for=condition=Ready", "pod/late", "--timeout=60s")
    assert "far" in gone.exec(NS, "late", "curl", "-sm5", "http://far")


def test_it_can_be_installed_again(gone: Cluster) -> None:
    """As if it had never been there; and goes again."""
    done = ambit(gone, "install", "--profile", "minimal", "-y")
    assert done.returncode == 0, done.stdout + done.stderr
    mesh = Mesh(gone)
    mesh.wait_captured(NS)
    assert "far" in mesh.curl(NS, "near", "http://far")
    done = ambit(gone, "uninstall", "--purge", "-y")
    assert done.returncode == 0, done.stdout + done.stderr
