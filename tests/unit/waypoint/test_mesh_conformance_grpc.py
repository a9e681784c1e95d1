"""GRPCRoute in a mesh, as the conformance suite and the API's text ask for it."""

from __future__ import annotations

import itertools
from itertools import permutations
from typing import Any

import pytest

from tests.unit.waypoint.mesh_conformance import Answer, Mesh
from tests.unit.waypoint.mesh_conformance_objects import mesh, route, to

PORT = 7070


def grpc(*rules: dict[str, Any], **how: Any) -> str:
    return route(*rules, kind="GRPCRoute", port=PORT, **how)


def call(m: Mesh, path: str = "/pkg.Echo/Echo", **how: Any) -> Answer:
    """One gRPC call."""
    sent = {"content-type": "application/grpc", **how.pop("headers", {})}
    return m.ask(f"echo:{PORT}", path, headers=sent, method="POST", grpc=True, **how)


def method(service: str = "", name: str = "", kind: str = "Exact") -> dict[str, Any]:
    found = {"type": kind, "service": service, "method": name}
    return {"method": {k: v for k, v in found.items() if v}}


def rule(to_name: str, *matches: dict[str, Any]) -> dict[str, Any]:
    return {"matches": list(matches), **to(to_name, PORT)}


def test_weight() -> None:
    """Backends share calls by weight; one with weight 0 takes nothing, even if it is not there."""
    weights = {"echo-v1": 70, "echo-v2": 30, "echo-v3": 0}
    backends = [{"name": n, "port": PORT, "weight": w} for n, w in weights.items()]
    m = Mesh()
    (key,) = m.apply(grpc({"backendRefs": backends}))
    assert call(m).shares == {f"echo-v1:{PORT}": 0.7, f"echo-v2:{PORT}": 0.3}
    assert m.parent(key)["Accepted"] == (True, "Accepted")
    assert m.parent(key)["ResolvedRefs"] == (False, "BackendNotFound")


def test_exact_method_matching() -> None:
    """Calls go by service and method; what no rule names is not found."""
    m = mesh(
        grpc(
            rule("echo-v1", method("pkg.Echo", "Echo")),
            rule("echo-v2", method("pkg.Echo", "EchoTwo")),
        )
    )
    assert call(m, "/pkg.Echo/Echo").backend == f"echo-v1:{PORT}"
    assert call(m, "/pkg.Echo/EchoTwo").backend == f"echo-v2:{PORT}"
    assert call(m, "/pkg.Echo/EchoThree").status == 404
    assert call(m, "/pkg.Echo2/Echo").status == 404


@pytest.mark.parametrize(
    ("match", "path", "found"),
    [
        (method("pkg.Echo"), "/pkg.Echo/Any", True),
        (method("pkg.Echo"), "/pkg.Echo", False),
        (method("pkg.Echo"), "/pkg.EchoTwo/Any", False),
        (method(name="Echo"), "/any.Service/Echo", True),
        (method(name="Echo"), "/any.Service/EchoTwo", False),
        (method(r"pkg\..*", kind="RegularExpression"), "/pkg.Echo/Any", True),
        (method(r"pkg\..*", kind="RegularExpression"), "/other.Echo/Any", False),
        (method("pkg.Echo", "E.*", "RegularExpression"), "/pkg.Echo/Echo", True),
        (method("pkg.Echo", "E.*", "RegularExpression"), "/pkg.Echo/NotEcho", False),
    ],
)
def test_method_matching(match: dict[str, Any], path: str, found: bool) -> None:
    """Service or method alone, and regular expressions matched whole."""
    m = mesh(grpc(rule("echo-v1", match)))
    assert call(m, path).status == (200 if found else 404)


def test_header_matching() -> None:
    """More headers come before fewer ones."""
    one = {"headers": [{"name": "Version", "value": "two"}]}
    both = {"headers": [*one["headers"], {"name": "color", "value": "orange"}]}
    m = mesh(grpc(rule("echo-v2", one), rule("echo-v1", both)))
    assert call(m, headers={"version": "two"}).backend == f"echo-v2:{PORT}"
    assert call(m, headers={"version": "two", "color": "orange"}).backend == f"echo-v1:{PORT}"
    assert call(m).status == 404


# What decides, each by more than everything below it; all match the call of the test below.
_LADDER = (
    method("pkg.Echo", "Echo"),
    method("pkg.Echo"),
    method(name="Echo"),
    {"headers": [{"name": n, "value": "1"} for n in "xy"]},
    {"headers": [{"name": "x", "value": "1"}]},
    {},
)


@pytest.mark.parametrize("at", range(len(_LADDER) - 1))
def test_what_decides(at: int) -> None:
    """Characters of the service, of the method, number of headers, whatever is written first."""
    for rules in permutations((rule("echo-v1", _LADDER[at]), rule("echo-v2", _LADDER[at + 1]))):
        m = mesh(grpc(*rules))
        assert call(m, headers={"x": "1", "y": "1"}).backend == f"echo-v1:{PORT}"


def test_the_older_route_wins() -> None:
    """Equal matches go to the older route."""
    old = grpc(to("echo-v1", PORT), name="z", created="2026-01-01T00:00:00Z")
    new = grpc(to("echo-v2", PORT), name="a", created="2026-02-01T00:00:00Z")
    for texts in permutations((old, new)):
        assert call(mesh(*texts)).backend == f"echo-v1:{PORT}"


def test_named_rule() -> None:
    """A rule's name shows in what is told about its calls."""
    m = mesh(grpc({"name": "named-rule", **to("echo-v1", PORT)}))
    assert "named-rule" in call(m).rule


def test_http_and_grpc_on_one_port() -> None:
    """Of different kinds of routes at one port the most specific kind counts (GEP-1294); the other
    is told so, and keeps the ports that it has alone.
    """
    m = mesh(grpc(rule("echo-v1", method("pkg.Echo")), name="calls"))
    at_port = m.apply(route(to("echo-v2", PORT), port=PORT, name="pages"))[0]
    everywhere = m.apply(route(to("echo-v2", PORT), port=None, name="all"))[0]
    assert call(m).backend == f"echo-v1:{PORT}"
    assert m.ask(f"echo:{PORT}", "/pages").status == 404
    assert m.ask("echo").backend == f"echo-v2:{PORT}"
    assert m.parent(at_port)["Accepted"] == (False, "Conflicted")
    assert m.parent(everywhere)["Accepted"][0] is True


def test_the_order_of_kinds() -> None:
    """GRPCRoute, HTTPRoute, TLSRoute, TCPRoute: the first of these counts, whichever came first."""
    kinds = ("GRPCRoute", "HTTPRoute", "TLSRoute", "TCPRoute")
    for first, second in itertools.pairwise(kinds):
        for order in permutations((first, second)):
            m = Mesh()
            keys = {
                kind: m.apply(route(to("echo-v1"), kind=kind, port=443, name=kind.lower()))[0]
                for kind in order
            }
            assert m.parent(keys[first])["Accepted"] == (True, "Accepted")
            assert m.parent(keys[second])["Accepted"] == (False, "Conflicted")
