"""The installed mesh: capture, encryption, identity, policy, probes, labels on and off."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.k8s.installed import AMBIENT, Load, Mesh, ambit, gateway_crds, until
from tests.k8s.objects import container, namespace, pod, service, web, workload

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(300)]
NS, OUT = "shop", "outside"
PROBES: dict[str, dict[str, Any]] = {
    "http": {"httpGet": {"path": "/", "port": 8080}},
    "tcp": {"tcpSocket": {"port": 8080}},
    "exec": {"exec": {"command": ["cat", "/etc/hostname"]}},
}


def policy(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {"namespace": NS, "name": name},
        "spec": spec,
    }


def account(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"namespace": NS, "name": name},
    }


def job() -> dict[str, Any]:
    """It needs the mesh at once: its first request is to a server that takes only mutual TLS."""
    command = ["sh", "-c", "curl -sS -m 10 --retry 3 http://web && echo done"]
    spec = {"restartPolicy": "Never", "containers": [container(command)]}
    template = {"metadata": {"labels": {"app": "once"}}, "spec": spec}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"namespace": NS, "name": "once"},
        "spec": {"backoffLimit": 0, "template": template},
    }


@pytest.fixture(scope="module")
def shop(mesh: Mesh) -> Iterator[Mesh]:
    """Every kind of workload in a labelled namespace, and a client outside."""
    probed = []
    for name, probe in PROBES.items():
        each = {**probe, "periodSeconds": 1}
        patient = {**each, "failureThreshold": 30}  # it begins before Python has started
        body = [web(readinessProbe=each, livenessProbe=patient)]
        probed.append(pod(NS, f"probed-{name}", "n2", containers=body))
    mesh.cluster.apply(
        namespace(NS, **AMBIENT),
        namespace(OUT),
        account("friend"),
        account("stranger"),
        workload("Deployment", NS, "web", replicas=2),
        service(NS, "web"),
        workload("StatefulSet", NS, "db", replicas=2),
        service(NS, "db", headless=True),
        workload("DaemonSet", NS, "everywhere"),
        service(NS, "everywhere"),
        pod(NS, "far", "n2", containers=[web()]),
        pod(NS, "friend", "n1", serviceAccountName="friend"),
        pod(NS, "stranger", "n1", serviceAccountName="stranger"),
        pod(NS, "host", "n1", hostNetwork=True),
        pod(NS, "door", "n2", containers=[web(ports=[{"containerPort": 8080, "hostPort": 8098}])]),
        pod(OUT, "stranger", "n1"),
        *probed,
    )
    for what in ("deployment/web", "statefulset/db", "daemonset/everywhere"):
        mesh.cluster.kubectl("rollout", "status", "-n", NS, what, "--timeout=120s")
    mesh.wait_ready(NS)
    mesh.wait_ready(OUT)
    yield mesh
    mesh.cluster.kubectl("delete", "namespace", NS, OUT, "--timeout=120s")


def address(mesh: Mesh, name: str, family: int = 0) -> str:
    found = mesh.cluster.get("pod", "-n", NS, name)["status"]["podIPs"][family]["ip"]
    return f"[{found}]" if family else str(found)


# ---- capture -------------------------------------------------------------------------------------


def test_every_pod_of_the_namespace_is_captured_but_not_those_of_the_host(shop: Mesh) -> None:
    def seen() -> bool:
        found = {p["metadata"]["name"]: shop.is_captured(p) for p in shop.pods(NS)}
        assert not found.pop("host")
        return all(found.values())

    until("all captured", seen)
    assert not shop.is_captured(shop.pods(OUT)[0])


def test_a_pod_s_first_process_is_captured_already(shop: Mesh) -> None:
    """Also one that ends after its first request: a Job, which completes."""
    shop.cluster.apply(policy("PeerAuthentication", "strict", mtls={"mode": "STRICT"}))
    try:
        until("strict", lambda: shop.is_refused(OUT, "stranger", "http://web.shop"))
        shop.cluster.apply(job())
        shop.cluster.kubectl(
            "wait", "-n", NS, "--for=condition=Complete", "job/once", "--timeout=60s"
        )
        assert "done" in shop.cluster.kubectl("logs", "-n", NS, "job/once")
    finally:
        shop.cluster.kubectl(
            "delete", "-n", NS, "peerauthentication/strict", "job/once", "--ignore-not-found"
        )


def test_capture_is_told_by_an_event(shop: Mesh) -> None:
    def seen() -> bool:
        events = shop.cluster.get("events", "-n", NS)["items"]
        about = [
            e
            for e in events
            if "ambit" in json.dumps(e.get("source", {})) + e.get("reportingComponent", "")
        ]
        return any(e["involvedObject"]["name"] == "far" for e in about)

    until("an event about the pod", seen)


# ---- traffic -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_traffic_between_nodes_is_encrypted_and_the_server_sees_its_client(
    shop: Mesh, family: int
) -> None:
    node = shop.cluster.nodes["n1"]
    started = time.time()
    log = "/run/capture.txt"
    pods = "tcp and (net 10.89.0.0/16 or ip6 net fd00:10:89::/48)"
    node.run("sh", "-c", f"timeout 6 tcpdump -ni eth0 -A '{pods}' >{log} 2>/dev/null & sleep 1")
    url = f"http://{address(shop, 'far', family)}:8080/secret-marker"
    answers = {shop.curl(NS, "friend", url) for _ in range(5)}
    ours = address(shop, "friend", family).strip("[]")
    assert {a.split()[1].removeprefix("::ffff:") for a in answers} == {ours}
    time.sleep(5)
    text = node.run("cat", log)
    assert ".15008" in text
    assert "secret-marker" not in text
    assert ".8080" not in text
    lines = [x for x in shop.access_log(started) if "/ns/shop/sa/friend" in x]
    assert len(lines) >= 10, "both proxies name the client's identity, for every request"


def test_services_headless_names_and_host_ports_answer(shop: Mesh) -> None:
    assert len({shop.curl(NS, "friend", "http://web").split()[0] for _ in range(12)}) == 2
    assert shop.curl(NS, "friend", "http://db-0.db:8080").startswith("db-0")
    assert shop.curl(NS, "friend", "http://10.88.0.12:8098").startswith("door")
    assert shop.cluster.run_beside("curl", "-sS", "http://10.88.0.12:8098").startswith("door")
    assert shop.curl(OUT, "stranger", "http://web.shop").startswith("web-")


def test_the_host_s_own_pods_reach_captured_ones(shop: Mesh) -> None:
    assert shop.curl(NS, "host", f"http://{address(shop, 'far')}:8080").startswith("far")


# ---- policy --------------------------------------------------------------------------------------


def test_a_policy_denies_one_identity_and_lets_the_others_pass(shop: Mesh) -> None:
    deny = {"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/stranger"]}}]}
    shop.cluster.apply(policy("AuthorizationPolicy", "deny", action="DENY", rules=[deny]))
    try:
        until("denied", lambda: shop.is_refused(NS, "stranger", "http://web"), 15)
        assert shop.curl(NS, "friend", "http://web").startswith("web-")

        def accepted() -> bool:
            found = shop.cluster.get("authorizationpolicy", "-n", NS, "deny")
            conditions = found.get("status", {}).get("conditions", [])
            return any(c["type"] == "ZtunnelAccepted" and c["status"] == "True" for c in conditions)

        until("the policy's status says so", accepted, 15)
    finally:
        shop.cluster.kubectl("delete", "-n", NS, "authorizationpolicy/deny")
    until("allowed again", lambda: shop.curl(NS, "stranger", "http://web"), 15)


def test_strict_refuses_plaintext_and_keeps_probes_green(shop: Mesh) -> None:
    shop.cluster.apply(policy("PeerAuthentication", "strict", mtls={"mode": "STRICT"}))
    try:
        until("refused", lambda: shop.is_refused(OUT, "stranger", "http://web.shop"), 15)
        assert shop.curl(NS, "friend", "http://web").startswith("web-")
        time.sleep(5)  # several periods of every probe
        for each in shop.pods(NS):
            status = each["status"]["containerStatuses"][0]
            assert (status["ready"], status["restartCount"]) == (True, 0), each["metadata"]["name"]
    finally:
        shop.cluster.kubectl("delete", "-n", NS, "peerauthentication/strict")


# ---- enrolment while traffic flows ---------------------------------------------------------------


def test_label_off_and_on_under_load_loses_no_connection(shop: Mesh) -> None:
    load = Load(shop.cluster, NS, "friend", "web", 20)
    time.sleep(3)
    label = ["label", "namespace", NS, "--overwrite"]
    shop.cluster.kubectl(*label, "istio.io/dataplane-mode-")
    until("released", lambda: not any(map(shop.is_captured, shop.pods(NS))), 30)
    time.sleep(1)
    shop.cluster.kubectl(*label, "istio.io/dataplane-mode=ambient")
    shop.wait_captured(NS, 30)
    done, failed = load.result()
    assert not failed
    assert done > 100


# ---- the command line ----------------------------------------------------------------------------


def test_installing_again_changes_nothing(shop: Mesh) -> None:
    before = {p["metadata"]["name"] for p in shop.pods("istio-system")}
    done = ambit(
        shop.cluster,
        "install",
        "--profile",
        "demo",
        "-y",
        "--gateway-api-crds",
        str(gateway_crds()),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p["metadata"]["name"] for p in shop.pods("istio-system")} == before


def test_status_and_views_come_from_the_cluster(shop: Mesh) -> None:
    done = ambit(shop.cluster, "status")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is well" in done.stdout
    assert "2 proxies connected" in done.stdout
    done = ambit(shop.cluster, "ztunnel", "workload", "-o", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"far"' in done.stdout
