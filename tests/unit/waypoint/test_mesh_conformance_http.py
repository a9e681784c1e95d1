"""HTTPRoute in a mesh, feature by feature as the Gateway API's conformance suite asks for it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.waypoint.mesh_conformance import CONSUMER, NS, Answer, Mesh
from tests.unit.waypoint.mesh_conformance_objects import (
    answers,
    header,
    mesh,
    query,
    redirect,
    route,
    to,
    under,
)


def test_mesh_basic() -> None:
    """Without any route a service is reached as itself."""
    assert Mesh().ask("echo").backend == "echo:80"
    assert Mesh().routes("echo") == {}


def test_simple_same_namespace() -> None:
    """A rule without matches takes every request."""
    m = mesh(route(to("echo-v1")))
    assert m.ask("echo", "/any/path?x=1").backend == "echo-v1:8080"


@pytest.mark.parametrize(
    ("path", "headers", "backend"),
    [
        ("/", {}, "echo-v1"),
        ("/example", {}, "echo-v1"),
        ("/", {"Version": "one"}, "echo-v1"),
        ("/v2", {}, "echo-v2"),
        ("/v2/", {}, "echo-v2"),
        ("/v2/example", {}, "echo-v2"),
        ("/", {"Version": "two"}, "echo-v2"),
        ("/v2example", {}, "echo-v1"),
        ("/foo/v2/example", {}, "echo-v1"),
    ],
)
def test_matching(path: str, headers: dict[str, str], backend: str) -> None:
    """Paths match by segments, and a match of headers alone is one of every path."""
    m = mesh(
        route(
            {"matches": [under("/"), header("one")], **to("echo-v1")},
            {"matches": [under("/v2"), header("two")], **to("echo-v2")},
        )
    )
    assert m.ask("echo", path, headers).backend == f"{backend}:8080"


@pytest.fixture(scope="module")
def animals() -> Mesh:
    return mesh(
        route(
            {"matches": [query("whale")], **to("echo-v1")},
            {"matches": [query("dolphin")], **to("echo-v2")},
            {"matches": [{**under("/path1"), **query("whale")}], **to("echo-v1")},
            {"matches": [{**header("one"), **query("whale")}], **to("echo-v2")},
            {
                "matches": [
                    {**under("/path3"), **query("shark")},
                    {**under("/path4"), **header("three"), **query("kraken")},
                ],
                **to("echo-v1"),
            },
            {"matches": [under("/path5")], **to("echo-v1")},
            {"matches": [query("hydra")], **to("echo-v2")},
        )
    )


@pytest.mark.parametrize(
    ("path", "headers", "backend"),
    [
        ("/?animal=whale", {}, "echo-v1"),
        ("/?animal=dolphin", {}, "echo-v2"),
        ("/?animal=whale&otherparam=irrelevant", {}, "echo-v1"),
        ("/?animal=dolphin&color=yellow", {}, "echo-v2"),
        ("/?color=blue", {}, ""),
        ("/?animal=dog", {}, ""),
        ("/?animal=whaledolphin", {}, ""),
        ("/", {}, ""),
        ("/path1?animal=whale", {}, "echo-v1"),
        ("/?animal=whale", {"version": "one"}, "echo-v2"),
        ("/path3?animal=shark", {}, "echo-v1"),
        ("/path4?animal=kraken", {"version": "three"}, "echo-v1"),
        ("/?animal=shark", {}, ""),
        ("/path4?animal=kraken", {}, ""),
        ("/path5?animal=hydra", {}, "echo-v1"),
    ],
)
def test_query_param_matching(
    animals: Mesh, path: str, headers: dict[str, str], backend: str
) -> None:
    """Query parameters are compared whole; more specific rules win whatever their order is."""
    got = animals.ask("echo", path, headers)
    assert (got.status, got.backend) == ((200, f"{backend}:8080") if backend else (404, ""))


def test_weight() -> None:
    """Backends share requests by weight."""
    m = mesh(
        route(
            {
                "backendRefs": [
                    {"name": "echo-v1", "port": 8080, "weight": 70},
                    {"name": "echo-v2", "port": 8080, "weight": 30},
                ]
            }
        )
    )
    assert m.ask("echo").shares == {"echo-v1:8080": 0.7, "echo-v2:8080": 0.3}


def test_traffic_split() -> None:
    """Exact paths go to their versions, on every port; all else is not found."""
    m = mesh(
        route(
            {"matches": [{"path": {"type": "Exact", "value": "/v1"}}], **to("echo-v1", 80)},
            {"matches": [{"path": {"type": "Exact", "value": "/v2"}}], **to("echo-v2", 80)},
            port=None,
        )
    )
    assert m.ask("echo", "/v1").backend == "echo-v1:80"
    assert m.ask("echo:8080", "/v2").backend == "echo-v2:80"
    assert m.ask("echo", "/v1/").status == 404
    assert m.ask("echo", "/").status == 404


def test_ports() -> None:
    """A parentRef's port is the only one that it concerns; without one it is all of them."""
    m = mesh(
        route({**answers("v1"), **to("echo-v1", 80)}, parent="echo-v1", name="one"),
        route({**answers("v2"), **to("echo-v2", 80)}, parent="echo-v2", port=None, name="two"),
    )
    assert m.ask("echo-v1").added == {"x-header-set": "v1"}
    excluded = m.ask("echo-v1:8080")
    assert (excluded.added, excluded.backend) == ({}, "echo-v1:8080")
    assert m.ask("echo-v2").added == {"x-header-set": "v2"}
    assert m.ask("echo-v2:8080").added == {"x-header-set": "v2"}


def test_frontend() -> None:
    """A route is its parent's only, whatever the Host header says."""
    m = mesh(route({**answers("set"), **to("echo-v2", 80)}, parent="echo-v2", port=None))
    wrong_host = {"Host": "echo-v1"}
    assert m.ask("echo-v2", headers=wrong_host).added == {"x-header-set": "set"}
    other = m.ask("echo-v1", headers={"Host": "echo-v2"})
    assert (other.added, other.backend) == ({}, "echo-v1:80")
    rule = (m.routes("echo-v2")[80].http or ())[0]
    assert rule.match.authority is None


def test_consumer_route() -> None:
    """A route in another namespace than its parent's is for requests from there, and no grant is
    asked for a backend that is the parent itself.
    """
    backend = {"name": "echo-v1", "namespace": NS, "port": 80}
    m = mesh(
        route(
            {**answers("set"), "backendRefs": [backend]},
            parent="echo-v1",
            port=None,
            namespace=CONSUMER,
        )
    )
    consumer = m.ask("echo-v1", caller=CONSUMER)
    assert (consumer.status, consumer.backend) == (200, "echo-v1:80")
    assert consumer.added == {"x-header-set": "set"}
    producer = m.ask("echo-v1")
    assert (producer.status, producer.backend, producer.added) == (200, "echo-v1:80", {})


def test_consumer_route_replaces_the_producers() -> None:
    """A caller whose namespace has routes of its own gets none of the producer's."""
    exact = {"path": {"type": "Exact", "value": "/mine"}}
    backend = {"name": "echo", "namespace": NS, "port": 80}
    m = mesh(
        route({**answers("producer"), **to("echo-v1")}, name="producer"),
        route({"matches": [exact], "backendRefs": [backend]}, name="c", namespace=CONSUMER),
    )
    assert m.ask("echo", "/mine", caller=CONSUMER).backend == "echo:80"
    assert m.ask("echo", "/other", caller=CONSUMER).status == 404
    assert m.ask("echo", "/mine").backend == "echo-v1:8080"
    assert m.ask("echo", "/mine", caller="elsewhere").added == {"x-header-set": "producer"}


def test_named_rule() -> None:
    """A rule's name shows in what is told about requests, and changes nothing else."""
    m = mesh(
        route(
            {"name": "named-rule", "matches": [under("/named")], **to("echo-v1")},
            {"matches": [under("/unnamed")], **to("echo-v2")},
        )
    )
    named, unnamed = m.ask("echo", "/named"), m.ask("echo", "/unnamed")
    assert (named.backend, unnamed.backend) == ("echo-v1:8080", "echo-v2:8080")
    assert "named-rule" in named.rule
    assert named.rule != unnamed.rule


# ---- redirects -------------------------------------------------------------------------------


def replace_prefix(value: str) -> dict[str, str]:
    return {"type": "ReplacePrefixMatch", "replacePrefixMatch": value}


def replace_all(value: str) -> dict[str, str]:
    return {"type": "ReplaceFullPath", "replaceFullPath": value}


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect_status(code: int) -> None:
    """Each status code of a redirect is answered as it is written."""
    m = mesh(route({"matches": [under("/old")], **redirect(statusCode=code)}))
    assert m.ask("echo", "/old").status == code
    assert m.ask("echo", "/old").location == "http://echo/old"


@pytest.mark.parametrize(
    ("fields", "path", "status", "location"),
    [
        ({"hostname": "example.org"}, "/p", 302, "http://example.org/p"),
        ({"hostname": "example.org", "statusCode": 301}, "/p", 301, "http://example.org/p"),
        ({"path": replace_prefix("/new")}, "/p/lemon", 302, "http://echo/new/lemon"),
        ({"path": replace_all("/new")}, "/p/path/original", 302, "http://echo/new"),
        ({"path": replace_prefix("/new"), "hostname": "a.b"}, "/p", 302, "http://a.b/new"),
        ({"path": replace_prefix("/new"), "statusCode": 301}, "/p", 301, "http://echo/new"),
        ({"path": replace_all("/new"), "hostname": "a.b"}, "/p", 302, "http://a.b/new"),
        ({"path": replace_all("/new"), "statusCode": 301}, "/p", 301, "http://echo/new"),
        ({"port": 8083}, "/p", 302, "http://echo:8083/p"),
        ({"port": 8083, "hostname": "a.b"}, "/p", 302, "http://a.b:8083/p"),
        ({"port": 8083, "statusCode": 301}, "/p", 301, "http://echo:8083/p"),
        ({"scheme": "https"}, "/p", 302, "https://echo/p"),
        ({"scheme": "https", "hostname": "a.b"}, "/p", 302, "https://a.b/p"),
        ({"scheme": "https", "statusCode": 301}, "/p", 301, "https://echo/p"),
    ],
)
def test_redirect(fields: dict[str, Any], path: str, status: int, location: str) -> None:
    """What a redirect does not name stays as in the request."""
    m = mesh(route({"matches": [under("/p")], **redirect(**fields)}))
    got = m.ask("echo", path)
    assert (got.status, got.location) == (status, location)


# ---- rewriting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "path", "asked", "seen"),
    [
        ("/prefix/one", replace_prefix("/one"), "/prefix/one/two", "/one/two"),
        ("/prefix/one", replace_prefix("/one"), "/prefix/one?x=1", "/one?x=1"),
        ("/strip", replace_prefix("/"), "/strip/three", "/three"),
        ("/strip", replace_prefix("/"), "/strip", "/"),
        ("/full/one", replace_all("/one"), "/full/one/two", "/one"),
    ],
)
def test_rewrite_path(prefix: str, path: dict[str, str], asked: str, seen: str) -> None:
    """The backend sees the rewritten path; the query stays."""
    rewrite = {"filters": [{"type": "URLRewrite", "urlRewrite": {"path": path}}]}
    m = mesh(route({"matches": [under(prefix)], **rewrite, **to("echo-v1", 80)}))
    got = m.ask("echo", asked)
    assert (got.path, got.backend) == (seen, "echo-v1:80")


CHANGE = {
    "set": [{"name": "X-Header-Set", "value": "set-overwrites-values"}],
    "add": [{"name": "X-Header-Add", "value": "add-appends-values"}],
    "remove": ["X-Header-Remove"],
}


def changed(at_backend: bool, change: dict[str, Any]) -> Mesh:
    """A mesh with a modifier of request headers, of the rule or of its backend."""
    filters = {"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": change}]}
    if at_backend:
        return mesh(route(to("echo-v1", **filters)))
    return mesh(route({**filters, **to("echo-v1")}))


@pytest.mark.parametrize("at_backend", [False, True])
@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ({}, {"x-header-set": "set-overwrites-values", "x-header-add": "add-appends-values"}),
        (
            {"x-header-set": "other", "X-Header-Add": "first", "X-HEADER-REMOVE": "val"},
            {"x-header-set": "set-overwrites-values", "x-header-add": "first,add-appends-values"},
        ),
        (
            {"Another-Header": "kept"},
            {
                "another-header": "kept",
                "x-header-set": "set-overwrites-values",
                "x-header-add": "add-appends-values",
            },
        ),
    ],
)
def test_request_header_modifier(
    at_backend: bool, sent: dict[str, str], seen: dict[str, str]
) -> None:
    """Headers are set, added and removed whatever their case is, for a rule and for a backend."""
    got: Answer = changed(at_backend, CHANGE).ask("echo", headers=sent)
    assert (got.headers, got.backend) == (seen, "echo-v1:8080")


@pytest.mark.parametrize("at_backend", [False, True])
def test_request_header_modifier_of_several(at_backend: bool) -> None:
    """Each list takes several headers."""
    change = {
        "set": [{"name": "S1", "value": "a"}, {"name": "S2", "value": "b"}],
        "add": [{"name": "A1", "value": "c"}, {"name": "A2", "value": "d"}],
        "remove": ["R1", "R2"],
    }
    sent = {"s2": "old", "a2": "old", "r2": "old", "other": "kept"}
    got = changed(at_backend, change).ask("echo", headers=sent)
    assert got.headers == {"s1": "a", "s2": "b", "a1": "c", "a2": "old,d", "other": "kept"}


def test_rewrite_and_modify_headers() -> None:
    """Filters of one rule act together."""
    filters = [
        {"type": "URLRewrite", "urlRewrite": {"path": replace_prefix("/prefix")}},
        {"type": "RequestHeaderModifier", "requestHeaderModifier": CHANGE},
    ]
    m = mesh(route({"matches": [under("/p/q")], "filters": filters, **to("echo-v1")}))
    got = m.ask("echo", "/p/q/one", {"X-Header-Remove": "x", "X-Header-Add": "1"})
    assert got.path == "/prefix/one"
    assert got.headers == {
        "x-header-set": "set-overwrites-values",
        "x-header-add": "1,add-appends-values",
    }
