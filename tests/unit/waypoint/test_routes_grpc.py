"""GRPCRoute: what its rules come to."""

from __future__ import annotations

from typing import Any

import pytest
from routes_rig import BOUND, Mesh, route, skey, to, to_service

from waypoint.config.routing import BackendRef, PathMatch, RouteMatch, WeightedBackend


def grpc(*rules: Any) -> dict[str, Any]:
    parent = to_service("api", port=90)
    return {
        "parentRefs": [parent],
        "rules": [{"backendRefs": [to("api", 90)], **r} for r in rules],
    }


@pytest.mark.parametrize(
    ("method", "want"),
    [
        ({"service": "a.B", "method": "C"}, PathMatch("exact", "/a.B/C")),
        ({"service": "a.B"}, PathMatch("prefix", "/a.B/")),
        ({"method": "C"}, PathMatch("regex", "/[^/]+/C")),
        (
            {"type": "RegularExpression", "service": "a.*", "method": "b|c"},
            PathMatch("regex", "/(?:a.*)/(?:b|c)"),
        ),
        ({"type": "RegularExpression", "service": "a.*"}, PathMatch("regex", "/(?:a.*)/[^/]+")),
        (None, None),
    ],
)
def test_grpc_methods(method: dict[str, Any] | None, want: PathMatch | None) -> None:
    mesh = Mesh()
    key = mesh.put("GRPCRoute", grpc({"matches": [{"method": method}] if method else []}))
    (rule,) = mesh.http("api", 90)
    assert rule.match == RouteMatch(path=want, grpc=True)
    assert rule.backends == (WeightedBackend(BackendRef(skey("api"), 90)),)
    assert mesh.conditions(key)["Accepted"].status


def test_grpc_precedence() -> None:
    ordered = [
        {"method": {"service": "long.Service", "method": "Get"}},
        {"method": {"service": "long.Service"}},
        {"method": {"service": "a.B", "method": "Longer"}},
        {"method": {"service": "a.B", "method": "Get"}, "headers": [{"name": "a", "value": "1"}]},
        {"method": {"service": "a.B", "method": "Get"}},
        {},
    ]
    mesh = Mesh()
    rules = [{"name": f"n{i}", "matches": [m]} for i, m in enumerate(ordered)]
    mesh.put("GRPCRoute", grpc(*reversed(rules)))
    assert [r.name for r in mesh.http("api", 90)] == [f"n{i}" for i in range(len(ordered))]


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"matches": [{"method": {}}]}, "must have a service or a method"),
        ({"matches": [{"method": {"service": "a/b"}}]}, "service: 'a/b' is not a name"),
        (  # sound alone, but not inside the expression that a path is compared with
            {"matches": [{"method": {"type": "RegularExpression", "service": r"\Qabc"}}]},
            "matches[0].method.service",
        ),
        ({"matches": [{"path": {}}]}, "matches[0].path: no such field"),
        ({"timeouts": {}}, "timeouts: no such field"),
        (
            {"filters": [{"type": "URLRewrite", "urlRewrite": {}}]},
            "filters[0].type: 'URLRewrite' is none of",
        ),
    ],
)
def test_bad_grpc_rules_are_dropped(rule: dict[str, Any], why: str) -> None:
    mesh = Mesh()
    key = mesh.put("GRPCRoute", grpc(rule))
    assert mesh.http("api", 90) == ()
    assert why in mesh.conditions(key)["Accepted"].message


def test_unbound_services_are_said() -> None:
    mesh = Mesh()
    key = mesh.put("HTTPRoute", route({}))
    assert mesh.conditions(key)["ResolvedWaypoints"].status
    told = mesh.conditions(key, state=BOUND.__class__())
    assert told["Accepted"].status
    assert not told["ResolvedWaypoints"].status
    assert "istio.io/use-waypoint" in told["ResolvedWaypoints"].message
