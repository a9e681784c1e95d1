"""Virtual addresses, endpoints, node rules and names of the lab's services."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from lab import services
from lab.layout import SERVICES_V4, SERVICES_V6


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    spec = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}], **spec}
    return {"kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


def pod(name: str, ip: str, ready: bool = True, **labels: str) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web", **labels}},
        "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 9090}]}]},
        "status": {
            "podIPs": [{"ip": ip}, {"ip": f"fd00::{name}"}],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


DUAL = {"clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1", "fd00:10:96::11"]}


def test_an_address_is_of_the_range_and_follows_from_the_name() -> None:
    """The same name gets the same address again, another name another one."""
    first = services.with_addresses(service(), [])
    assert first is not None
    assert ipaddress.ip_address(first["spec"]["clusterIP"]) in ipaddress.ip_network(SERVICES_V4)
    assert services.with_addresses(service(), []) == first
    other = services.with_addresses(service("other"), [])
    assert other is not None
    assert other["spec"]["clusterIP"] != first["spec"]["clusterIP"]


def test_an_address_that_is_taken_is_not_given_twice() -> None:
    """Two names whose digests collide still get two addresses."""
    first = services.with_addresses(service(), [])
    assert first is not None
    second = services.with_addresses(service(), services.addresses(first))
    assert second is not None
    assert second["spec"]["clusterIP"] != first["spec"]["clusterIP"]


def test_dual_stack_is_given_where_it_is_asked_for() -> None:
    """Both families, IPv4 first; one where nothing is said."""
    made = services.with_addresses(service(ipFamilyPolicy="PreferDualStack"), [])
    assert made is not None
    v4, v6 = made["spec"]["clusterIPs"]
    assert ipaddress.ip_address(v6) in ipaddress.ip_network(SERVICES_V6)
    assert made["spec"]["ipFamilies"] == ["IPv4", "IPv6"]
    single = services.with_addresses(service(), [])
    assert single is not None
    assert len(single["spec"]["clusterIPs"]) == 1
    assert v4 == single["spec"]["clusterIP"]


@pytest.mark.parametrize("spec", [{"clusterIP": "None"}, {"type": "ExternalName"}, DUAL])
def test_what_needs_no_address_gets_none(spec: dict[str, Any]) -> None:
    """Headless, external, or complete already."""
    assert services.with_addresses(service(**spec), []) is None


def test_an_address_asked_for_is_kept() -> None:
    """As with an API server."""
    made = services.with_addresses(service(clusterIP="10.96.0.99"), [])
    assert made is not None
    assert made["spec"]["clusterIPs"] == ["10.96.0.99"]


def test_only_ready_pods_of_the_namespace_that_match_are_endpoints() -> None:
    """Selector, readiness and family decide."""
    stranger = pod("d", "10.0.0.4")
    stranger["metadata"]["namespace"] = "elsewhere"
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2", ready=False), stranger]
    pods.append(pod("c", "10.0.0.3", app="other"))
    v4, v6 = services.ports([service(**DUAL)], pods)
    assert v4.backends == (services.Backend("10.0.0.1", 8080),)
    assert v6.backends == (services.Backend("fd00::a", 8080),)


@pytest.mark.parametrize(("target", "port"), [("http", 9090), ("8081", 8081), (None, 80)])
def test_target_ports_by_name_number_and_default(target: str | None, port: int) -> None:
    """A named port is the pod's."""
    entry = {"port": 80} | ({"targetPort": target} if target else {})
    (v4, _) = services.ports([service(**DUAL, ports=[entry])], [pod("a", "10.0.0.1")])
    assert v4.backends[0].port == port


def test_rules_spread_over_backends_and_reject_the_rest() -> None:
    """One entry for each backend; what is not rewritten is rejected."""
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]
    text = services.rules(services.ports([service(**DUAL)], pods), ["10.0.0.1", "fd00::a"])
    assert "numgen random mod 2 map { 0 : 10.0.0.1 . 8080, 1 : 10.0.0.2 . 8080 }" in text
    assert "ip6 daddr fd00:10:96::11 tcp dport 80 dnat ip6 to numgen random mod 2" in text
    assert f"ip daddr {SERVICES_V4} reject" in text
    assert "10.0.0.1 . 10.0.0.1" in text
    assert "10.0.0.2 . 10.0.0.2" not in text


def test_names_are_those_of_the_cluster() -> None:
    """Virtual addresses, or the ready pods' of a headless service."""
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2", ready=False)]
    text = services.host_names([service(**DUAL), service("each", clusterIP="None")], pods)
    assert "10.96.1.1 web.shop.svc.cluster.local\n" in text
    assert "fd00:10:96::11 web.shop.svc.cluster.local\n" in text
    assert "10.0.0.1 each.shop.svc.cluster.local\n" in text
    assert "10.0.0.2" not in text
