"""Gateways read, and their status as Gateway API 1.6 words it."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.findings import Condition
from waypoint.config.gateways import (
    Deployed,
    class_status,
    gateway_status,
    is_waypoint_class,
    read_gateway,
)

HBONE = {"name": "mesh", "port": 15008, "protocol": "HBONE"}
SERVING = Deployed("wp.shop.svc.cluster.local", 2, 1)


def gateway(*listeners: Any, spec: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "wp", "namespace": "shop", **metadata},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": list(listeners),
            **(spec or {}),
        },
    }


def by_type(conditions: tuple[Condition, ...]) -> dict[str, tuple[bool, str]]:
    return {c.type: (c.status, c.reason) for c in conditions}


def test_a_served_gateway() -> None:
    status = gateway_status(read_gateway(gateway(HBONE)), SERVING, {"mesh": 3})
    assert by_type(status.conditions) == {
        "Accepted": (True, "Accepted"),
        "Programmed": (True, "Programmed"),
    }
    assert status.fields["addresses"] == [
        {"type": "Hostname", "value": "wp.shop.svc.cluster.local"}
    ]
    (listener,) = status.fields["listeners"]
    assert listener["name"] == "mesh"
    assert listener["attachedRoutes"] == 3
    assert [k["kind"] for k in listener["supportedKinds"]] == [
        "HTTPRoute",
        "GRPCRoute",
        "TCPRoute",
        "TLSRoute",
    ]
    assert by_type(listener["conditions"]) == {
        "Accepted": (True, "Accepted"),
        "Conflicted": (False, "NoConflicts"),
        "Programmed": (True, "Programmed"),
        "ResolvedRefs": (True, "ResolvedRefs"),
    }


@pytest.mark.parametrize(
    ("deployed", "reason"),
    [
        (Deployed(), "AddressNotAssigned"),
        (Deployed("wp.shop.svc.cluster.local"), "Pending"),
        (Deployed("wp.shop.svc.cluster.local", 3, 0), "Pending"),
        (Deployed("wp.shop.svc.cluster.local", 1, 1, "quota exceeded"), "NoResources"),
    ],
)
def test_not_programmed_yet(deployed: Deployed, reason: str) -> None:
    status = gateway_status(read_gateway(gateway(HBONE)), deployed)
    assert by_type(status.conditions)["Programmed"] == (False, reason)
    assert by_type(status.fields["listeners"][0]["conditions"])["Programmed"] == (False, reason)


@pytest.mark.parametrize(
    ("listener", "condition", "reason"),
    [
        ({"name": "x", "port": 80, "protocol": "HTTP"}, "Accepted", "UnsupportedProtocol"),
        ({"name": "x", "port": 15009, "protocol": "HBONE"}, "Accepted", "PortUnavailable"),
        ({"name": "x", "port": "15008", "protocol": "HBONE"}, "Accepted", "PortUnavailable"),
        ({**HBONE, "name": "x"}, "Conflicted", "ProtocolConflict"),
        ("nonsense", "Accepted", "UnsupportedProtocol"),
    ],
)
def test_a_bad_listener_takes_nothing_from_a_good_one(
    listener: Any, condition: str, reason: str
) -> None:
    record = read_gateway(gateway(HBONE, listener))
    status = gateway_status(record, SERVING)
    assert by_type(status.conditions) == {
        "Accepted": (True, "ListenersNotValid"),
        "Programmed": (True, "Programmed"),
    }
    good, bad = status.fields["listeners"]
    assert by_type(good["conditions"])["Programmed"] == (True, "Programmed")
    told = by_type(bad["conditions"])
    assert told[condition][1] == reason
    assert told["Accepted"][0] is False
    assert told["Programmed"] == (False, "Invalid")


def test_without_a_valid_listener_it_is_not_accepted() -> None:
    record = read_gateway(gateway({"name": "x", "port": 80, "protocol": "HTTP"}))
    assert not record.accepted
    assert not record.allows("shop", {})
    status = gateway_status(record, SERVING)
    assert by_type(status.conditions) == {
        "Accepted": (False, "ListenersNotValid"),
        "Programmed": (False, "Invalid"),
    }


def test_kinds_that_cannot_be_attached_are_named() -> None:
    """The others are supported still."""
    kinds = [{"kind": "HTTPRoute"}, {"kind": "UDPRoute"}, {"group": "x", "kind": "HTTPRoute"}]
    record = read_gateway(gateway({**HBONE, "allowedRoutes": {"kinds": kinds}}))
    (listener,) = gateway_status(record, SERVING).fields["listeners"]
    assert [k["kind"] for k in listener["supportedKinds"]] == ["HTTPRoute"]
    assert by_type(listener["conditions"])["ResolvedRefs"] == (False, "InvalidRouteKinds")
    assert record.accepted


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"spec": {"addresses": [{"value": "1.2.3.4"}]}}, "UnsupportedAddress"),
        (
            {
                "spec": {
                    "infrastructure": {"parametersRef": {"group": "x", "kind": "Y", "name": "z"}}
                }
            },
            "InvalidParameters",
        ),
        ({"labels": {"istio.io/waypoint-for": "pods"}}, "Invalid"),
    ],
)
def test_what_it_cannot_be_given(fields: dict[str, Any], reason: str) -> None:
    record = read_gateway(gateway(HBONE, **fields))
    assert not record.accepted
    assert by_type(gateway_status(record, SERVING).conditions)["Accepted"] == (False, reason)


def test_the_class_may_say_the_traffic_type() -> None:
    """The Gateway's own label counts first."""
    of_class = {"metadata": {"name": "c", "labels": {"istio.io/waypoint-for": "all"}}}
    assert read_gateway(gateway(HBONE), of_class).takes == "all"
    own = gateway(HBONE, labels={"istio.io/waypoint-for": "workload"})
    assert read_gateway(own, of_class).takes == "workload"
    assert read_gateway(gateway(HBONE)).takes == "service"


def test_whose_class_it_is() -> None:
    """The well-known names, classes that name the controller, and no other controller's."""
    ours = {"spec": {"controllerName": "ambit.io/mesh-controller"}}
    theirs = {"spec": {"controllerName": "istio.io/gateway-controller"}}
    assert is_waypoint_class("istio-waypoint", {})
    assert is_waypoint_class("ambit-waypoint", {"other": theirs})
    assert is_waypoint_class("mine", {"mine": ours})
    assert not is_waypoint_class("istio-waypoint", {"istio-waypoint": theirs})
    assert not is_waypoint_class("istio", {})
    assert not is_waypoint_class(None, {})


def test_class_status() -> None:
    ours = {"spec": {"controllerName": "ambit.io/mesh-controller"}}
    status = class_status(ours, ("Mesh", "HTTPRoute"))
    assert by_type(status.conditions) == {"Accepted": (True, "Accepted")}
    assert status.fields["supportedFeatures"] == [{"name": "HTTPRoute"}, {"name": "Mesh"}]
    refused = {"spec": {"parametersRef": {"kind": "ConfigMap", "name": "x"}}}
    assert by_type(class_status(refused).conditions) == {"Accepted": (False, "InvalidParameters")}
