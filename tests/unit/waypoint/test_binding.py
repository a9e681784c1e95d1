"""Which waypoint an object passes: labels, traffic types, who may attach; never silently open."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.model import Gateway as Address
from waypoint.config.binding import (
    FREE,
    SILENT,
    Attachment,
    Traffic,
    Wish,
    attach,
    read_wish,
    wanted,
)
from waypoint.config.gateways import GatewayRecord, read_gateway


def gateway(
    traffic: str | None = None, namespaces: Any = None, name: str = "wp", **metadata: Any
) -> GatewayRecord:
    routes = {"allowedRoutes": {"namespaces": namespaces}} if namespaces else {}
    listener = {"name": "mesh", "port": 15008, "protocol": "HBONE", **routes}
    labels = {"istio.io/waypoint-for": traffic} if traffic else {}
    return read_gateway(
        {
            "metadata": {"name": name, "namespace": "infra", "labels": labels, **metadata},
            "spec": {"gatewayClassName": "istio-waypoint", "listeners": [listener]},
        }
    )


def bind(
    record: GatewayRecord | None,
    traffic: Traffic = "service",
    ns: str = "infra",
    labels: dict[str, str] | None = None,
    own: Wish = SILENT,
    around: Wish = SILENT,
    ready: bool = True,
) -> Attachment:
    want = wanted(own, around, ns)
    return attach(want, traffic, ns, labels or {}, record, ready, "cluster.local")


OWN = Wish("wp", "infra")
ADDRESS = Address(15008, namespace="infra", hostname="wp.infra.svc.cluster.local")


@pytest.mark.parametrize(
    ("own", "around", "expected"),
    [
        ({}, {}, None),
        ({"istio.io/use-waypoint": "a"}, {}, ("ns", "a", False)),
        ({}, {"istio.io/use-waypoint": "a"}, ("ns", "a", True)),
        ({"istio.io/use-waypoint": "a"}, {"istio.io/use-waypoint": "b"}, ("ns", "a", False)),
        ({"istio.io/use-waypoint": "none"}, {"istio.io/use-waypoint": "b"}, None),
        ({}, {"istio.io/use-waypoint": "none"}, None),
        (
            {"istio.io/use-waypoint": "a", "istio.io/use-waypoint-namespace": "x"},
            {},
            ("x", "a", False),
        ),
        (
            {"istio.io/use-waypoint": "a"},
            {"istio.io/use-waypoint": "b", "istio.io/use-waypoint-namespace": "x"},
            ("ns", "a", False),
        ),
        (
            {"istio.io/use-waypoint-namespace": "x"},
            {"istio.io/use-waypoint": "b"},
            ("ns", "b", True),
        ),
        # A waypoint itself is reached as it is.
        (
            {"gateway.networking.k8s.io/gateway-name": "b"},
            {"istio.io/use-waypoint": "b"},
            None,
        ),
    ],
)
def test_the_objects_own_word_counts_before_its_namespaces(
    own: dict[str, str], around: dict[str, str], expected: tuple[str, str, bool] | None
) -> None:
    want = wanted(read_wish({"labels": own}), read_wish({"labels": around}), "ns")
    assert (want and (want.namespace, want.name, want.inherited)) == expected


def test_bound_to_a_ready_waypoint() -> None:
    """Node proxies are told its Service; the status says which waypoint."""
    found = bind(gateway(), own=OWN)
    assert (found.gateway, found.address) == (("infra", "wp"), ADDRESS)
    assert found.condition is not None
    assert (found.condition.status, found.condition.reason) == (True, "WaypointAccepted")


@pytest.mark.parametrize(
    ("record", "ready", "reason", "gateway_key"),
    [
        (None, False, "WaypointIsNotReady", ()),
        (gateway(), False, "WaypointIsNotReady", ("infra", "wp")),
        (gateway(namespaces={"from": "None"}), True, "AttachmentDenied", ()),
    ],
)
def test_what_cannot_pass_its_waypoint_is_refused(
    record: GatewayRecord | None, ready: bool, reason: str, gateway_key: tuple[str, ...]
) -> None:
    """Missing, not ready, not allowed: an address is told that nobody has, never none."""
    found = bind(record, own=OWN, ready=ready)
    assert found.address is not None
    assert found.gateway == gateway_key
    assert found.condition is not None
    assert (found.condition.status, found.condition.reason) == (False, reason)
    assert "refused" in found.condition.message
    assert "ambit.io/waypoint-missing: allow" in found.condition.message


def test_a_denied_waypoint_is_told_by_a_name_that_does_not_exist() -> None:
    """The real one would take the connection, and reset it without a reason."""
    found = bind(gateway(), ns="other", own=OWN)
    assert found.address is not None
    assert found.address.hostname == "wp.infra.not-allowed.waypoint.ambit.io"


@pytest.mark.parametrize("where", ["object", "namespace"])
def test_the_switch_opens_it(where: str) -> None:
    """ambit.io/waypoint-missing: allow, and the status says that it is open."""
    switch = {"annotations": {"ambit.io/waypoint-missing": "allow"}}
    own = read_wish(
        {"labels": {"istio.io/use-waypoint": "wp"}, **(switch if where == "object" else {})}
    )
    around = read_wish(switch if where == "namespace" else {})
    found = bind(None, own=own, around=around)
    assert found.address is None
    assert found.condition is not None
    assert not found.condition.status
    assert "directly" in found.condition.message
    assert bind(gateway(), own=own, around=around).address == ADDRESS


def test_the_objects_own_switch_closes_what_its_namespace_opens() -> None:
    own = read_wish(
        {
            "labels": {"istio.io/use-waypoint": "wp"},
            "annotations": {"ambit.io/waypoint-missing": "refuse"},
        }
    )
    assert bind(None, own=own, around=Wish(missing="allow")).address is not None


@pytest.mark.parametrize(
    ("traffic_type", "service", "workload"),
    [
        (None, True, False),
        ("service", True, False),
        ("workload", False, True),
        ("all", True, True),
        ("none", False, False),
    ],
)
def test_traffic_types(traffic_type: str | None, service: bool, workload: bool) -> None:
    """What a waypoint does not take goes directly: silently by a Namespace's label only."""
    record = gateway(traffic_type)
    for kind, takes in (("service", service), ("workload", workload)):
        traffic: Traffic = "service" if kind == "service" else "workload"
        inherited = bind(record, traffic, around=Wish("wp"))
        own = bind(record, traffic, own=OWN)
        if takes:
            assert inherited.address == own.address == ADDRESS
        else:
            assert inherited == FREE
            assert own.address is None
            assert own.condition is not None
            assert own.condition.reason == "UnsupportedTrafficType"
            assert not own.condition.status


def test_pods_say_nothing_of_what_their_namespace_says() -> None:
    """One line on a Service, none on each of a thousand pods."""
    assert bind(None, "workload", around=Wish("wp")).condition is None
    assert bind(None, "workload", around=Wish("wp")).address is not None
    assert bind(None, "workload", own=OWN).condition is not None


@pytest.mark.parametrize(
    ("namespaces", "ns", "labels", "allowed"),
    [
        (None, "infra", {}, True),
        (None, "other", {}, False),
        ({"from": "Same"}, "other", {}, False),
        ({"from": "All"}, "other", {}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"a": "1"}}}, "other", {"a": "1"}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"a": "1"}}}, "other", {"a": "2"}, False),
        ({"from": "Selector", "selector": {"matchLabels": {"a": "1"}}}, "infra", {}, False),
        (
            {
                "from": "Selector",
                "selector": {
                    "matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]
                },
            },
            "other",
            {"a": "2"},
            True,
        ),
        (
            {
                "from": "Selector",
                "selector": {"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]},
            },
            "other",
            {"a": "2"},
            False,
        ),
        ({"from": "Everybody"}, "infra", {}, False),
        ({"from": "Selector"}, "infra", {}, False),
        (
            {
                "from": "Selector",
                "selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]},
            },
            "infra",
            {},
            False,
        ),
    ],
)
def test_who_may_attach(namespaces: Any, ns: str, labels: dict[str, str], allowed: bool) -> None:
    """allowedRoutes of the Gateway's listener; what cannot be read allows nobody."""
    found = bind(gateway(namespaces=namespaces), ns=ns, labels=labels, own=OWN)
    assert (found.address == ADDRESS) == allowed
    assert found.address is not None


def test_an_overridden_name_is_the_services() -> None:
    record = gateway(annotations={"gateway.istio.io/name-override": "front"})
    found = bind(record, own=OWN)
    assert found.address == Address(
        15008, namespace="infra", hostname="front.infra.svc.cluster.local"
    )
