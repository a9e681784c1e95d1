"""HTTPRoute and GRPCRoute: what their rules come to, and which are dropped."""

from __future__ import annotations

from typing import Any

import pytest
from routes_rig import Mesh, route, skey, to, to_service

from waypoint.config.routing import (
    DEFAULT_RETRY_ON,
    BackendRef,
    Cors,
    DirectResponse,
    HeaderChange,
    HttpRule,
    Mirror,
    PathMatch,
    Redirect,
    Retry,
    Rewrite,
    RouteMatch,
    Session,
    TextMatch,
    WeightedBackend,
)

WEB = WeightedBackend(BackendRef(skey("web"), 80))


def rule_of(**rule: Any) -> HttpRule:
    """What one rule comes to, which is said to be fine."""
    mesh = Mesh()
    key = mesh.put("HTTPRoute", route(rule))
    told = mesh.conditions(key)
    assert all(c.status for c in told.values()), told
    assert "PartiallyInvalid" not in told
    (found,) = mesh.http()
    return found


def filtered(kind: str, **content: Any) -> HttpRule:
    name = kind[0].lower() + kind[1:] if kind not in ("URLRewrite", "CORS") else None
    name = name or {"URLRewrite": "urlRewrite", "CORS": "cors"}[kind]
    extra = {"backendRefs": []} if kind == "RequestRedirect" else {}
    return rule_of(filters=[{"type": kind, name: content}], **extra)


# ---- match -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "want"),
    [
        ({}, RouteMatch()),
        ({"path": {"value": "/"}}, RouteMatch()),
        ({"path": {"type": "PathPrefix", "value": "/a"}}, RouteMatch(PathMatch("segments", "/a"))),
        ({"path": {"value": "/a/"}}, RouteMatch(PathMatch("segments", "/a"))),
        ({"path": {"type": "Exact", "value": "/a/"}}, RouteMatch(PathMatch("exact", "/a/"))),
        (
            {"path": {"type": "RegularExpression", "value": "/v[0-9]"}},
            RouteMatch(PathMatch("regex", "/v[0-9]")),
        ),
        ({"method": "POST"}, RouteMatch(method=TextMatch("exact", "POST"))),
        (
            {
                "headers": [
                    {"name": "X-B", "value": "1"},
                    {"name": "x-a", "value": "r.*", "type": "RegularExpression"},
                    {"name": "x-b", "value": "never"},
                ]
            },
            RouteMatch(
                headers=(("x-a", TextMatch("regex", "r.*")), ("x-b", TextMatch("exact", "1")))
            ),
        ),
        (
            {"queryParams": [{"name": "Q", "value": "1"}]},
            RouteMatch(query=(("Q", TextMatch("exact", "1")),)),
        ),
    ],
)
def test_matches(match: dict[str, Any], want: RouteMatch) -> None:
    assert rule_of(matches=[match]).match == want


def test_precedence() -> None:
    """As the specification orders it, whatever the order in the object."""
    ordered: list[dict[str, Any]] = [
        {"path": {"type": "Exact", "value": "/a"}, "method": "GET"},
        {"path": {"type": "Exact", "value": "/a"}},
        {"path": {"type": "RegularExpression", "value": "/a.*"}},
        {"path": {"value": "/a/long"}},
        {"path": {"value": "/a"}, "method": "GET"},
        {
            "path": {"value": "/a"},
            "headers": [{"name": "a", "value": "1"}, {"name": "b", "value": "1"}],
        },
        {"path": {"value": "/a"}, "headers": [{"name": "a", "value": "1"}]},
        {"path": {"value": "/a"}, "queryParams": [{"name": "a", "value": "1"}]},
        {"path": {"value": "/a"}},
        {"method": "GET"},
        {"headers": [{"name": "a", "value": "1"}]},
        {},
    ]
    mesh = Mesh()
    rules = [{"name": f"n{i}", "matches": [m]} for i, m in enumerate(ordered)]
    mesh.put("HTTPRoute", route(*reversed(rules)))
    assert [r.name for r in mesh.http()] == [f"n{i}" for i in range(len(ordered))]


def test_ties_go_to_the_older_route_then_by_name_then_in_order() -> None:
    mesh = Mesh()
    rules = [{"name": "first"}, {"name": "second"}]
    mesh.put("HTTPRoute", route({"name": "young"}), "a", created="2026-02-01T00:00:00Z")
    mesh.put("HTTPRoute", route({"name": "c"}), "c", created="2026-01-01T00:00:00Z")
    mesh.put("HTTPRoute", route(*rules), "b", created="2026-01-01T00:00:00Z")
    assert [r.name for r in mesh.http()] == ["first", "second", "c", "young"]


def test_names_of_rules() -> None:
    mesh = Mesh()
    mesh.put("HTTPRoute", route({}, {"name": "mine"}))
    assert {r.name for r in mesh.http()} == {"shop.r.0", "mine"}


# ---- filters and the rest ----------------------------------------------------------------------


def test_header_filters() -> None:
    change = {
        "set": [{"name": "X-A", "value": "1"}, {"name": "x-a", "value": "never"}],
        "add": [{"name": "x-b", "value": "100%"}],
        "remove": ["X-C"],
    }
    want = HeaderChange((("x-a", "1"),), (("x-b", "100%"),), ("x-c",))
    assert filtered("RequestHeaderModifier", **change).request_headers == want
    assert filtered("ResponseHeaderModifier", **change).response_headers == want


@pytest.mark.parametrize(
    ("content", "want"),
    [
        ({}, Redirect(302)),
        ({"hostname": "a.example", "statusCode": 301}, Redirect(301, host="a.example")),
        ({"scheme": "https", "port": 8443}, Redirect(302, "https", port=8443)),
        (
            {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/x"}},
            Redirect(302, path="/x", full=True),
        ),
        (
            {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": ""}, "statusCode": 308},
            Redirect(308, path="/"),
        ),
    ],
)
def test_redirects(content: dict[str, Any], want: Redirect) -> None:
    assert filtered("RequestRedirect", **content).redirect == want


@pytest.mark.parametrize(
    ("content", "want"),
    [
        ({"hostname": "a.example"}, Rewrite(host="a.example")),
        (
            {"path": {"type": "ReplaceFullPath", "replaceFullPath": "x"}},
            Rewrite(path="/x", full=True),
        ),
        (
            {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"}},
            Rewrite(path="/x"),
        ),
    ],
)
def test_rewrites(content: dict[str, Any], want: Rewrite) -> None:
    assert filtered("URLRewrite", **content).rewrite == want


def test_mirrors() -> None:
    found = rule_of(
        filters=[
            {"type": "RequestMirror", "requestMirror": {"backendRef": to("db"), **share}}
            for share in (
                {},
                {"percent": 20},
                {"fraction": {"numerator": 1, "denominator": 200}},
                {"fraction": {"numerator": 3}},
                {"percent": 0},
            )
        ]
    )
    db = BackendRef(skey("db"), 80)
    assert found.mirrors == tuple(Mirror(db, share) for share in (100, 20, 0.5, 3))


def test_cors() -> None:
    found = filtered(
        "CORS",
        allowOrigins=["https://a.example", "https://*.b.example:8443"],
        allowMethods=["GET"],
        allowHeaders=["x-a"],
        exposeHeaders=["x-b"],
        allowCredentials=True,
        maxAge=60,
    )
    assert found.cors == Cors(
        (
            TextMatch("exact", "https://a.example"),
            TextMatch("regex", r"https\://.*\.b\.example\:8443"),
        ),
        ("GET",),
        ("x-a",),
        ("x-b",),
        60,
        True,
        False,
    )
    star = filtered("CORS", allowOrigins=["*"], allowMethods=["*"]).cors
    assert star == Cors((TextMatch("exact", "*"),), ("*",), max_age=5, forward_unmatched=False)
    told = filtered("CORS", allowOrigins=["*"], allowMethods=["*"], allowCredentials=True).cors
    assert told is not None
    assert "DELETE" in told.methods
    echoing = filtered("CORS", allowOrigins=["*"], allowHeaders=["*", "x-a"], allowCredentials=True)
    assert echoing.cors is not None
    assert (echoing.cors.request_headers, echoing.cors.echo_headers) == ((), True)
    plain = filtered("CORS", allowOrigins=["*"], allowHeaders=["*"]).cors
    assert plain is not None
    assert (plain.request_headers, plain.echo_headers) == (("*",), False)
    shown = filtered("CORS", allowOrigins=["*"], exposeHeaders=["*", "x-b"], allowCredentials=True)
    assert shown.cors is not None
    assert shown.cors.expose_headers == ("x-b",)


def test_timeouts_and_retries() -> None:
    found = rule_of(
        timeouts={"request": "10s", "backendRequest": "500ms"},
        retry={"codes": [500, 503, 500], "attempts": 4, "backoff": "1m"},
    )
    assert (found.timeout, found.backend_timeout) == (10.0, 0.5)
    assert found.retry == Retry(4, (500, 503), DEFAULT_RETRY_ON, backoff=60.0)
    off = rule_of(timeouts={"request": "0s"}, retry={"attempts": 0})
    assert off.timeout is None
    assert off.retry == Retry(0, conditions=DEFAULT_RETRY_ON)
    assert rule_of(retry={}).retry == Retry(2, conditions=DEFAULT_RETRY_ON)


@pytest.mark.parametrize(
    ("persistence", "want"),
    [
        ({"sessionName": "s"}, Session("cookie", "s")),
        ({"cookie": {"name": "c", "path": "/p"}}, Session("cookie", "c", "/p")),
        (
            {"type": "Header", "header": {"name": "X-S"}, "absoluteTimeout": "1h"},
            Session("header", "x-s", absolute_timeout=3600.0),
        ),
        (
            {
                "absoluteTimeout": "1h",
                "sessionName": "s",
                "cookieConfig": {"lifetimeType": "Permanent"},
            },
            Session("cookie", "s", absolute_timeout=3600.0, permanent=True),
        ),
    ],
)
def test_sessions(persistence: dict[str, Any], want: Session) -> None:
    assert rule_of(sessionPersistence=persistence).session == want


def test_a_session_without_a_name_is_the_rule_s_own() -> None:
    mesh = Mesh()
    mesh.put("HTTPRoute", route({"sessionPersistence": {}}, {"sessionPersistence": {}}))
    one, two = (r.session for r in mesh.http())
    assert one is not None
    assert two is not None
    assert one.name.startswith("session-")
    assert one.name != two.name


# ---- backends ----------------------------------------------------------------------------------


def test_backends_weights_and_filters() -> None:
    found = rule_of(
        backendRefs=[
            to(
                "api",
                90,
                weight=3,
                filters=[
                    {
                        "type": "RequestHeaderModifier",
                        "requestHeaderModifier": {"remove": ["a"]},
                    },
                    {"type": "URLRewrite", "urlRewrite": {"hostname": "x.example"}},
                ],
            ),
            to("db", weight=0),
            to("web"),
        ]
    )
    assert found.backends == (
        WeightedBackend(
            BackendRef(skey("api"), 90),
            3,
            HeaderChange(remove=("a",)),
            rewrite=Rewrite(host="x.example"),
        ),
        WEB,
    )


@pytest.mark.parametrize(
    ("ref", "reason", "why"),
    [
        (to("nope"), "BackendNotFound", "there is no Service shop/nope.shop"),
        (to("web", 81), "BackendNotFound", "has no port 81 (has 80)"),
        ({"name": "web"}, "BackendNotFound", "backendRefs[0].port: must be the number of a port"),
        ({"name": "", "port": 80}, "BackendNotFound", "must name a Service"),
        (to("web", kind="Pod"), "InvalidKind", "'Pod' is no kind that can be sent to"),
        (to("b", kind="Bucket", group="s3.example"), "InvalidKind", "'s3.example/Bucket'"),
        (to("web", namespace="other"), "RefNotPermitted", "no ReferenceGrant of namespace other"),
        (to("nope", namespace="other"), "RefNotPermitted", "no ReferenceGrant of namespace other"),
    ],
)
def test_a_backend_that_cannot_be_keeps_its_share(
    ref: dict[str, Any], reason: str, why: str
) -> None:
    mesh = Mesh()
    key = mesh.put("HTTPRoute", route({"backendRefs": [ref, to("web")]}))
    assert mesh.http()[0].backends == (WeightedBackend(None), WEB)
    told = mesh.conditions(key)
    assert told["Accepted"].status
    assert (told["ResolvedRefs"].status, told["ResolvedRefs"].reason) == (False, reason)
    assert why in told["ResolvedRefs"].message


def test_no_backends_is_a_500() -> None:
    mesh = Mesh()
    key = mesh.put("HTTPRoute", {"parentRefs": [to_service("web")]})
    assert mesh.http()[0].backends == ()
    assert mesh.http()[0].match == RouteMatch()
    assert mesh.conditions(key)["Accepted"].status


def test_a_mirror_that_cannot_be_is_left_out() -> None:
    mesh = Mesh()
    mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": to("nope")}}
    key = mesh.put("HTTPRoute", route({"filters": [mirror]}))
    assert mesh.http()[0].mirrors == ()
    assert mesh.http()[0].backends == (WEB,)
    assert mesh.conditions(key)["ResolvedRefs"].reason == "BackendNotFound"


@pytest.mark.parametrize(
    ("filter_", "reason"),
    [
        (
            {"type": "ExtensionRef", "extensionRef": {"group": "x", "kind": "Y", "name": "z"}},
            "InvalidKind",
        ),
        ({"type": "ExternalAuth", "externalAuth": {"protocol": "HTTP"}}, "UnsupportedValue"),
    ],
)
def test_a_filter_that_cannot_be_done_is_never_skipped(
    filter_: dict[str, Any], reason: str
) -> None:
    """Its rule answers 500; a less specific rule must not take the request instead."""
    mesh = Mesh()
    rules = [{"matches": [{"path": {"value": "/a"}}], "filters": [filter_]}, {}]
    key = mesh.put("HTTPRoute", route(*rules))
    first, second = mesh.http()
    assert first.response == DirectResponse(500)
    assert first.backends == ()
    assert second.backends == (WEB,)
    assert mesh.conditions(key)["ResolvedRefs"].reason == reason
