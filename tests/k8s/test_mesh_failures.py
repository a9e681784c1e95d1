"""What breaks in a cluster, under loops of requests: agent, proxy, runtime, API server, a node."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.k8s.installed import AMBIENT, NS, Load, Mesh, until
from tests.k8s.objects import container, namespace, pod, service, workload
from tests.k8s.test_mesh import policy

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(400)]
SHOP = "shop"
LOOPS = ("loop-n1", "loop-n2")


@pytest.fixture(scope="module")
def busy(mesh: Mesh) -> Iterator[Mesh]:
    """A server on each node that takes only mutual TLS, and a client on each node."""
    mesh.cluster.apply(
        namespace(SHOP, **AMBIENT),
        namespace("outside"),
        workload("DaemonSet", SHOP, "web"),
        service(SHOP, "web"),
        policy("PeerAuthentication", "strict", mtls={"mode": "STRICT"}),
        pod(SHOP, "one", "n1"),
        pod(SHOP, "two", "n2"),
        pod("outside", "stranger", "n1"),
    )
    mesh.cluster.kubectl("rollout", "status", "-n", SHOP, "daemonset/web", "--timeout=120s")
    mesh.wait_ready(SHOP)
    mesh.wait_ready("outside")
    mesh.wait_captured(SHOP)
    yield mesh
    mesh.cluster.kubectl("delete", "namespace", SHOP, "outside", "--timeout=120s")


@pytest.fixture(autouse=True)
def whole(busy: Mesh) -> Iterator[None]:
    """Every test begins and ends with a mesh that is whole, and closed to strangers."""
    yield
    busy.wait_components()
    busy.wait_captured(SHOP)
    until(
        "strangers are refused", lambda: busy.is_refused("outside", "stranger", "http://web.shop")
    )


def loads(busy: Mesh, seconds: float) -> list[Load]:
    return [Load(busy.cluster, SHOP, name, "web", seconds) for name in ("one", "two")]


def expect_no_failure(running: list[Load], at_least: int) -> None:
    for load in running:
        done, failed = load.result()
        assert not failed, f"{len(failed)} of {done + len(failed)}: {failed[:5]}"
        assert done > at_least


def kill(busy: Mesh, node: str, name: str, number: int) -> None:
    """Signal a container's first process on its node."""
    container_id = (
        busy.cluster.nodes[node]
        .ctr("containers", "ls", f'labels."io.kubernetes.container.name"=={name}', "-q")
        .split()
    )
    assert container_id, f"no container {name} on {node}"
    running = busy.cluster.nodes[node].ctr("tasks", "ls")
    for each in container_id:
        if re.search(rf"^{each} .*RUNNING", running, re.MULTILINE):  # not one that ended before
            busy.cluster.nodes[node].ctr("tasks", "kill", "-s", str(number), each)


def restarts(busy: Mesh, app: str, node: str) -> int:
    found = [p for p in busy.pods(NS, app=app) if p["spec"]["nodeName"] == node]
    return sum(c["restartCount"] for p in found for c in p["status"]["containerStatuses"])


def test_a_killed_agent_loses_no_connection_and_captures_what_started_meanwhile(busy: Mesh) -> None:
    before = restarts(busy, "ambit-node-agent", "n1")
    running = loads(busy, 25)
    time.sleep(2)
    kill(busy, "n1", "agent", 9)
    busy.cluster.apply(
        pod(
            SHOP,
            "born",
            "n1",
            containers=[container(["sh", "-c", "curl -sS -m 20 http://web; sleep 300"])],
        )
    )
    until("the agent runs again", lambda: restarts(busy, "ambit-node-agent", "n1") > before)
    until(
        "the pod is captured", lambda: busy.is_captured(busy.cluster.get("pod", "-n", SHOP, "born"))
    )
    ready = ["--for=condition=Ready", "--timeout=60s"]
    busy.cluster.kubectl("wait", "-n", SHOP, "pod/born", *ready)
    until("an answer", lambda: busy.cluster.kubectl("logs", "-n", SHOP, "born").strip())
    assert busy.cluster.kubectl("logs", "-n", SHOP, "born").startswith("web-")
    busy.cluster.kubectl("delete", "-n", SHOP, "pod/born")
    expect_no_failure(running, 100)


def test_a_restarted_proxy_loses_no_new_connection(busy: Mesh) -> None:
    running = loads(busy, 30)
    time.sleep(2)
    busy.cluster.kubectl("rollout", "restart", "-n", NS, "daemonset/ztunnel")
    busy.cluster.kubectl("rollout", "status", "-n", NS, "daemonset/ztunnel", "--timeout=120s")
    expect_no_failure(running, 100)


def test_a_restarted_agent_daemonset_loses_no_new_connection(busy: Mesh) -> None:
    running = loads(busy, 45)
    time.sleep(2)
    busy.cluster.kubectl("rollout", "restart", "-n", NS, "daemonset/ambit-node-agent")
    busy.cluster.kubectl(
        "rollout", "status", "-n", NS, "daemonset/ambit-node-agent", "--timeout=180s"
    )
    expect_no_failure(running, 100)


@contextlib.contextmanager
def loops(busy: Mesh, seconds: int, at_least: int) -> Iterator[None]:
    """Requests from pods of their own, since an exec ends with the API server or containerd.

    They begin before the block, may outlast it, and none may fail.
    """
    command = ["python3", "-c", Load.SCRIPT, "web", str(seconds)]
    spec = {"restartPolicy": "Never", "containers": [container(command)]}
    named = [f"pod/{name}" for name in LOOPS]
    running = ["--for=jsonpath={.status.phase}=Running", "--timeout=60s"]
    over = ["--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s"]
    busy.cluster.apply(*[pod(SHOP, name, name[-2:], **spec) for name in LOOPS])
    try:
        busy.cluster.kubectl("wait", "-n", SHOP, *named, *running)
        yield
        for name in named:
            until(
                "the loop is over",
                partial(busy.cluster.kubectl, "wait", "-n", SHOP, name, *over),
                120,
            )
            good, failed = json.loads(busy.cluster.kubectl("logs", "-n", SHOP, name))
            assert not failed, f"{len(failed)} of {good + len(failed)}: {failed[:5]}"
            assert good > at_least
    finally:
        busy.cluster.kubectl("delete", "-n", SHOP, "--grace-period=1", *named)


def expect_new_pods(busy: Mesh, seconds: float) -> None:
    """Expect that each node starts one, captured."""
    new = [f"new-{node}" for node in busy.cluster.nodes]
    busy.cluster.apply(*[pod(SHOP, name, name[-2:]) for name in new])
    busy.wait_ready(SHOP, seconds)
    busy.wait_captured(SHOP)
    busy.cluster.kubectl("delete", "-n", SHOP, "--grace-period=1", *[f"pod/{name}" for name in new])


def test_a_minute_without_the_api_server(busy: Mesh) -> None:
    """Traffic goes on; what is changed afterwards holds soon."""
    deny = {"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/nobody"]}}]}

    def accepted() -> bool:
        found = busy.cluster.get("authorizationpolicy", "-n", SHOP, "after")
        return "ZtunnelAccepted" in str(found.get("status"))

    with loops(busy, 75, 300):
        with busy.cluster.control_plane.without_apiserver():
            time.sleep(60)
        busy.cluster.apply(policy("AuthorizationPolicy", "after", action="DENY", rules=[deny]))
        # A stopping API server takes its address from the Service; kube-proxy is as slow as anybody
        # in finding it again.
        until("the control plane sees changes again", accepted, 120)
        busy.cluster.kubectl("delete", "-n", SHOP, "authorizationpolicy/after")
    # A kubelet asks again only after 30 to 60 s (client-go's longest pause and its jitter).
    expect_new_pods(busy, 240)


def test_a_restarted_containerd(busy: Mesh) -> None:
    with loops(busy, 20, 100):
        for node in busy.cluster.nodes.values():
            node.restart_containerd()
    expect_new_pods(busy, 90)


def test_a_rebooted_node_has_every_pod_captured_before_its_first_connection(busy: Mesh) -> None:
    """Each tries once, at its start, a server that takes only mutual TLS, and says how it went."""
    script = "curl -sS -m 60 http://web || echo FAILED; sleep 100000"
    busy.cluster.apply(
        *[
            pod(SHOP, f"eager{i}", "n2", containers=[container(["sh", "-c", script])])
            for i in range(5)
        ]
    )
    busy.wait_ready(SHOP)
    before = {
        p["metadata"]["name"]: count(p) for p in busy.pods(SHOP) if "eager" in p["metadata"]["name"]
    }
    assert len(before) == 5
    busy.cluster.nodes["n2"].reboot()

    def back() -> bool:
        now = {p["metadata"]["name"]: count(p) for p in busy.pods(SHOP)}
        return all(now[name] > n for name, n in before.items())

    until("the pods run again", back, 120)
    busy.wait_captured(SHOP, 60)
    for name in before:
        until("it said how it went", partial(busy.cluster.kubectl, "logs", "-n", SHOP, name), 60)
        assert busy.cluster.kubectl("logs", "-n", SHOP, name).startswith("web-"), name
    busy.cluster.kubectl("delete", "-n", SHOP, *[f"pod/{name}" for name in before])


def count(found: dict[str, object]) -> int:
    status = found["status"]
    assert isinstance(status, dict)
    return sum(c["restartCount"] for c in status.get("containerStatuses", []))
