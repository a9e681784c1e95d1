"""Which VirtualServices count for a service, together with others, with delegates, over time."""

from __future__ import annotations

from typing import Any

import pytest
from istio_rig import NS, ROOT, WAYPOINT, Mesh, hostname, one_rule, service, to

from mesh.manifest import Key
from waypoint.config.istio import ServiceState, combine
from waypoint.config.routing import BackendRef, HttpRule, PathMatch, RouteMatch, Routes, TextMatch

WEB = f"{NS}/{hostname('web')}"
API = f"{NS}/{hostname('api')}"


def answering(code: int, *, path: str = "", hosts: list[str] | None = None) -> dict[str, Any]:
    match = {"match": [{"uri": {"prefix": path}}]} if path else {}
    return {"hosts": hosts or ["web"], "http": [{**match, "directResponse": {"status": code}}]}


def codes(mesh: Mesh, name: str = "web") -> list[int]:
    return [r.response.code for r in mesh.http(name) if r.response]


# ---- several objects ---------------------------------------------------------------------------


def test_several_of_one_host_follow_each_other_by_age() -> None:
    mesh = Mesh()
    young = mesh.virtual(answering(201, path="/a"), "a", created="2026-02-01T00:00:00Z")
    old = mesh.virtual(answering(202, path="/a"), "b", created="2026-01-01T00:00:00Z")
    assert codes(mesh) == [202, 201]
    assert mesh.condition(young).reason == mesh.condition(old).reason == "Accepted"


def test_what_is_never_reached_is_told() -> None:
    mesh = Mesh()
    old = mesh.virtual(answering(202), "b", created="2026-01-01T00:00:00Z")
    young = mesh.virtual(answering(201, path="/a"), "a", created="2026-02-01T00:00:00Z")
    assert codes(mesh) == [202]
    assert mesh.condition(old).reason == "Accepted"
    told = mesh.condition(young)
    assert told.reason == "PartiallyInvalid"
    assert (
        "spec.http[0]: never reached on port 80: VirtualService shop/b takes every request"
        in told.message
    )


def test_a_service_s_own_host_comes_before_wildcards() -> None:
    mesh = Mesh()
    mesh.virtual(answering(201, hosts=["*"]), "a", created="2020-01-01T00:00:00Z")
    mesh.virtual(answering(202, path="/b", hosts=["*.shop.svc.cluster.local"]), "b", created="2021")
    mesh.virtual(answering(203, path="/c"), "c", created="2026-01-01T00:00:00Z")
    assert codes(mesh) == [203, 202, 201]
    assert codes(mesh, "api") == [202, 201]


@pytest.mark.parametrize(
    ("namespace", "export", "counts"),
    [
        (NS, [], True),
        (NS, ["."], True),
        (NS, ["*"], True),
        (NS, ["other"], False),
        (NS, ["~"], False),
        ("infra", [], True),  # the waypoint's own
        ("infra", ["."], True),
        ("infra", [NS], True),
        ("third", [], False),
        (ROOT, [], False),
    ],
)
def test_namespaces(namespace: str, export: list[str], counts: bool) -> None:
    """Those of the service's namespace and of its waypoint's, as far as exportTo shows them."""
    mesh = Mesh()
    spec = {**answering(201, hosts=[hostname("web")]), "exportTo": export}
    key = mesh.virtual(spec, namespace=namespace)
    assert bool(mesh.index.routes(WEB, "infra")) is counts
    told = mesh.condition(key, ServiceState(bound=("infra/wp",)))
    assert told.status is counts
    if not counts:
        assert told.reason == "AncestorNotBound"
        assert f"not this one for {WEB}" in told.message


@pytest.mark.parametrize(
    ("gateways", "counts"),
    [([], True), (["mesh"], True), (["shop/gw", "mesh"], True), (["shop/gw"], False)],
)
def test_gateways(gateways: list[str], counts: bool) -> None:
    mesh = Mesh()
    key = mesh.virtual({**answering(201), "gateways": gateways})
    assert (codes(mesh) == [201]) is counts
    assert mesh.condition(key).status is counts
    if not counts:
        assert "spec.gateways: it is for gateways only" in mesh.condition(key).message


def test_gateway_api_routes_win() -> None:
    mesh = Mesh()
    key = mesh.virtual(answering(201))
    taken = mesh.condition(key, ServiceState((WAYPOINT,), taken={80: "HTTPRoute shop/r"}))
    assert (taken.status, taken.reason) == (False, "Invalid")
    assert "HTTPRoute shop/r is attached to port 80 and counts there alone" in taken.message
    many = mesh.virtual(answering(201, hosts=["api"]), "many")
    part = mesh.condition(many, ServiceState((WAYPOINT,), taken={80: "HTTPRoute shop/r"}))
    assert (part.status, part.reason) == (True, "PartiallyInvalid")
    rule = mesh.http()[0]
    ours, theirs = Routes(http=(rule,)), Routes(http=())
    assert combine(theirs, ours) == theirs
    assert combine(Routes(), ours) == ours


# ---- statuses ----------------------------------------------------------------------------------


def test_targets() -> None:
    mesh = Mesh()
    lost = mesh.condition(mesh.virtual(answering(201, hosts=["nope"])))
    assert (lost.status, lost.reason) == (False, "TargetNotFound")
    assert "there is no service nope.shop.svc.cluster.local" in lost.message
    two = mesh.virtual(answering(201, hosts=["web", "db"]))
    unbound = mesh.condition(two, ServiceState())
    assert (unbound.status, unbound.reason) == (False, "AncestorNotBound")
    half = mesh.condition(two, db=ServiceState())
    assert (half.status, half.reason) == (True, "PartiallyInvalid")
    assert f"no waypoint serves {NS}/{hostname('db')}" in half.message
    assert f"in effect for {WEB} at {WAYPOINT}" in half.message


@pytest.mark.parametrize(
    ("spec", "reason", "why"),
    [
        (None, "Invalid", "spec: has no rules"),
        ("x", "Invalid", "spec: must be a mapping, not 'x'"),
        ({"hosts": ["web"]}, "Invalid", "spec: has no rules"),
        ({"hosts": "web", "http": []}, "Invalid", "spec.hosts: must be a list"),
        ({**answering(201), "hosts": ["a b"]}, "Invalid", "spec.hosts[0]: 'a b' is not a DNS name"),
        ({**answering(201), "hosts": []}, "AncestorNotBound", "no VirtualService delegates to it"),
    ],
)
def test_what_is_none(spec: Any, reason: str, why: str) -> None:
    mesh = Mesh()
    condition = mesh.condition(mesh.virtual(spec))
    assert (condition.status, condition.reason) == (False, reason)
    assert why in condition.message
    assert mesh.routes() == {}


# ---- delegates ---------------------------------------------------------------------------------


def delegating(match: Any = None, name: str = "leaf", **rule: Any) -> dict[str, Any]:
    more = {} if match is None else {"match": match}
    return {"hosts": ["web"], "http": [{**more, **rule, "delegate": {"name": name}}]}


def test_a_delegate_s_rules_stand_where_it_is_named_and_inherit() -> None:
    mesh = Mesh()
    root = mesh.virtual(
        {
            "hosts": ["web"],
            "http": [
                {
                    "name": "root",
                    "match": [{"uri": {"prefix": "/a"}, "headers": {"x": {"exact": "1"}}}],
                    "delegate": {"name": "leaf", "namespace": "team"},
                    "timeout": "3s",
                    "headers": {"request": {"set": {"from": "root"}}},
                },
                {"directResponse": {"status": 404}},
            ],
        }
    )
    leaf = mesh.virtual(
        {
            "http": [
                {
                    "name": "one",
                    "match": [{"uri": {"prefix": "/a/b"}, "method": {"exact": "GET"}}],
                    "route": [to(hostname("api"), port={"number": 90})],
                    "timeout": "1s",
                },
                {"route": [to(hostname("db"))]},
            ]
        },
        "leaf",
        "team",
    )
    first, second, last = mesh.http()
    header = (("x", TextMatch("exact", "1")),)
    assert (first.origin, first.name, first.timeout) == (leaf, "root-one", 1.0)
    assert first.match == RouteMatch(
        path=PathMatch("prefix", "/a/b"), method=TextMatch("exact", "GET"), headers=header
    )
    assert first.backends[0].ref == BackendRef(API, 90)
    assert first.request_headers.set == (("from", "root"),)
    assert (second.origin, second.name, second.timeout) == (leaf, "root", 3.0)
    assert second.match == RouteMatch(path=PathMatch("prefix", "/a"), headers=header)
    assert (last.origin, last.match) == (root, RouteMatch())
    for key in (root, leaf):
        assert mesh.condition(key).reason == "Accepted"


@pytest.mark.parametrize(
    ("above", "below", "both"),
    [
        ({"prefix": "/a"}, {"prefix": "/"}, PathMatch("prefix", "/a")),
        ({"prefix": "/a"}, {"exact": "/ab"}, PathMatch("exact", "/ab")),
        ({"exact": "/ab"}, {"prefix": "/a"}, PathMatch("exact", "/ab")),
        ({"exact": "/a"}, {"exact": "/a"}, PathMatch("exact", "/a")),
        ({"regex": "/a"}, {"regex": "/a"}, PathMatch("regex", "/a")),
        ({"exact": "/a"}, {"exact": "/b"}, None),
        ({"prefix": "/a"}, {"prefix": "/b"}, None),
        ({"prefix": "/a"}, {"exact": "/b"}, None),
        ({"regex": "/a"}, {"prefix": "/a"}, None),
    ],
)
def test_paths_of_root_and_delegate(above: Any, below: Any, both: PathMatch | None) -> None:
    mesh = Mesh()
    mesh.virtual(delegating([{"uri": above}]))
    leaf = mesh.virtual(
        {"http": [{"match": [{"uri": below}], "directResponse": {"status": 200}}]}, "leaf"
    )
    assert [r.match.path for r in mesh.http()] == ([both] if both else [])
    assert ("contradicts the rule" in mesh.condition(leaf).message) is (both is None)


def test_other_parts_of_root_and_delegate_must_both_match() -> None:
    mesh = Mesh()
    mesh.virtual(
        delegating([{"method": {"regex": "G.*"}, "sourceNamespace": "a"}, {"sourceNamespace": "b"}])
    )
    match = {"method": {"exact": "GET"}, "sourceNamespace": "a", "port": 80}
    mesh.virtual({"http": [{"match": [match], "directResponse": {"status": 200}}]}, "leaf")
    (rule,) = mesh.http()
    assert rule.match == RouteMatch(
        method=TextMatch("exact", "GET"),
        headers=((":method", TextMatch("regex", "G.*")),),
        source_namespaces=("a",),
    )


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        (None, "delegate: there is no VirtualService shop/leaf"),
        (answering(200), "VirtualService shop/leaf has hosts of its own"),
        ({"http": [{"delegate": {"name": "vs"}}]}, "a delegate cannot delegate"),
        ({"http": [{"delegate": {"name": "leaf"}}]}, "a delegate cannot delegate"),
    ],
)
def test_bad_delegates_and_cycles(leaf: Any, why: str) -> None:
    """Their rules are left out; the other rules of the root stay."""
    mesh = Mesh()
    root_spec = delegating()
    root_spec["http"].append({"directResponse": {"status": 201}})
    if leaf is not None and "hosts" in leaf:
        leaf["hosts"] = ["db"]
    root = mesh.virtual(root_spec)
    keys = [root]
    if leaf is not None:
        keys.append(mesh.virtual(leaf, "leaf"))
    assert codes(mesh) == [201]
    assert any(why in mesh.condition(key).message for key in keys)


@pytest.mark.parametrize("name", ["", "a b", 5])
def test_a_delegate_needs_a_name(name: Any) -> None:
    mesh = Mesh()
    root = mesh.virtual(delegating(name=name))
    assert mesh.routes() == {}
    assert "spec.http[0].delegate" in mesh.condition(root).message


# ---- what is to be worked out again ------------------------------------------------------------


def test_put_names_the_services_concerned() -> None:
    mesh = Mesh()

    def put(kind: str, name: str, spec: Any) -> frozenset[str]:
        obj = None if spec is None else {"metadata": {}, "spec": spec}
        return mesh.index.put(Key(kind, NS, name), obj)

    assert put("VirtualService", "v", one_rule(route=[to("api", subset="v1")])) == {WEB}
    assert mesh.http()[0].backends[0].ref is None
    # A subset of a destination changes what is sent there.
    rule = {"host": "api", "subsets": [{"name": "v1"}]}
    assert put("DestinationRule", "d", rule) == {WEB, API}
    assert mesh.http()[0].backends[0].ref == BackendRef(API, 80, "v1")
    assert put("DestinationRule", "d", None) == {WEB, API}
    assert mesh.http()[0].backends[0].ref is None
    # So does the destination itself.
    assert mesh.index.put_service(API, None) == {WEB, API}
    assert put("VirtualService", "v", one_rule(route=[to("db")])) == {WEB}
    assert mesh.index.put_service(API, service("api")) == {API}
    # Another host: both are concerned.
    moved = {"hosts": ["db"], "http": [{"route": [to("db")]}]}
    assert put("VirtualService", "v", moved) == {WEB, f"{NS}/{hostname('db')}"}
    # A delegate concerns the services of those that name it, before it is there and after.
    assert put("VirtualService", "root", delegating()) == {WEB}
    assert put("VirtualService", "leaf", {"http": [{"route": [to("db")]}]}) == {WEB}
    assert len(mesh.http()) == 1
    assert put("VirtualService", "leaf", None) == {WEB}
    assert mesh.http() == ()
    assert put("DestinationRule", "all", {"host": "*"}) >= {WEB, API}
    assert mesh.index.put(Key("Pod", NS, "p"), {}) == frozenset()


def test_objects_of_services() -> None:
    mesh = Mesh()
    sender = mesh.virtual(one_rule(route=[to("api")]), "sender")
    root = mesh.virtual(delegating(), "root")
    leaf = mesh.virtual({"http": [{"route": [to("db")]}]}, "leaf")
    rule = mesh.rule({"host": "*.shop.svc.cluster.local"})
    assert mesh.index.keys() == {sender, root, leaf, rule}
    assert mesh.index.objects([WEB]) == {sender, root, leaf, rule}
    assert mesh.index.objects([API]) == {sender, rule}
    assert mesh.index.objects([f"{NS}/{hostname('db')}"]) == {leaf, root, rule}
    assert mesh.index.objects([]) == frozenset()


def test_forgetting_everything_leaves_nothing() -> None:
    """An index that was fed and emptied holds no more than a new one."""
    mesh = Mesh()
    keys = [
        mesh.virtual(one_rule(route=[to("api")])),
        mesh.virtual(delegating(), "root"),
        mesh.rule({"host": "*"}),
    ]
    mesh.http()
    for key in keys:
        mesh.index.put(key, None)
    for name in ("web", "api", "db"):
        mesh.index.put_service(f"{NS}/{hostname(name)}", None)
    fresh = Mesh(service("x"))
    fresh.index.put_service(f"{NS}/{hostname('x')}", None)
    for name, value in vars(fresh.index).items():
        if isinstance(value, dict):
            assert getattr(mesh.index, name) == value, name


def test_one_hostname_in_two_namespaces() -> None:
    """The VirtualService's own namespace is looked in first."""
    other = service("web")
    mesh = Mesh(service("web"), service("api"))
    twin = other.__class__(
        name="web", namespace="team", hostname=hostname("web"), ports=other.ports
    )
    mesh.index.put_service("team/" + hostname("web"), twin)
    spec = {"hosts": [hostname("api")], "http": [{"route": [to(hostname("web"))]}]}
    mesh.virtual(spec)
    assert mesh.http("api")[0].backends[0].ref == BackendRef(WEB, 80)
    mesh.virtual(spec, namespace="team")
    rules: tuple[HttpRule, ...] = mesh.index.routes(API, "team")[80].http or ()
    assert [r.backends[0].ref.service for r in rules if r.backends[0].ref] == [WEB]
