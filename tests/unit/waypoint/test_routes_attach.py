"""Which routes count for a service: parents, producers and consumers, kinds, grants, changes."""

from __future__ import annotations

from typing import Any

import pytest
from routes_rig import (
    BOUND,
    GRPC,
    HTTP,
    NS,
    TCP,
    TLS,
    UNKNOWN,
    Mesh,
    route,
    service,
    skey,
    to,
    to_service,
)

from mesh.manifest import Key
from waypoint.config.gateway_api import is_default
from waypoint.config.istio import combine
from waypoint.config.routing import (
    BackendRef,
    DirectResponse,
    HttpRule,
    RouteMatch,
    Routes,
    TcpRule,
    WeightedBackend,
)


def names(rules: tuple[HttpRule, ...] | tuple[TcpRule, ...]) -> list[str]:
    return [r.name for r in rules]


# ---- parents -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parent", "ports"),
    [
        ({}, [80, 90]),
        ({"port": 90}, [90]),
        ({"sectionName": "port-80"}, [80]),
        ({"port": 90, "sectionName": "port-90"}, [90]),
    ],
)
def test_ports_of_parents(parent: dict[str, Any], ports: list[int]) -> None:
    mesh = Mesh()
    key = mesh.put("HTTPRoute", route({}, parents=[to_service("api", **parent)]))
    assert sorted(mesh.index.routes(skey("api"))) == ports
    assert mesh.index.taken(skey("api")) == dict.fromkeys(ports, "HTTPRoute shop/r")
    assert mesh.conditions(key)["Accepted"].status


@pytest.mark.parametrize(
    ("parent", "reason", "why"),
    [
        (to_service("nope"), "NoMatchingParent", "there is no Service shop/nope.shop"),
        (to_service("web", port=81), "NoMatchingParent", "has no port 81"),
        (to_service("web", sectionName="x"), "NoMatchingParent", "has no port named 'x'"),
        (to_service("web", port=80, sectionName="port-90"), "NoMatchingParent", "has no port 80"),
        (to_service("db", port=5432), "NoMatchingParent", "does not fit the protocol of port 5432"),
        ({"kind": "Service", "name": "web"}, "NoMatchingParent", 'write group: ""'),
        (
            {"group": "networking.istio.io", "kind": "ServiceEntry", "name": "x"},
            "NoMatchingParent",
            "ServiceEntry are not supported",
        ),
    ],
)
def test_parents_that_cannot_be(parent: dict[str, Any], reason: str, why: str) -> None:
    """Each parent is told for itself; the good one counts."""
    mesh = Mesh()
    key = mesh.put("HTTPRoute", route({}, parents=[parent, to_service("web")]))
    bad, good = mesh.conditions(key), mesh.conditions(key, 1)
    assert (bad["Accepted"].status, bad["Accepted"].reason) == (False, reason)
    assert why in bad["Accepted"].message
    assert good["Accepted"].status
    status = mesh.index.status(key, lambda _: BOUND)
    assert [dict(p.ref) for p in status.parents] == [parent, to_service("web")]
    assert len(mesh.http()) == 1


def test_headless_services_have_no_routes() -> None:
    mesh = Mesh(service("web", vips=()))
    key = mesh.put("HTTPRoute", route({}))
    told = mesh.conditions(key)["Accepted"]
    assert (told.status, told.reason) == (False, "UnsupportedValue")
    assert "headless" in told.message


def test_gateways_are_somebody_else_s_parents() -> None:
    mesh = Mesh()
    spec = route({}, parents=[{"name": "ingress"}, {"name": "", "kind": "Service"}, "x"])
    key = mesh.put("HTTPRoute", spec)
    assert mesh.index.status(key, lambda _: BOUND).parents == ()
    assert mesh.http() == ()


@pytest.mark.parametrize(
    ("kind", "protocol", "counts"),
    [
        *(("HTTPRoute", p, p in (UNKNOWN, HTTP, GRPC)) for p in (UNKNOWN, HTTP, GRPC, TCP, TLS)),
        *(("GRPCRoute", p, p in (UNKNOWN, HTTP, GRPC)) for p in (UNKNOWN, HTTP, GRPC, TCP, TLS)),
        *(("TCPRoute", p, p in (UNKNOWN, TCP, TLS)) for p in (UNKNOWN, HTTP, GRPC, TCP, TLS)),
        *(("TLSRoute", p, p in (UNKNOWN, TCP, TLS)) for p in (UNKNOWN, HTTP, GRPC, TCP, TLS)),
    ],
)
def test_kinds_fit_protocols(kind: str, protocol: int, counts: bool) -> None:
    mesh = Mesh(service("web", NS, (80, protocol)))
    key = mesh.put(kind, route({}, hostnames=["a.example"]) if kind != "TCPRoute" else route({}))
    assert bool(mesh.index.routes(skey("web"))) is counts
    assert mesh.conditions(key)["Accepted"].status is counts


# ---- several kinds -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        ("GRPCRoute", "HTTPRoute"),
        ("HTTPRoute", "TLSRoute"),
        ("HTTPRoute", "TCPRoute"),
        ("TLSRoute", "TCPRoute"),
    ],
)
def test_one_kind_counts_at_a_port(winner: str, loser: str) -> None:
    """The other is told, and has its other ports."""
    mesh = Mesh(service("web", NS, (80, UNKNOWN), (81, UNKNOWN)))

    def put(kind: str, **parent: Any) -> Key:
        spec = route({}, parents=[to_service("web", **parent)])
        if kind == "TLSRoute":
            spec["hostnames"] = ["a.example"]
        return mesh.put(kind, spec, kind.lower())

    first, second = put(winner), put(loser)
    assert mesh.conditions(first)["Accepted"].status
    told = mesh.conditions(second)["Accepted"]
    assert (told.status, told.reason) == (False, "Conflicted")
    assert winner in told.message
    put(winner, port=80)
    told = mesh.conditions(second)["Accepted"]
    assert told.status
    assert f"on port 80 a {winner} counts instead" in told.message
    assert mesh.index.taken(skey("web")) == {80: str(first), 81: str(second)}


# ---- consumers ---------------------------------------------------------------------------------


def consumer(mesh: Mesh, namespace: str, name: str, kind: str = "HTTPRoute", **spec: Any) -> Key:
    parent = to_service("web" if kind == "HTTPRoute" else "db", NS)
    if kind != "HTTPRoute":
        parent["port"] = 5432
    backend = to(parent["name"], parent.get("port", 80), namespace=NS)
    rule = {"name": name, "backendRefs": [backend], **spec}
    return mesh.put(kind, {"parentRefs": [parent], "rules": [rule]}, name, namespace)


def test_a_consumer_s_routes_are_for_its_callers_alone() -> None:
    """They come first, and their callers have nothing else; others have the producer's."""
    mesh = Mesh()
    mesh.put("HTTPRoute", route({"name": "producer"}))
    match = [{"path": {"value": "/a"}}]
    key = consumer(mesh, "b-team", "b", matches=match)
    consumer(mesh, "a-team", "a")
    rules = mesh.http()
    assert names(rules) == ["a", "none", "b", "none", "producer"]
    assert [r.match.source_namespaces for r in rules] == [
        ("a-team",), ("a-team",), ("b-team",), ("b-team",), (),
    ]  # fmt: skip
    assert rules[3].match == RouteMatch(source_namespaces=("b-team",))
    assert rules[3].response == DirectResponse(404)
    told = mesh.conditions(key)
    assert all(c.status for c in told.values()), told  # to its parent it may send
    assert mesh.index.taken(skey("web")) == {80: "HTTPRoute shop/r"}


def test_without_a_producer_s_routes_others_reach_the_service() -> None:
    mesh = Mesh()
    consumer(mesh, "a-team", "a")
    rules = mesh.http()
    assert names(rules) == ["a", "none", "default"]
    assert rules[-1].backends == (WeightedBackend(BackendRef(skey("web"), 80)),)
    assert is_default(rules[-1])
    assert not is_default(rules[0])
    assert mesh.index.taken(skey("web")) == {}


def test_a_consumer_does_not_switch_the_producer_s_virtual_services_off() -> None:
    mesh = Mesh()
    consumer(mesh, "a-team", "a")
    ours = HttpRule(Key("VirtualService", NS, "vs"), "vs")
    both = combine(mesh.index.routes(skey("web"))[80], Routes(http=(ours,)))
    assert names(both.http or ()) == ["a", "none", "vs"]
    mesh.put("HTTPRoute", route({"name": "producer"}))
    both = combine(mesh.index.routes(skey("web"))[80], Routes(http=(ours,)))
    assert names(both.http or ()) == ["a", "none", "producer"]


def test_consumers_of_connections() -> None:
    mesh = Mesh()
    consumer(mesh, "a-team", "a", "TCPRoute")
    first, none, default = mesh.tcp()
    assert (first.source_namespaces, none.source_namespaces) == (("a-team",), ("a-team",))
    assert none.backends == ()
    assert is_default(default)
    spec = {
        "parentRefs": [to_service("db", port=5432)],
        "rules": [{"name": "p", "backendRefs": [to("db", 5432)]}],
    }
    mesh.put("TCPRoute", spec)
    assert names(mesh.tcp()) == ["a", "none", "p"]


# ---- grants ------------------------------------------------------------------------------------


def grant(
    kind: str = "HTTPRoute",
    namespace: str = NS,
    to_: Any = None,
    group: str = "gateway.networking.k8s.io",
) -> dict[str, Any]:
    return {
        "from": [{"group": group, "kind": kind, "namespace": namespace}],
        "to": [to_ or {"group": "", "kind": "Service"}],
    }


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        (grant(), True),
        (grant(to_={"group": "", "kind": "Service", "name": "web"}), True),
        (grant(to_={"group": "", "kind": "Service", "name": "api"}), False),
        (grant(to_={"group": "", "kind": "Secret"}), False),
        (grant(kind="GRPCRoute"), False),
        (grant(namespace="else"), False),
        (grant(group="x"), False),
        ({}, False),
        ({**grant(), "form": []}, False),
        ("x", False),
    ],
)
def test_grants(spec: Any, allowed: bool) -> None:
    """Given or taken back, they take effect at once."""
    mesh = Mesh()
    key = mesh.put("HTTPRoute", route({"backendRefs": [to("web", namespace="other")]}))
    assert mesh.http()[0].backends == (WeightedBackend(None),)
    where = Key("ReferenceGrant", "other", "g")
    assert mesh.index.put(where, {"metadata": {}, "spec": spec}) == {skey("web")}
    want = BackendRef(skey("web", "other"), 80) if allowed else None
    assert mesh.http()[0].backends == (WeightedBackend(want),)
    assert mesh.conditions(key)["ResolvedRefs"].status is allowed
    mesh.index.put(where, None)
    assert mesh.http()[0].backends == (WeightedBackend(None),)
    assert where not in mesh.index


# ---- TCP and TLS -------------------------------------------------------------------------------


def test_tls_routes_by_name() -> None:
    mesh = Mesh()
    spec = {
        "parentRefs": [to_service("db", port=443)],
        "hostnames": ["*.example", "a.example", "*.long.example"],
        "rules": [{"backendRefs": [to("db", 443, weight=3), to("nope", weight=1)]}],
    }
    key = mesh.put("TLSRoute", spec)
    rules = mesh.tcp("db", 443)
    assert [r.sni for r in rules] == [("a.example",), ("*.long.example",), ("*.example",)]
    assert rules[0].backends == (
        WeightedBackend(BackendRef(skey("db"), 443), 3),
        WeightedBackend(None, 1),
    )
    told = mesh.conditions(key)
    assert told["Accepted"].status
    assert told["ResolvedRefs"].reason == "BackendNotFound"
    key = mesh.put("TLSRoute", {**spec, "hostnames": []})
    assert mesh.tcp("db", 443) == ()
    assert "must name the hosts" in mesh.conditions(key)["Accepted"].message


# ---- changes -----------------------------------------------------------------------------------


def test_put_names_the_services_concerned() -> None:
    mesh = Mesh()
    web, api, db = skey("web"), skey("api"), skey("db")

    def put(kind: str, name: str, spec: Any) -> frozenset[str]:
        obj = None if spec is None else {"metadata": {}, "spec": spec}
        return mesh.index.put(Key(kind, NS, name), obj)

    assert put("HTTPRoute", "r", route({"backendRefs": [to("api")]})) == {web}
    assert mesh.index.put_service(api, None) == {web, api}
    assert mesh.http()[0].backends == (WeightedBackend(None),)
    assert mesh.index.put_service(api, service("api")) == {web, api}
    assert mesh.http()[0].backends[0].ref == BackendRef(api, 80)
    parents = [to_service("db")]
    assert put("HTTPRoute", "r", route({}, parents=parents)) == {web, db}
    assert mesh.http() == ()
    assert put("HTTPRoute", "r", None) == {db}
    assert mesh.index.put(Key("Pod", NS, "p"), {}) == frozenset()


def test_objects_of_services() -> None:
    mesh = Mesh()
    one = mesh.put("HTTPRoute", route({"backendRefs": [to("api")]}))
    two = mesh.put(
        "XBackendTrafficPolicy", {"targetRefs": [{"group": "", "kind": "Service", "name": "db"}]}
    )
    assert mesh.index.objects([skey("web")]) == {one}
    assert mesh.index.objects([skey("api")]) == {one}
    assert mesh.index.objects([skey("db")]) == {two}
    assert mesh.index.keys() == {one, two}
    assert one in mesh.index


def test_forgetting_everything_leaves_nothing() -> None:
    mesh = Mesh()
    keys = [
        mesh.put("HTTPRoute", route({"backendRefs": [to("web", namespace="other")]})),
        mesh.put("ReferenceGrant", grant(), namespace="other"),
        mesh.put("XBackendTrafficPolicy", {"targetRefs": [{"kind": "Service", "name": "db"}]}),
    ]
    for key in keys:
        mesh.index.put(key, None)
    for key in list(mesh.index._services):
        mesh.index.routes(key)
        mesh.index.put_service(key, None)
    for name, value in vars(mesh.index).items():
        assert value == {} or name == "_domain", name
