"""The cluster itself, before any mesh: what the other tests stand on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.cluster import Cluster, ClusterError
from tests.k8s.cluster.layout import hierarchies
from tests.k8s.installed import until
from tests.k8s.objects import container, namespace, pod, service, web, workload

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(180)]
NS = "plain"
FAMILIES = ["IPv4", "IPv6"]
LINK = "import os; print(os.readlink('/proc/1/ns/net'))"


@pytest.fixture(scope="module")
def plain(cluster: Cluster) -> Iterator[Cluster]:
    """A server on each node, a client, a host port, and a pod that looks into its node."""
    shared = {
        "name": "shared",
        "hostPath": {"path": "/var/lib/shared", "type": "DirectoryOrCreate"},
    }
    mount = {"name": "shared", "mountPath": "/shared", "mountPropagation": "Bidirectional"}
    inside = container(
        ["sleep", "infinity"], securityContext={"privileged": True}, volumeMounts=[mount]
    )
    cluster.apply(
        namespace(NS),
        workload("DaemonSet", NS, "web"),
        service(NS, "web"),
        pod(NS, "client", "n1"),
        pod(NS, "talker", "n2", containers=[container(["sh", "-c", "echo said; sleep infinity"])]),
        pod(NS, "door", "n2", containers=[web(ports=[{"containerPort": 8080, "hostPort": 8099}])]),
        pod(NS, "inside", "n1", hostPID=True, containers=[inside], volumes=[shared]),
    )
    cluster.kubectl("rollout", "status", "-n", NS, "daemonset/web", "--timeout=90s")
    cluster.kubectl("wait", "-n", NS, "--for=condition=Ready", "pod", "--all", "--timeout=90s")
    yield cluster
    cluster.kubectl("delete", "namespace", NS, "--timeout=90s")


def fetch(plain: Cluster, url: str, *words: str) -> str:
    """What the client pod gets."""
    return plain.exec(NS, "client", "curl", "-sS", "-m", "10", *words, url)


def servers(plain: Cluster, url: str) -> set[str]:
    """Who answers, each time over a new connection."""
    answers = fetch(plain, url, "-H", "Connection: close", *[url] * 15)
    return {line.split()[0] for line in answers.splitlines()}


def expect_both(plain: Cluster, url: str) -> None:
    """Expect the server of each node to answer, once each kube-proxy knows both."""
    until("both servers answer", lambda: len(servers(plain, url)) == 2)


def host(address: str) -> str:
    """An address as URLs have it."""
    return f"[{address}]" if ":" in address else address


def test_a_service_answers_by_name_from_both_nodes(plain: Cluster) -> None:
    expect_both(plain, "http://web")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_service_answers_at_the_address_of_each_family(plain: Cluster, family: str) -> None:
    vip = plain.get("service", "-n", NS, "web")["spec"]["clusterIPs"][FAMILIES.index(family)]
    expect_both(plain, f"http://{host(vip)}")


@pytest.mark.parametrize("family", FAMILIES)
def test_both_families_reach_a_pod_on_the_other_node(plain: Cluster, family: str) -> None:
    at = FAMILIES.index(family)
    pods = plain.get("pod", "-n", NS, "-l", "app=web")["items"]
    target = next(p for p in pods if p["spec"]["nodeName"] == "n2")["status"]["podIPs"]
    ours = plain.get("pod", "-n", NS, "client")["status"]["podIPs"]
    answer = fetch(plain, f"http://{host(target[at]['ip'])}:8080")
    assert answer.split()[1].removeprefix("::ffff:") == ours[at]["ip"]


def test_a_host_port_answers(plain: Cluster) -> None:
    assert plain.run_beside("curl", "-s", "http://10.88.0.12:8099").startswith("door ")


def test_exec_carries_output_and_failure(plain: Cluster) -> None:
    assert plain.exec(NS, "client", "cat", "/etc/hostname") == "client\n"
    with pytest.raises(ClusterError, match="exit code 3"):
        plain.exec(NS, "client", "sh", "-c", "exit 3")


def test_logs_are_read(plain: Cluster) -> None:
    assert plain.kubectl("logs", "-n", NS, "talker") == "said\n"


def test_a_node_has_its_own_run_bpf_and_disk(plain: Cluster) -> None:
    one, two = plain.nodes["n1"], plain.nodes["n2"]
    for path in ("/run/only", "/var/lib/only", "/opt/only", "/etc/only", "/sys/fs/bpf/only"):
        one.run("mkdir", path)
        with pytest.raises(ClusterError):
            two.run("ls", path)
        assert not Path(path).exists()
        one.run("rmdir", path)


def test_a_pod_of_the_host_s_processes_sees_those_of_its_node(plain: Cluster) -> None:
    init = plain.exec(NS, "inside", "cat", "/proc/1/cmdline")
    assert init.split("\0")[:4][1].endswith("node_init.sh")
    script = "cat /proc/[0-9]*/comm 2>/dev/null; true"  # some end meanwhile
    names = plain.exec(NS, "inside", "sh", "-c", script).split()
    assert names.count("containerd") == names.count("kubelet") == names.count("kube-proxy") == 1
    ours = plain.nodes["n1"].run("readlink", "/proc/1/ns/net")
    assert plain.exec(NS, "inside", "python3", "-c", LINK) == ours


def test_a_container_s_mount_is_seen_on_its_node(plain: Cluster) -> None:
    script = "import ctypes, os; os.makedirs('/shared/made', exist_ok=True); " + (
        "assert not ctypes.CDLL(None).mount(b'x', b'/shared/made', b'tmpfs', 0, None)"
    )
    plain.exec(NS, "inside", "python3", "-c", script)
    node = plain.nodes["n1"]
    assert "tmpfs" in node.run("findmnt", "-n", "-o", "FSTYPE", "/var/lib/shared/made")
    node.run("umount", "/var/lib/shared/made")
    until(
        "it is gone in the container",
        lambda: "/shared/made" not in plain.exec(NS, "inside", "cat", "/proc/mounts"),
    )


def test_a_node_s_control_groups_look_like_all_there_are(plain: Cluster) -> None:
    node = plain.nodes["n1"]
    top = hierarchies()[0]
    assert node.run("cat", "/proc/1/cgroup").splitlines()[-1] == "0::/init.scope"
    services = sorted(node.run("ls", f"{top}/system.slice").split())
    assert {"containerd.service", "kubelet.service"} <= set(services)
    pid = node.run("pgrep", "-x", "kubelet").strip()
    group = node.run("cat", f"{top}/system.slice/kubelet.service/cgroup.procs").split()
    assert group == [pid]
    uid = plain.get("pod", "-n", NS, "client")["metadata"]["uid"]
    found = node.run("find", f"{top}/kubepods", "-name", f"*{uid}*", "-type", "d")
    assert found.strip()


def test_packets_of_a_node_are_recorded(plain: Cluster) -> None:
    with plain.nodes["n2"].capture("tcp", "port", "8080") as file:
        pods = plain.get("pod", "-n", NS, "-l", "app=web")["items"]
        target = next(p for p in pods if p["spec"]["nodeName"] == "n2")["status"]["podIP"]
        fetch(plain, f"http://{target}:8080/seen-on-the-wire")
    assert b"GET /seen-on-the-wire" in file.read_bytes()


def test_nothing_survives_a_command_that_is_given_up(plain: Cluster) -> None:
    with pytest.raises(ClusterError, match="not done"):
        plain.nodes["n1"].run("sleep", "98765", timeout=1)
    until("it is gone", lambda: "98765" not in plain.nodes["n1"].run("ps", "ax", "-o", "args"))


def test_the_api_server_stops_and_comes_back(plain: Cluster) -> None:
    vip = plain.get("service", "-n", NS, "web")["spec"]["clusterIP"]
    with plain.control_plane.without_apiserver():
        with pytest.raises(ClusterError):
            plain.kubectl("get", "nodes", "--request-timeout=2s")
        assert plain.nodes["n1"].run("curl", "-sS", "-m", "5", f"http://{vip}").startswith("web-")
    assert len(plain.get("nodes")["items"]) == 2


@pytest.mark.parametrize("service", ["containerd", "kubelet"])
def test_pods_outlive_their_containerd_and_kubelet(plain: Cluster, service: str) -> None:
    def container_id() -> str:
        status = plain.get("pod", "-n", NS, "client")["status"]
        return str(status["containerStatuses"][0]["containerID"])

    before = container_id()
    getattr(plain.nodes["n1"], f"restart_{service}")()
    until("exec works again", lambda: plain.exec(NS, "client", "cat", "/etc/hostname"))
    plain.apply(pod(NS, f"after-{service}", "n1"))
    words = ["wait", "-n", NS, "--for=condition=Ready", f"pod/after-{service}", "--timeout=60s"]
    plain.kubectl(*words)
    assert container_id() == before


def test_a_rebooted_node_brings_its_pods_back(plain: Cluster) -> None:
    node = plain.nodes["n2"]
    before = plain.get("node", "n2")["status"]["nodeInfo"]
    node.run("touch", "/run/gone", "/var/lib/kept")
    node.reboot()
    assert node.run("ls", "/var/lib/kept").strip() == "/var/lib/kept"
    with pytest.raises(ClusterError):
        node.run("ls", "/run/gone")

    def back() -> bool:
        found = plain.get("pod", "-n", NS, "door")["status"]
        statuses = found.get("containerStatuses") or [{}]
        return bool(statuses[0].get("restartCount", 0) and statuses[0]["ready"])

    until("the pod runs again", back, 90)
    assert fetch(plain, "http://10.88.0.12:8099", "--retry", "5").startswith("door ")
    after = plain.get("node", "n2")["status"]["nodeInfo"]
    other = plain.get("node", "n1")["status"]["nodeInfo"]
    assert before["bootID"] != after["bootID"]
    assert before["machineID"] == after["machineID"] != other["machineID"]


def test_a_node_that_loses_power_tells_nobody(plain: Cluster) -> None:
    """A connection to it stays open at the other end, as it does with a real machine."""
    script = (
        "import socket, sys\n"
        "s = socket.create_connection(('10.88.0.12', 8099), 5)\n"
        "s.sendall(b'GET'); print('connected', flush=True); s.settimeout(6)\n"
        "try: print('got', s.recv(1))\n"
        "except TimeoutError: print('silence')\n"
    )
    place = plain.nodes["n1"].place()
    words = place.wrap_for_now(["/usr/bin/python3", "-c", script])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "connected\n"
        plain.nodes["n2"].stop()
        assert client.stdout.readline() == "silence\n"
    plain.nodes["n2"].start()
    plain.wait_ready()
