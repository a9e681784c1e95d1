"""Rules that cannot be used: dropped, told, and nothing else lost."""

from __future__ import annotations

from typing import Any

import pytest
from routes_rig import BOUND, Mesh, route, to

from waypoint.config.gateway_api.attach import MAX_RULES


def filters(*kinds: str, **content: Any) -> dict[str, Any]:
    names = {"RequestRedirect": "requestRedirect", "URLRewrite": "urlRewrite", "CORS": "cors"}
    return {"filters": [{"type": k, names.get(k, "x"): content} for k in kinds]}


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}, "missing )"),
        ({"matches": [{"path": {"type": "Glob", "value": "/"}}]}, "path.type: 'Glob' is none of"),
        ({"matches": [{"path": {"value": "a"}}]}, "path.value: 'a' must begin with /"),
        ({"matches": [{"path": {"value": "/a//b"}}]}, "compared with //, /./ and /../ resolved"),
        ({"matches": [{"path": {"value": "/a?b"}}]}, "no query and no fragment"),
        ({"matches": [{"paht": {}}]}, "matches[0].paht: no such field"),
        ({"matches": [{"method": "get it"}]}, "method: 'get it' is not a method"),
        ({"matches": [{"headers": [{"name": "a b", "value": "c"}]}]}, "headers[0].name"),
        ({"matches": [{"headers": [{"name": "a"}]}]}, "headers[0].value: must have 1 to"),
        ({"matches": "x"}, "matches: must be a list"),
        ({"filters": [{}]}, "filters[0].type: must be set"),
        ({"filters": [{"type": "Sleep"}]}, "filters[0].type: 'Sleep' is none of"),
        ({"filters": [{"type": "URLRewrite"}]}, "urlRewrite: must be set for a filter of type"),
        (filters("URLRewrite", hostname="a b"), "hostname: 'a b' is not a DNS name"),
        (filters("URLRewrite", path={"type": "ReplaceFullPath"}), "replaceFullPath: goes with"),
        (filters("URLRewrite", "URLRewrite"), "filters[1].type: URLRewrite is there already"),
        (filters("RequestRedirect", "URLRewrite"), "exclude each other"),
        (filters("RequestRedirect"), "backendRefs: a rule that redirects has none"),
        ({**filters("RequestRedirect", statusCode=300), "backendRefs": []}, "300 is none of 301"),
        ({**filters("RequestRedirect", scheme="ftp"), "backendRefs": []}, "scheme: 'ftp'"),
        (filters("CORS", allowOrigins=["a b"]), "allowOrigins: 'a b' is no origin"),
        (
            {
                "matches": [{"path": {"type": "Exact", "value": "/a"}}],
                **filters(
                    "URLRewrite",
                    path={"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"},
                ),
            },
            "ReplacePrefixMatch goes with matches of type PathPrefix alone",
        ),
        ({"timeouts": {"request": "5"}}, "timeouts.request: '5' is not a duration"),
        (
            {"timeouts": {"request": "1s", "backendRequest": "2s"}},
            "backendRequest: must not be longer than request",
        ),
        ({"retry": {"codes": [200]}}, "retry.codes[0]: 200 is not between 400 and 599"),
        ({"retry": {"attempts": -1}}, "retry.attempts: -1"),
        (
            {"sessionPersistence": {"cookieConfig": {"lifetimeType": "Permanent"}}},
            "absoluteTimeout: must be set",
        ),
        ({"backendRefs": [to("web", weight=-1)]}, "weight: -1 is not between"),
        ({"backendRefs": [to("web", prot=80)]}, "backendRefs[0].prot: no such field"),
        (
            {
                "backendRefs": [
                    to(
                        "web",
                        filters=[
                            {
                                "type": "URLRewrite",
                                "urlRewrite": {
                                    "path": {"type": "ReplaceFullPath", "replaceFullPath": "/"}
                                },
                            }
                        ],
                    )
                ]
            },
            "a path can be rewritten for the whole rule only",
        ),
        ({"timeout": "5s"}, "spec.rules[0].timeout: no such field"),
        ("x", "spec.rules[0]: must be a mapping"),
    ],
)
def test_a_rule_with_anything_wrong_is_dropped_and_the_others_stay(rule: Any, why: str) -> None:
    mesh = Mesh()
    key = mesh.put("HTTPRoute", route(rule, {"name": "good"}))
    assert [r.name for r in mesh.http()] == ["good"]
    told = mesh.conditions(key)
    assert told["Accepted"].status
    partial = told["PartiallyInvalid"]
    assert (partial.status, partial.reason) == (True, "UnsupportedValue")
    assert partial.message.startswith("Dropped Rule spec.rules[0]")
    assert why in partial.message
    # Alone, it is a route that cannot be used, and requests go to the service.
    key = mesh.put("HTTPRoute", route(rule))
    assert mesh.http() == ()
    told = mesh.conditions(key)
    assert not told["Accepted"].status
    assert told["Accepted"].reason in ("UnsupportedValue", "IncompatibleFilters")
    assert why in told["Accepted"].message
    assert "PartiallyInvalid" not in told


def test_incompatible_filters_have_their_own_reason() -> None:
    mesh = Mesh()
    key = mesh.put("HTTPRoute", route(filters("RequestRedirect", "URLRewrite")))
    assert mesh.conditions(key)["Accepted"].reason == "IncompatibleFilters"


def test_who_has_more_matches_than_a_port_takes_is_told() -> None:
    """The least specific fall out, whosever they are; who keeps all of his is told nothing."""
    mesh = Mesh()
    small = mesh.put("HTTPRoute", route({"matches": [{"path": {"value": "/much/longer/path"}}]}))
    matches = [{"path": {"value": f"/{i}"}} for i in range(1000)]
    routes = [
        mesh.put("HTTPRoute", route({"matches": matches}), f"r{i}", created=f"2026-01-{i + 1:02}")
        for i in range(11)
    ]
    assert len(mesh.http()) == MAX_RULES
    found = [
        {c.type: c.message for c in mesh.index.status(key, lambda _: BOUND).parents[0].conditions}
        for key in (small, *routes)
    ]
    told = [each.get("PartiallyInvalid", "") for each in found]
    assert told[0] == ""
    left_out = [int(text.split(" matches")[0]) for text in told if "are left out on port" in text]
    assert sum(left_out) == 11 * 1000 + 1 - MAX_RULES
    assert all(str(MAX_RULES) in text for text in told if text)
