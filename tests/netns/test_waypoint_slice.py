"""One request through all: client, its ztunnel, the waypoint's Envoy, ztunnel, server."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from lab import Lab
from tests.netns.mesh_objects import client, namespace, policy, principal
from tests.netns.waypoints import NS, Shop, gateway, service, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
BOUND = "istio.io/WaypointBound"


@pytest.fixture(scope="module")
def wp() -> Iterator[Shop]:
    with Lab("t-wp-slice") as lab:
        lab.up(
            [
                *shop(),
                namespace("other"),
                *client("other", "visitor", "node2"),
                service("headless", {"app": "echo"}),
            ]
        )
        yield Shop(lab)


def through(wp: Shop, **options: str) -> bool:
    """Whether a request passed Envoy."""
    answer = wp.ask(**options)
    assert answer.status == 200, answer.error
    return "x-envoy-attempt-count" in answer.seen["headers"]


def test_a_request_passes_the_waypoint(wp: Shop) -> None:
    """The server sees the waypoint's address, and the client's in x-forwarded-for."""
    answer = wp.ask("/path?x=1", headers={"x-mine": "yes"})
    assert answer.status == 200
    seen = answer.seen
    addresses = {
        name: [i["ip"] for i in wp.lab.pod(f"{NS}/{name}")["status"]["podIPs"]]
        for name in ("client", "waypoint")
    }
    assert seen["peer"] in addresses["waypoint"]
    assert seen["headers"]["x-forwarded-for"] in addresses["client"]
    assert seen["path"] == "/path?x=1"
    assert seen["headers"]["x-mine"] == "yes"


def test_both_endpoints_answer(wp: Shop) -> None:
    assert {a.seen["version"] for a in wp.asks(20)} == {"v1", "v2"}


def test_a_client_on_the_servers_node_and_of_another_namespace(wp: Shop) -> None:
    """It is the service that is bound, not who calls."""
    assert through(wp, who="other/visitor")


def test_status_of_gateway_and_services(wp: Shop) -> None:
    """What kubectl wait looks at, and the line on the labelled namespace's services."""
    for type_ in ("Accepted", "Programmed"):
        assert wp.condition("Gateway", "waypoint", type_)["status"] == "True"
    status = wp.lab.get("Gateway", NS, "waypoint")["status"]
    assert status["addresses"] == [
        {"type": "Hostname", "value": f"waypoint.{NS}.svc.cluster.local"}
    ]
    bound = wp.condition("Service", "echo", BOUND)
    assert (bound["status"], bound["reason"]) == ("True", "WaypointAccepted")
    assert wp.condition("Service", "waypoint", BOUND) == {}


def test_the_destination_sees_the_waypoints_identity(wp: Shop) -> None:
    """A policy on the pods that lets in the waypoint alone lets such requests in, and no others."""
    only = policy(
        NS,
        "only-wp",
        "echo",
        "ALLOW",
        [{"from": [{"source": {"principals": [principal(NS, "waypoint")]}}]}],
    )
    wp.lab.apply([only])
    try:
        pod = wp.lab.pod(f"{NS}/echo-v1")["status"]["podIP"]
        wp.until(lambda: wp.ask(host=pod, port=8080).status == 0)
        assert through(wp)
    finally:
        wp.lab.delete([only])


def test_none_and_a_waypoint_that_is_not_there(wp: Shop) -> None:
    """A Service's own label counts first: `none` goes directly, an unknown name is refused."""
    wp.lab.label("Service", NS, "echo-v1", {"istio.io/use-waypoint": "none"})
    wp.until(lambda: not through(wp, host=f"echo-v1.{NS}"))
    assert through(wp)
    wp.lab.label("Service", NS, "echo-v1", {"istio.io/use-waypoint": "missing"})
    wp.until(lambda: wp.ask(host=f"echo-v1.{NS}").status == 0)
    told = wp.until(lambda: wp.condition("Service", "echo-v1", BOUND))
    assert (told["status"], told["reason"]) == ("False", "WaypointIsNotReady")
    assert "missing" in told["message"]
    assert through(wp)
    wp.until(lambda: f"unknown waypoint: {NS}/missing.{NS}.svc" in wp.lab.logs("ztunnel/node1"))
    wp.lab.label("Service", NS, "echo-v1", {"istio.io/use-waypoint": None})
    wp.until(lambda: wp.ask(host=f"echo-v1.{NS}").status == 200)
    wp.until(lambda: wp.condition("Service", "echo-v1", BOUND).get("status") == "True")


def test_a_waypoint_that_is_not_ready_and_the_switch(wp: Shop) -> None:
    """Without pods traffic is refused; the annotation lets it go directly; both say so."""
    wp.lab.scale(NS, "waypoint", 0)
    wp.until(lambda: wp.ask().status == 0)
    told = wp.until(lambda: wp.condition("Service", "echo", BOUND))
    assert (told["status"], told["reason"]) == ("False", "WaypointIsNotReady")
    assert wp.condition("Gateway", "waypoint", "Programmed")["status"] == "False"
    opened = service("echo", {"app": "echo"}, annotations={"ambit.io/waypoint-missing": "allow"})
    wp.lab.apply([opened])
    wp.until(lambda: wp.ask().status == 200)
    assert not through(wp)
    assert "directly" in wp.condition("Service", "echo", BOUND)["message"]
    assert wp.ask(host=f"echo-v2.{NS}").status == 0
    wp.lab.apply([service("echo", {"app": "echo"})])
    wp.until(lambda: wp.ask().status == 0)
    wp.lab.scale(NS, "waypoint", 1)
    wp.until(lambda: wp.ask().status == 200)
    assert through(wp)


def test_another_namespace_needs_leave(wp: Shop) -> None:
    """use-waypoint-namespace reaches over, where allowedRoutes of the Gateway let it."""
    labels = {"istio.io/use-waypoint": "waypoint", "istio.io/use-waypoint-namespace": NS}
    wp.lab.apply([service("far", {"app": "echo"}, ns="other", labels=labels)])
    told = wp.until(lambda: wp.condition("Service", "far", BOUND, ns="other"))
    assert (told["status"], told["reason"]) == ("False", "AttachmentDenied")
    assert wp.ask(host="far.other").status == 0
    open_to_all = {"name": "mesh", "port": 15008, "protocol": "HBONE"}
    open_to_all["allowedRoutes"] = {"namespaces": {"from": "All"}}  # type: ignore[assignment]
    wp.lab.apply([gateway(listeners=[open_to_all])])
    wp.until(lambda: wp.condition("Service", "far", BOUND, ns="other")["status"] == "True")
    # It has no pods there: the waypoint says so, nobody else.
    wp.until(lambda: wp.ask(host="far.other").status == 503)
    wp.lab.apply([gateway()])
    wp.until(lambda: wp.ask(host="far.other").status == 0)


def test_pod_addresses_pass_a_waypoint_for_workloads(wp: Shop) -> None:
    """By default they go directly; `workload` takes them; deleting the Gateway refuses them."""
    pod = wp.lab.pod(f"{NS}/echo-v2")["status"]["podIP"]
    at_pod = {"host": pod, "port": "8080"}
    assert not through(wp, **at_pod)
    mine = gateway(name="pods", traffic="workload")
    wp.lab.apply([mine])
    wp.lab.wait_ready(30)
    name = wp.lab.pod(f"{NS}/echo-v2")["metadata"]["name"]
    wp.lab.label("Pod", NS, name, {"istio.io/use-waypoint": "pods"})
    wp.until(lambda: through(wp, **at_pod))
    told = wp.until(lambda: wp.condition("Pod", name, BOUND))
    assert told["status"] == "True"
    assert through(wp)  # by its service: the service's own waypoint
    wp.lab.delete([mine])
    wp.until(lambda: wp.ask(**at_pod).status == 0)
    wp.lab.label("Pod", NS, name, {"istio.io/use-waypoint": None})
    wp.until(lambda: wp.ask(**at_pod).status == 200)


def test_binding_and_unbinding_lose_no_request(wp: Shop) -> None:
    """Labels come and go under requests, each on a connection of its own: none fails."""
    command = f"while :; do curl -s -o /dev/null -w '%{{http_code}}\n' http://echo.{NS}/; done"
    asking = wp.lab.popen(f"{NS}/client", ["sh", "-c", command])
    try:
        for value in ("none", None, "none", None):
            time.sleep(1)
            wp.lab.label("Service", NS, "echo", {"istio.io/use-waypoint": value})
            wp.until(lambda v=value: through(wp) == (v is None))
        time.sleep(4)  # past the time that the waypoint listens for what has left
    finally:
        asking.terminate()
    codes = Counter(asking.communicate(timeout=10)[0].split())
    assert codes["200"] > 100
    assert set(codes) == {"200"}, codes


def test_nothing_of_a_deleted_gateway_is_left(wp: Shop) -> None:
    extra = gateway(name="extra")
    wp.lab.apply([extra])
    wp.lab.wait_ready(30)
    made = (
        "ServiceAccount",
        "Service",
        "Deployment",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
    )
    have = [k for k in made if wp.lab.store.get(k, NS, "extra")]
    assert have == list(made)
    wp.lab.delete([extra])
    wp.until(lambda: not [k for k in made if wp.lab.store.get(k, NS, "extra")])
    wp.until(lambda: not [p for p in wp.lab.pods() if p["metadata"]["name"].startswith("extra-")])
