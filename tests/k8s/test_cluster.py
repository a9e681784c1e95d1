"""The cluster itself, before any mesh: what the other tests stand on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from lab import cgroups
from tests.k8s.cluster import Cluster, ClusterError
from tests.k8s.objects import namespace, pod, service, web, workload

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(180)]
NS = "plain"


@pytest.fixture(scope="module")
def plain(cluster: Cluster) -> Iterator[Cluster]:
    """A server on each node and a client."""
    cluster.apply(
        namespace(NS),
        workload("DaemonSet", NS, "web"),
        service(NS, "web"),
        pod(NS, "client", "n1"),
        pod(NS, "door", "n2", containers=[web(ports=[{"containerPort": 8080, "hostPort": 8099}])]),
    )
    cluster.kubectl("rollout", "status", "-n", NS, "daemonset/web", "--timeout=90s")
    cluster.kubectl("wait", "-n", NS, "--for=condition=Ready", "pod", "--all", "--timeout=90s")
    yield cluster
    cluster.kubectl("delete", "namespace", NS, "--timeout=90s")


def until(what: str, seen: Callable[[], object], seconds: float = 60) -> object:
    """Poll; what raises ClusterError is not there yet."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ClusterError):
            if value := seen():
                return value
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


def test_a_service_answers_by_name_from_both_nodes(plain: Cluster) -> None:
    seen = {plain.exec(NS, "client", "curl", "-s", "http://web").split()[0] for _ in range(12)}
    assert len(seen) == 2


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_both_families_reach_a_pod_on_the_other_node(plain: Cluster, family: str) -> None:
    pods = plain.get("pod", "-n", NS, "-l", "app=web")["items"]
    target = next(p for p in pods if p["spec"]["nodeName"] == "n2")["status"]["podIPs"]
    ours = plain.get("pod", "-n", NS, "client")["status"]["podIPs"]
    at = 0 if family == "-4" else 1
    host = f"[{target[at]['ip']}]" if at else target[at]["ip"]
    answer = plain.exec(NS, "client", "curl", "-s", family, f"http://{host}:8080")
    assert answer.split()[1].removeprefix("::ffff:") == ours[at]["ip"]


def test_a_host_port_answers(plain: Cluster) -> None:
    assert plain.run_beside("curl", "-s", "http://10.88.0.12:8099").startswith("door ")


def test_exec_carries_output_and_failure(plain: Cluster) -> None:
    assert plain.exec(NS, "client", "cat", "/etc/hostname") == "client\n"
    with pytest.raises(ClusterError, match="exit code 3"):
        plain.exec(NS, "client", "sh", "-c", "exit 3")


def test_pods_of_a_node_are_below_its_cgroup(plain: Cluster) -> None:
    node = plain.nodes["n1"]
    shown = node.run("cat", "/sys/fs/cgroup/unified/cgroup.procs").split()
    assert set(map(str, cgroups.members(node.node.cgroup))) >= set(shown) != set()


def test_the_api_server_stops_and_comes_back(plain: Cluster) -> None:
    plain.control_plane.stop_apiserver()
    with pytest.raises(ClusterError):
        plain.kubectl("get", "nodes", timeout=10)
    plain.control_plane.start_apiserver()
    assert len(plain.get("nodes")["items"]) == 2


def test_pods_outlive_their_containerd(plain: Cluster) -> None:
    before = plain.get("pod", "-n", NS, "client")["status"]["containerStatuses"][0]["containerID"]
    plain.nodes["n1"].restart_containerd()
    until("exec works again", lambda: plain.exec(NS, "client", "cat", "/etc/hostname"))
    after = plain.get("pod", "-n", NS, "client")["status"]["containerStatuses"][0]["containerID"]
    assert after == before


def test_a_rebooted_node_brings_its_pods_back_with_new_addresses(plain: Cluster) -> None:
    node = plain.nodes["n2"]
    node.run("touch", "/run/gone", "/var/lib/kept")
    node.reboot()
    assert node.run("ls", "/var/lib/kept").strip() == "/var/lib/kept"
    with pytest.raises(ClusterError):
        node.run("ls", "/run/gone")

    def back() -> bool:
        found = plain.get("pod", "-n", NS, "door")["status"]
        statuses = found.get("containerStatuses") or [{}]
        return bool(statuses[0].get("restartCount", 0) > 0 and statuses[0]["ready"])

    until("the pod runs again", back, 90)
    answer = plain.exec(NS, "client", "curl", "-s", "--retry", "5", "http://10.88.0.12:8099")
    assert answer.startswith("door ")
