"""The control plane against a real API server, with the rights that the chart gives it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import yaml
from cryptography import x509

from tests.k8s import objects
from tests.k8s.cluster import Cluster, binaries
from tests.k8s.plane import MAP, NS, Node, Plane, clean, give_rights, token_of, wait

pytestmark = pytest.mark.k8s

APP = "cp-test"
WRITES = 'ambit_api_writes{kind="AuthorizationPolicy",result="ok"}'
WEB = f"{APP}/web.{APP}.svc.cluster.local"


@pytest.fixture(scope="module")
def world(cluster: Cluster) -> Iterator[Cluster]:
    """Rights, CRDs and a namespace with a web server; taken away afterwards."""
    give_rights(cluster)
    cluster.apply(objects.namespace(APP))
    cluster.apply(objects.workload("Deployment", APP, "web", 2), objects.service(APP, "web"))
    cluster.kubectl("rollout", "status", "-n", APP, "deployment/web", "--timeout=60s")
    yield cluster
    clean(cluster, APP)


@pytest.fixture(scope="module")
def pair(world: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Plane, Plane]]:
    """Two replicas that most tests share."""
    folder = tmp_path_factory.mktemp("pair")
    a, b = (Plane(world, folder, n) for n in ("a", "b"))
    a.wait_ready()
    b.wait_ready()
    wait("the record", lambda: "ambit.io/roots" in str(world.get("cm", "-n", NS, MAP)["metadata"]))
    yield a, b
    for plane in (a, b):
        plane.stop()
        plane.check_log()


def test_reads_the_cluster_and_follows_it(world: Cluster, pair: tuple[Plane, Plane]) -> None:
    """Ready when all is read; Services' members are their EndpointSlices', dual stack."""
    plane = pair[0]
    assert plane.metric("ambit_source_problems") == 0
    assert len(plane.members(WEB)) == 2
    service = plane.registry()[WEB]
    assert len(service["addresses"]) == 2
    member = next(iter(plane.members(WEB)))
    workload = plane.registry()[member]["resource"]["workload"]
    assert workload["services"][WEB]["ports"][0]["target_port"] == 8080
    assert workload["workload_name"] == "web"
    assert len(plane.registry()[member]["addresses"]) == 2
    world.kubectl("scale", "-n", APP, "deployment/web", "--replicas=3")
    wait("a third member", lambda: len(plane.members(WEB)) == 3)
    world.kubectl("scale", "-n", APP, "deployment/web", "--replicas=2")
    wait("two members", lambda: len(plane.members(WEB)) == 2)
    kubernetes = plane.members("default/kubernetes.default.svc.cluster.local")
    assert all("discovery.k8s.io/EndpointSlice" in name for name in kubernetes)


def test_selectorless_services_and_jobs(world: Cluster, pair: tuple[Plane, Plane]) -> None:
    """Hand-written slices name pods and outsiders; a Job's pod leaves when it is done."""
    plane = pair[0]
    (ip,) = {plane.registry()[m]["addresses"][0] for m in sorted(plane.members(WEB))[:1]}
    world.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "manual", "namespace": APP},
            "spec": {"ports": [{"name": "http", "port": 80}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "manual-1",
                "namespace": APP,
                "labels": {"kubernetes.io/service-name": "manual"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": [ip]}, {"addresses": ["192.0.2.77"]}],
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "once", "namespace": APP},
            "spec": {
                "template": {
                    "spec": {
                        "restartPolicy": "Never",
                        "containers": [objects.container(["sleep", "3"])],
                    }
                }
            },
        },
    )
    manual = f"{APP}/manual.{APP}.svc.cluster.local"
    members = wait("two members", lambda: len(plane.members(manual)) == 2 and plane.members(manual))
    assert {m.split("/")[1] for m in members} == {"", "discovery.k8s.io"}
    wait("the job's pod", lambda: any("/once-" in n for n in plane.registry()))
    wait("its end", lambda: not any("/once-" in n for n in plane.registry()), 60)


def policy(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": APP},
        "spec": spec,
    }


def conditions(world: Cluster, name: str) -> dict[str, dict[str, Any]]:
    found = world.get("authorizationpolicy", "-n", APP, name)
    return {c["type"]: c for c in found.get("status", {}).get("conditions", [])}


def test_status_by_server_side_apply(world: Cluster, pair: tuple[Plane, Plane]) -> None:
    """Our field manager owns our condition alone; nothing is written twice; others' stay."""
    world.apply(policy("p", selector={"matchLabels": {"app": "web"}}, rules=[{}]))
    wait("the condition", lambda: "ZtunnelAccepted" in conditions(world, "p"))
    assert conditions(world, "p")["ZtunnelAccepted"]["status"] == "True"
    found = world.get("authorizationpolicy", "-n", APP, "p", "--show-managed-fields")
    (ours,) = [
        m for m in found["metadata"]["managedFields"] if m["manager"] == "ambit-control-plane"
    ]
    assert (ours["operation"], ours["subresource"]) == ("Apply", "status")
    world.kubectl(
        "apply", "--server-side", "--subresource=status", "--field-manager=other", "-f", "-",
        data=json.dumps(
            {
                **{k: v for k, v in policy("p").items() if k != "spec"},
                "status": {"conditions": [{"type": "Other", "status": "True"}]},
            }
        ).encode(),
    )  # fmt: skip
    world.apply(policy("p", action="DENY", rules=[{"to": [{"operation": {"methods": ["GET"]}}]}]))
    wait(
        "the new reason", lambda: conditions(world, "p")["ZtunnelAccepted"]["reason"] != "Accepted"
    )
    assert set(conditions(world, "p")) == {"Other", "ZtunnelAccepted"}
    before = sum(p.metric(WRITES) for p in pair)
    version = world.get("authorizationpolicy", "-n", APP, "p")["metadata"]["resourceVersion"]
    time.sleep(3)
    assert sum(p.metric(WRITES) for p in pair) == before
    found = world.get("authorizationpolicy", "-n", APP, "p")
    assert found["metadata"]["resourceVersion"] == version
    world.apply(policy("p", targetRefs=[{"kind": "Service", "group": "", "name": "web"}]))
    wait("only a waypoint's", lambda: set(conditions(world, "p")) == {"Other", "WaypointAccepted"})


def test_many_policies_make_one_write_each(world: Cluster, pair: tuple[Plane, Plane]) -> None:
    """Two replicas and a hundred policies: a hundred writes."""
    before = [p.metric(WRITES) for p in pair]
    world.apply(*(policy(f"many-{i}", rules=[{}]) for i in range(100)))
    wait("all conditions", lambda: _all(world), 60)
    wait("their echo", lambda: all(p.metric("ambit_status_pending") == 0 for p in pair))
    time.sleep(2)
    written = [p.metric(WRITES) - was for p, was in zip(pair, before, strict=True)]
    assert sorted(written) == [0, 100]
    world.kubectl("delete", "-n", APP, "authorizationpolicy", "--all", "--wait=false")


def _all(world: Cluster) -> bool:
    found = world.get("authorizationpolicy", "-n", APP)["items"]
    return all("conditions" in o.get("status", {}) for o in found)


def test_kinds_installed_later_are_picked_up(world: Cluster, pair: tuple[Plane, Plane]) -> None:
    """The Gateway API may come after the mesh, and with a waypoint come the roots."""
    folder = binaries.module_file("conformance", "sigs.k8s.io/gateway-api", "config/crd/standard")
    names = ["gateways", "gatewayclasses"]
    crds = [folder / f"gateway.networking.k8s.io_{n}.yaml" for n in names]
    there = "gateways.gateway" in world.kubectl("get", "crd", "-o", "name")
    plane = pair[0]
    if not there:
        assert plane.metric('ambit_objects{kind="Gateway"}') == 0
    world.apply(*(yaml.safe_load(c.read_text()) for c in crds))
    for n in names:
        crd = f"crd/{n}.gateway.networking.k8s.io"
        world.kubectl("wait", "--for=condition=Established", crd, "--timeout=20s")
    gateway = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "waypoint", "namespace": APP},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }
    world.apply(gateway)
    wait("the Gateway", lambda: plane.metric('ambit_objects{kind="Gateway"}') >= 1)
    maps = lambda: world.kubectl("get", "configmap", "-n", APP, "-o", "name")  # noqa: E731
    wait("the roots", lambda: "istio-ca-root-cert" in maps())
    world.kubectl("delete", "configmap", "-n", APP, "istio-ca-root-cert")
    wait("the roots again", lambda: "istio-ca-root-cert" in maps(), 15)
    if not there:
        world.kubectl("delete", "crd", *(f"{n}.gateway.networking.k8s.io" for n in names))


@pytest.fixture
def node(world: Cluster) -> Iterator[Node]:
    made = Node(world, APP)
    yield made
    made.remove()


def refusal(plane: Plane, token: str, identity: str = "") -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as e:
        plane.sign(token, identity)
    error: Any = e.value
    return error.code(), error.details()


def test_callers_are_reviewed_and_get_their_nodes_identities(
    world: Cluster, node: Node, pair: tuple[Plane, Plane]
) -> None:
    """A bound token is worth its own pod's node, for as long as that pod lives."""
    plane = pair[0]
    near, far = node.near, node.far
    token = node.token()
    leaf = x509.load_pem_x509_certificate(plane.sign(token, near)[0].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [near]
    assert refusal(plane, token, far)[0] == grpc.StatusCode.UNAUTHENTICATED
    assert "no pod of that service account runs there" in refusal(plane, token, far)[1]
    assert "audience" in refusal(plane, node.token("--audience=other"), near)[1]
    unbound = token_of(world, "ztunnel", "--audience=istio-ca")
    assert "not bound to a pod" in refusal(plane, unbound, near)[1]
    assert "refuses the token" in refusal(plane, token[:-8] + "AAAAAAAA", near)[1]
    for _ in range(20):
        plane.sign(token, near)
    assert plane.metric('ambit_token_reviews{result="ok"}') <= 2
    world.kubectl("delete", "pod", "-n", NS, "id-ztunnel", "--now")
    wait("refusal", lambda: "does not run" in refusal(plane, token, near)[1])


def pods(plane: Plane) -> set[str]:
    """The API server takes its own address out of a Service as it goes: pods only."""
    return {name for name in plane.registry() if "/Pod/" in name}


def test_the_api_server_stops_and_comes_back(
    world: Cluster, node: Node, pair: tuple[Plane, Plane]
) -> None:
    """What was read is served on; callers nobody has seen must wait; changes come after."""
    a, b = pair
    wait("a leader", lambda: a.leads() or b.leads())
    root, token = a.root(), node.token()
    near = node.near
    before = pods(a)
    world.control_plane.stop_apiserver()
    try:
        a.root = b.root = lambda: root  # type: ignore[method-assign]
        time.sleep(12)
        assert a.is_ready()
        assert b.is_ready()
        assert pods(a) == before
        assert not a.leads()
        assert not b.leads()
        code, text = refusal(a, token, near)
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "cannot be checked now" in text
        assert a.metric("ambit_source_problems") > 5
    finally:
        world.control_plane.start_apiserver()
    wait("all is read again", lambda: a.metric("ambit_source_problems") == 0, 40)
    wait("one leads", lambda: a.leads() != b.leads(), 30)
    assert a.sign(token, near)
    world.kubectl("scale", "-n", APP, "deployment/web", "--replicas=1")
    wait("one member", lambda: len(a.members(WEB)) == 1 and len(b.members(WEB)) == 1)
    world.kubectl("scale", "-n", APP, "deployment/web", "--replicas=2")
    wait("two members", lambda: len(a.members(WEB)) == 2)


def allowed(world: Cluster, verb: str, resource: str, namespace: str = "", name: str = "") -> bool:
    """Ask the API server whether the control plane's account may do something."""
    plural, _, sub = resource.partition("/")
    plural, _, group = plural.partition(".")
    attributes = {"verb": verb, "group": group, "resource": plural, "subresource": sub}
    attributes |= {"namespace": namespace, "name": name}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{NS}:ambit-control-plane",
            "resourceAttributes": attributes,
        },
    }
    answer = world.kubectl("create", "-f", "-", "-o", "json", data=json.dumps(review).encode())
    return bool(json.loads(answer)["status"]["allowed"])


@pytest.mark.parametrize(
    "what",
    [
        ("get", "secrets", "kube-system", "x"),
        ("list", "secrets", NS, ""),
        ("get", "secrets", NS, "other"),
        ("update", "secrets", NS, "cacerts"),
        ("list", "configmaps", "", ""),
        ("patch", "configmaps", APP, "other"),
        ("create", "pods", APP, ""),
        ("patch", "authorizationpolicies.security.istio.io", APP, "p"),
        ("create", "serviceaccounts/token", NS, "ztunnel"),
        ("update", "leases.coordination.k8s.io", NS, "other"),
    ],
)
def test_it_may_do_no_more_than_it_does(world: Cluster, what: tuple[str, ...]) -> None:
    """Other Secrets, other ConfigMaps, pods, specs: not with this account."""
    assert not allowed(world, *what)


def test_it_may_do_what_it_does(world: Cluster) -> None:
    """The review above would say yes where that is right."""
    assert allowed(world, "patch", "authorizationpolicies.security.istio.io/status", APP, "p")
    assert allowed(world, "get", "secrets", NS, "cacerts")
