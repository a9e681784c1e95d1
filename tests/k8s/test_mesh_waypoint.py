"""A waypoint in a real cluster: made from a Gateway, replaced under load, gone with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.k8s.installed import AMBIENT, Load, Mesh, ambit, until
from tests.k8s.objects import namespace, pod, service, workload

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(400)]
STORE = "store"
URL = "http://web.store"
MADE = ("serviceaccount", "service", "deployment", "horizontalpodautoscaler", "poddisruptionbudget")
TARGET = {"group": "", "kind": "Service", "name": "web"}


def made_of(kind: str, group: str, name: str, **spec: Any) -> dict[str, Any]:
    meta = {"namespace": STORE, "name": name}
    return {"apiVersion": group, "kind": kind, "metadata": meta, "spec": spec}


GATEWAY = made_of(
    "Gateway",
    "gateway.networking.k8s.io/v1",
    "waypoint",
    gatewayClassName="istio-waypoint",
    listeners=[{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
)
ROUTE = made_of(
    "HTTPRoute",
    "gateway.networking.k8s.io/v1",
    "web",
    parentRefs=[TARGET],
    rules=[
        {
            "filters": [
                {
                    "type": "ResponseHeaderModifier",
                    "responseHeaderModifier": {"set": [{"name": "x-by", "value": "waypoint"}]},
                }
            ],
            "backendRefs": [{"name": "web", "port": 80}],
        }
    ],
)
POLICY = made_of(
    "AuthorizationPolicy",
    "security.istio.io/v1",
    "no-secrets",
    targetRefs=[TARGET],
    action="DENY",
    rules=[{"to": [{"operation": {"paths": ["/secret*"]}}]}],
)


def bound(mesh: Mesh, name: str | None) -> None:
    """Label the Service, or take the label away."""
    label = "istio.io/use-waypoint-" if name is None else f"istio.io/use-waypoint={name}"
    mesh.cluster.kubectl("label", "--overwrite", "-n", STORE, "service/web", label)


@pytest.fixture(scope="module")
def store(mesh: Mesh) -> Iterator[Mesh]:
    mesh.cluster.apply(
        namespace(STORE, **AMBIENT),
        workload("DaemonSet", STORE, "web"),
        service(STORE, "web"),
        pod(STORE, "one", "n1"),
        pod(STORE, "two", "n2"),
        GATEWAY,
        ROUTE,
        POLICY,
    )
    bound(mesh, "waypoint")
    mesh.cluster.kubectl("rollout", "status", "-n", STORE, "daemonset/web", "--timeout=120s")
    ready = ["--for=condition=Programmed", "gateway/waypoint", "--timeout=120s"]
    mesh.cluster.kubectl("wait", "-n", STORE, *ready)
    mesh.wait_ready(STORE)
    yield mesh
    mesh.cluster.kubectl("delete", "namespace", STORE, "--timeout=120s")


def passes(mesh: Mesh, client: str = "one") -> bool:
    return "x-by: waypoint" in mesh.curl(STORE, client, URL, "-i").lower()


def code(mesh: Mesh, path: str) -> str:
    return mesh.curl(STORE, "two", URL + path, "-o", "/dev/null", "-w", "%{http_code}")


def test_requests_of_both_nodes_pass_it(store: Mesh) -> None:
    for client in ("one", "two"):
        until("requests pass the waypoint", lambda c=client: passes(store, c), 30)  # type: ignore[misc]
    assert code(store, "/secret") == "403"
    assert code(store, "/open") != "403"


def test_what_was_made_and_said(store: Mesh) -> None:
    for kind in MADE:
        found = store.cluster.get(kind, "-n", STORE, "waypoint")
        labels = found["metadata"]["labels"]
        assert labels["gateway.networking.k8s.io/gateway-name"] == "waypoint", kind
    route = store.cluster.get("httproute", "-n", STORE, "web")
    told = {c["type"]: c["status"] for c in route["status"]["parents"][0]["conditions"]}
    assert told["Accepted"] == told["ResolvedRefs"] == "True"
    policy = store.cluster.get("authorizationpolicy", "-n", STORE, "no-secrets")
    told = {c["type"]: c["status"] for c in policy["status"]["conditions"]}
    assert told["WaypointAccepted"] == "True"


def test_a_rollout_under_load_fails_no_request(store: Mesh) -> None:
    running = [Load(store.cluster, STORE, name, "web", 40) for name in ("one", "two")]
    store.cluster.kubectl("rollout", "restart", "-n", STORE, "deployment/waypoint")
    store.cluster.kubectl("rollout", "status", "-n", STORE, "deployment/waypoint", "--timeout=120s")
    for load in running:
        done, failed = load.result()
        assert not failed, f"{len(failed)} of {done + len(failed)}: {failed[:5]}"
        assert done > 100


def test_the_command_makes_shows_and_deletes_one(store: Mesh) -> None:
    """Beside the one that is there; of another name, so that no Service uses it."""
    at = ("-n", STORE)
    made = ambit(store.cluster, "waypoint", "apply", "--name", "pods", "--for", "workload", *at)
    assert made.returncode == 0, made.stderr
    assert "waypoint store/pods created" in made.stdout
    told = ambit(store.cluster, "waypoint", "status", "pods", "--timeout", "2m", *at)
    assert told.returncode == 0, told.stdout + told.stderr
    again = ambit(store.cluster, "waypoint", "apply", "--name", "pods", "--for", "workload", *at)
    assert "waypoint store/pods unchanged" in again.stdout, again.stderr
    listed = ambit(store.cluster, "waypoint", "list", "-o", "json", *at)
    found = {w["name"]: (w["trafficType"], w["programmed"]) for w in json.loads(listed.stdout)}
    assert found == {"pods": ("workload", "True"), "waypoint": ("service", "True")}
    missing = ambit(store.cluster, "waypoint", "apply", "-n", "nowhere")
    assert missing.returncode == 1
    assert "kubectl create namespace nowhere" in missing.stderr
    deleted = ambit(store.cluster, "waypoint", "delete", "pods", "-y", *at)
    assert deleted.returncode == 0, deleted.stderr
    left = ambit(store.cluster, "waypoint", "list", *at)
    assert "pods" not in left.stdout


def test_without_its_gateway_nothing_goes_around(store: Mesh) -> None:
    store.cluster.kubectl("delete", "-n", STORE, "gateway/waypoint")
    until("requests are refused", lambda: store.is_refused(STORE, "one", URL), 30)

    def gone() -> bool:
        names = store.cluster.kubectl("get", "-n", STORE, ",".join(MADE), "-o", "name").split()
        return not any(name.endswith("/waypoint") for name in names)

    until("nothing of it is left", gone, 60)
    bound(store, None)
    until("requests go directly", lambda: store.curl(STORE, "one", URL).startswith("web-"), 30)
