"""The agent as in a cluster, with the real CNI plugin, a small API server and a small runtime."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from agent_cluster import CONFLIST, ClusterRig, build_plugin, cluster_rig
from agent_rig import AWAY4, Pod, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plugin(tmp_path_factory.mktemp("plugin"))


@pytest.fixture
def node(tmp_path: Path, plugin: Path) -> Iterator[ClusterRig]:
    """A node with nothing running yet."""
    with cluster_rig(tmp_path, plugin) as made:
        yield made


@pytest.fixture
def managed(node: ClusterRig) -> ClusterRig:
    """With holder, agent and proxy."""
    node.start_holder()
    node.start_agent()
    node.start_proxy()
    node.manages()
    until(lambda: "has acknowledged every pod" in node.log(), "a proxy")
    return node


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode != 0
    error = json.loads(done.stdout)
    assert error["code"] == 11, error  # try again later
    for word in words:
        assert word in error["msg"], error


def test_a_pod_is_captured_before_its_first_process(managed: ClusterRig) -> None:
    """When the plugin has returned, the first connection already goes through the proxy."""
    pod = managed.create("web")
    done = managed.cni("ADD", pod)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["ips"][0]["address"] == f"{pod.ipv4}/24", "passed through"
    assert managed.ask(pod, AWAY4, 80) == f"{AWAY4} OUT {AWAY4} 80 127.0.0.1"
    managed.run_pod(pod)
    managed.enrolled(pod)
    assert managed.condition(pod)["status"] == "True"
    until(lambda: [e["reason"] for e in managed.api.events] == ["Captured"], "an event")
    writes = managed.api.writes
    time.sleep(1.5)
    assert managed.api.writes == writes == 1, "what does not change is not written"
    managed.remove(pod)
    until(lambda: pod.uid not in managed.fetch(8000, "/status"), "the pod is let go")


def test_labels_are_followed_and_a_running_pod_is_found(managed: ClusterRig) -> None:
    """A pod that started outside of the mesh has its namespace found by the runtime's word."""
    managed.label_namespace("")
    pod = managed.start_pod("web")
    assert managed.ask("world", pod.ipv4, 15008) == "", "nothing listens there"
    managed.label_namespace("ambient")
    managed.enrolled(pod)
    assert managed.ask(pod, AWAY4, 80).startswith(AWAY4)
    managed.label_namespace("")
    until(lambda: managed.mark(pod) == "", "released")
    assert managed.ask(pod, AWAY4, 80) == ""


def test_without_an_agent_only_pods_of_the_mesh_are_refused(managed: ClusterRig) -> None:
    """And all of them start once the mesh is gone."""
    assert managed.agent is not None
    until(lambda: (managed.lasting / "cni/kubeconfig").exists(), "the plugin's token")
    managed.kill(managed.agent)
    with ThreadPoolExecutor() as pool:
        mine, other = managed.create("mine"), managed.create("other", "none")
        waiting = pool.submit(managed.cni, "ADD", mine)
        assert managed.cni("ADD", other).returncode == 0
        refused(waiting.result(), "mesh/mine", "belongs to the mesh", "kubectl -n istio-system")
        managed.api.delete(("daemonsets", "istio-system", "ambit-node-agent"))
        assert managed.cni("ADD", mine).returncode == 0
        managed.api.set_away(True)
        refused(managed.cni("ADD", mine), "mesh/mine", "cannot be asked")
    assert "the mesh was removed" in (managed.lasting / "cni/plugin.log").read_text()
    assert managed.cni("DEL", mine).returncode == 0


def test_an_agent_that_comes_back_answers_who_waits(managed: ClusterRig) -> None:
    """The plugin goes on trying: an upgrade costs a pod's start some seconds, not a new sandbox."""
    assert managed.agent is not None
    managed.kill(managed.agent, signal.SIGTERM)
    assert managed.is_installed(), "it stays while the agent is away"
    pod = managed.create("web")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(managed.cni, "ADD", pod)
        time.sleep(1)
        managed.start_agent()
        assert waiting.result().returncode == 0
    managed.run_pod(pod)
    managed.enrolled(pod)


def test_a_proxy_that_is_away_keeps_pods_from_starting(node: ClusterRig) -> None:
    """Refused with the reason, and everything of the try is let go."""
    node.start_holder()
    node.start_agent()
    node.manages()
    pod = node.create("web")
    refused(node.cni("ADD", pod), "mesh/web", "no ztunnel is connected")
    until(lambda: pod.uid not in node.fetch(8000, "/status"), "the pod is let go")
    node.start_proxy()
    assert node.cni("ADD", pod).returncode == 0


def loops(node: ClusterRig, pod: Pod) -> list[subprocess.Popen[str]]:
    node.in_pod(pod, "serve", "8080")
    return [node.in_pod(pod, "loop", AWAY4, "80"), node.in_world("loop", pod.ipv4, "8080")]


def unharmed(node: ClusterRig, running: list[subprocess.Popen[str]]) -> None:
    for outcomes in [node.outcomes(process) for process in running]:
        assert not {k for k in outcomes if "Error" in k}, (outcomes, node.log()[-3000:])
        assert outcomes["ok"] > 50, outcomes


def test_agent_and_holder_killed_together_lose_nothing(managed: ClusterRig) -> None:
    """The proxy has the listeners: they are taken back from it."""
    assert managed.agent is not None
    pod = managed.start_pod("web")
    managed.enrolled(pod)
    running = loops(managed, pod)
    time.sleep(0.3)
    for process in (managed.holders[0], managed.agent):
        managed.kill(process)
    managed.start_holder()
    managed.start_agent()
    until(lambda: "taken back from the proxy" in managed.log(), "the listeners", 20)
    time.sleep(1)
    unharmed(managed, running)
    assert managed.mark(pod) == "enabled"
    assert "pending" not in managed.fetch(8000, "/status")


def test_an_upgrade_stands_by_and_takes_over(managed: ClusterRig) -> None:
    """As with maxSurge: the new pod's two processes come before the old ones are told to end."""
    assert managed.agent is not None
    pod = managed.start_pod("web")
    managed.enrolled(pod)
    running = loops(managed, pod)
    old_agent, old_holder = managed.agent, managed.holders[0]
    managed.start_holder()
    (managed.folder / "started").unlink()
    managed.start_agent()
    until(lambda: (managed.folder / "started").exists(), "the new agent stands by", 20)
    assert "standing by" in managed.log()
    for process in (old_agent, old_holder):
        process.send_signal(signal.SIGTERM)
    managed.manages(2)
    assert old_agent.wait(10) == 0
    assert old_holder.wait(10) == 0
    assert "descriptors taken over" in managed.log()
    time.sleep(0.5)
    unharmed(managed, running)
    assert managed.mark(pod) == "enabled"
    other = managed.start_pod("other")
    managed.enrolled(other)


def test_a_sandbox_made_again_is_captured_again(managed: ClusterRig) -> None:
    """Same pod, new namespace: seen by the plugin, and by the runtime when the plugin was not."""
    pod = managed.start_pod("db-0")
    managed.enrolled(pod)
    managed.stop_sandbox(pod)
    managed.make_sandbox(pod)
    assert managed.cni("ADD", pod).returncode == 0
    assert managed.ask(pod, AWAY4, 80).startswith(AWAY4)
    managed.run_pod(pod)
    managed.enrolled(pod)
    managed.cri_server.ready.pop(managed.sandboxes[pod.uid])
    managed.make_new_netns(pod)
    managed.run_pod(pod)
    until(lambda: managed.ask(pod, AWAY4, 80).startswith(AWAY4), "captured there", 30)


def test_a_pod_of_the_same_name_is_another_pod(managed: ClusterRig) -> None:
    """A StatefulSet's pod, deleted and made again."""
    first = managed.start_pod("db-0")
    managed.enrolled(first)
    managed.remove(first)
    second = managed.start_pod("db-0")
    managed.enrolled(second)
    assert first.uid not in managed.fetch(8000, "/status")
    stale = managed.create("db-0")
    stale.uid, managed.sandboxes[first.uid] = first.uid, managed.sandboxes[stale.uid]
    refused(managed.cni("ADD", stale), "has no pod mesh/db-0")


def test_while_the_api_server_is_away(managed: ClusterRig) -> None:
    """What is captured stays so; a pod that is known starts; changes are seen afterwards."""
    pod = managed.start_pod("web")
    managed.enrolled(pod)
    late = managed.create("late")
    time.sleep(0.5)
    managed.api.set_away(True)
    assert managed.cni("ADD", late).returncode == 0, "known from before"
    assert managed.ask(pod, AWAY4, 80).startswith(AWAY4)
    managed.api.set_away(False)
    managed.run_pod(late)
    managed.enrolled(late)


def test_cleanup_leaves_the_node_as_it_was(managed: ClusterRig) -> None:
    """CNI configuration to the byte; pods that run go on, in the open."""
    assert managed.agent is not None
    pod = managed.start_pod("web")
    managed.enrolled(pod)
    managed.kill(managed.agent, signal.SIGTERM)
    done = managed.spawn(
        managed.node, managed.cgroup / "system/agent", *managed.agent_command("--cleanup")
    )
    assert done.wait(30) == 0, managed.log()[-3000:]
    assert (managed.conf / "10-pods.conflist").read_bytes() == CONFLIST
    assert list(managed.bin.iterdir()) == []
    assert not managed.pins.exists()
    assert not (managed.lasting / "cni").exists()
    assert managed.mark(pod) == ""
    assert managed.condition(pod) == {}
    assert managed.ask(pod, AWAY4, 80) == ""
    assert managed.holders[0].wait(5) == 0


def test_many_pods_come_and_go_without_a_leak(managed: ClusterRig) -> None:
    """Descriptors of agent, holder and proxy, and what is pinned, are as before."""
    assert managed.agent is not None

    def start(i: int) -> Pod:
        pod = made[i]
        done = managed.cni("ADD", pod)
        assert done.returncode == 0, done.stdout
        managed.run_pod(pod)
        return pod

    def holdings() -> list[int]:
        assert managed.agent is not None
        processes = [managed.agent, managed.holders[0]]
        pinned = sum(1 for _ in (managed.pins / "pods").iterdir())
        return [*map(managed.descriptors, processes), pinned]

    before: list[int] = []
    for wave in range(4):
        made = [managed.create(f"pod-{wave}-{i}") for i in range(25)]
        with ThreadPoolExecutor(8) as pool:
            pods = list(pool.map(start, range(25)))
        managed.enrolled(*pods)
        for pod in pods:
            managed.remove(pod)
        until(lambda: managed.fetch(8000, "/status").count('"uid"') == 0, "all are let go", 20)
        if not wave:
            before = holdings()
    until(lambda: holdings() == before, "nothing is left", 20, lambda: (before, holdings()))
