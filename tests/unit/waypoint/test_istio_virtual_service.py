"""VirtualService: what its http rules come to, and what is said of those that are wrong."""

from __future__ import annotations

from typing import Any

import pytest
from istio_rig import NS, Mesh, hostname, one_rule, to

from waypoint.config.routing import (
    DEFAULT_RETRY_ON,
    BackendRef,
    Cors,
    DirectResponse,
    Fault,
    HeaderChange,
    HttpRule,
    Mirror,
    PathMatch,
    Redirect,
    Retry,
    Rewrite,
    RouteMatch,
    TextMatch,
    WeightedBackend,
)

WEB = f"{NS}/{hostname('web')}"
API = f"{NS}/{hostname('api')}"


def rule_of(**rule: Any) -> HttpRule:
    """The one rule that a VirtualService of one rule comes to, which is said to be fine."""
    mesh = Mesh()
    key = mesh.virtual(one_rule(**rule))
    condition = mesh.condition(key)
    assert (condition.reason, condition.status) == ("Accepted", True), condition.message
    (found,) = mesh.http()
    assert found.origin == key
    return found


def told(**rule: Any) -> tuple[tuple[HttpRule, ...], str]:
    """What a rule with something wrong comes to, and what is said."""
    mesh = Mesh()
    condition = mesh.condition(mesh.virtual(one_rule(**rule)))
    assert condition.reason in ("PartiallyInvalid", "Invalid"), condition.message
    return mesh.http(), condition.message


# ---- match -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "want"),
    [
        ({}, RouteMatch()),
        ({"uri": {"exact": "/a"}}, RouteMatch(path=PathMatch("exact", "/a"))),
        ({"uri": {"prefix": "/a"}}, RouteMatch(path=PathMatch("prefix", "/a"))),
        ({"uri": {"prefix": ""}}, RouteMatch()),
        ({"uri": {"regex": "/v[0-9]+"}}, RouteMatch(path=PathMatch("regex", "/v[0-9]+"))),
        (
            {"uri": {"prefix": "/A"}, "ignoreUriCase": True},
            RouteMatch(path=PathMatch("prefix", "/A", ignore_case=True)),
        ),
        ({"method": {"exact": "GET"}}, RouteMatch(method=TextMatch("exact", "GET"))),
        ({"scheme": {"exact": "http"}}, RouteMatch(scheme=TextMatch("exact", "http"))),
        ({"authority": {"prefix": "w"}}, RouteMatch(authority=TextMatch("prefix", "w"))),
        (
            {"headers": {"X-B": {"regex": "a|b"}, "x-a": {}, "X-C": {"regex": "*"}}},
            RouteMatch(
                headers=(
                    ("x-a", TextMatch("present")),
                    ("x-b", TextMatch("regex", "a|b")),
                    ("x-c", TextMatch("present")),
                )
            ),
        ),
        (
            {"withoutHeaders": {"X-A": {"exact": "1"}, "x-b": {}}},
            RouteMatch(
                headers=(
                    ("x-a", TextMatch("exact", "1", invert=True)),
                    ("x-b", TextMatch("present", invert=True)),
                )
            ),
        ),
        (
            {"queryParams": {"Q": {"exact": ""}, "p": {"prefix": "x"}}},
            RouteMatch(query=(("Q", TextMatch("exact", "")), ("p", TextMatch("prefix", "x")))),
        ),
        ({"sourceNamespace": "shop"}, RouteMatch(source_namespaces=("shop",))),
        ({"gateways": ["mesh", "x/y"]}, RouteMatch()),
        ({"port": 80}, RouteMatch()),
    ],
)
def test_matches(match: dict[str, Any], want: RouteMatch) -> None:
    assert rule_of(match=[match]).match == want


@pytest.mark.parametrize(
    ("match", "why"),
    [
        ({"uri": {"regex": "(?=a)"}}, "uri.regex: '(?=a)': invalid perl operator"),
        ({"uri": {}}, "uri: set one of exact, prefix and regex"),
        ({"uri": {"exact": "/", "prefix": "/"}}, "uri: set one of exact, prefix and regex"),
        ({"uri": {"exakt": "/"}}, "uri.exakt: no such field (known: exact, prefix, regex)"),
        ({"uri": "/"}, "uri: must be a mapping, not '/'"),
        ({"url": {"exact": "/"}}, "url: no such field"),
        ({"headers": {"a b": {}}}, "headers.a b: is not the name of a header"),
        ({"headers": {"x": {"regex": "("}}}, "headers.x.regex: '(': missing )"),
        ({"headers": {"x": None}, "port": "80"}, "port: '80' is not a number"),
        ({"headers": {"@request.auth.claims[group]": {"exact": "a"}}}, "outputClaimToHeaders"),
        ({"method": {"exact": 5}}, "method.exact: 5 is not text (quote it)"),
        ({"sourceNamespace": "a/b"}, "sourceNamespace: 'a/b' is not the name of a namespace"),
        ({"sourceLabels": {"app": "a"}}, "does not know the labels of its callers"),
        ({"gateways": "mesh"}, "gateways: must be a list"),
        ("x", "must be a mapping, not 'x'"),
    ],
)
def test_a_match_that_cannot_be_used_never_matches(match: Any, why: str) -> None:
    """Alone, its rule is gone and requests go to the service; beside others, these stay."""
    rules, message = told(match=[match])
    assert rules == ()
    assert f"spec.http[0].match[0]{'' if match == 'x' else '.'}" in message
    assert why in message
    rules, message = told(match=[{"uri": {"exact": "/ok"}}, match])
    assert [r.match for r in rules] == [RouteMatch(path=PathMatch("exact", "/ok"))]
    assert "spec.http[0].match[1]" in message


def test_matches_for_gateways_are_not_for_waypoints() -> None:
    mesh = Mesh()
    spec = one_rule(match=[{"gateways": ["shop/ingress"]}])
    spec["http"].append({"route": [to("api", port={"number": 90})]})
    mesh.virtual(spec)
    (rule,) = mesh.http()
    assert rule.backends == (WeightedBackend(BackendRef(API, 90)),)


def test_matches_are_of_their_port() -> None:
    mesh = Mesh()
    key = mesh.virtual(
        {"hosts": ["api"], "http": [{"match": [{"port": 90}], "directResponse": {"status": 204}}]}
    )
    assert mesh.http("api", 90)[0].response == DirectResponse(204)
    assert 80 not in mesh.routes("api")
    assert mesh.condition(key).reason == "Accepted"


def test_each_match_is_a_rule_and_rules_keep_their_order() -> None:
    mesh = Mesh()
    mesh.virtual(
        {
            "hosts": ["web"],
            "http": [
                {
                    "name": "first",
                    "match": [{"name": "a", "uri": {"exact": "/a"}}, {"uri": {"exact": "/b"}}],
                    "route": [to("web")],
                },
                {"directResponse": {"status": 404}},
            ],
        }
    )
    assert [r.name for r in mesh.http()] == ["first.a", "first", "shop.vs.http[1]"]


# ---- destinations ------------------------------------------------------------------------------


def test_weights_ports_and_subsets() -> None:
    mesh = Mesh()
    mesh.rule({"host": "api", "subsets": [{"name": "v2", "labels": {"v": "2"}}]})
    key = mesh.virtual(
        one_rule(
            route=[
                to("web", weight=70),
                to("api", weight=30, port={"number": 90}, subset="v2"),
                to("db", weight=0),
                to("db"),
            ]
        )
    )
    assert mesh.http()[0].backends == (
        WeightedBackend(BackendRef(WEB, 80), 70),
        WeightedBackend(BackendRef(API, 90, "v2"), 30),
    )
    assert mesh.condition(key).reason == "Accepted"


def test_without_a_port_the_one_that_was_asked_for_counts() -> None:
    """A service of one port has no other; else the caller's port."""
    mesh = Mesh()
    mesh.virtual({"hosts": ["api"], "http": [{"route": [to("api")]}]})
    assert mesh.http("api", 80)[0].backends[0].ref == BackendRef(API, 80)
    assert mesh.http("api", 90)[0].backends[0].ref == BackendRef(API, 90)
    mesh.virtual({"hosts": ["api"], "http": [{"route": [to("web")]}]})
    assert mesh.http("api", 90)[0].backends[0].ref == BackendRef(WEB, 80)


@pytest.mark.parametrize(
    ("destination", "why"),
    [
        ({"host": "nope"}, "host: there is no service nope.shop.svc.cluster.local"),
        ({"host": "web.shop"}, "a full name ends in .svc"),
        ({"host": "*.shop.svc.cluster.local"}, "there is no service *.shop"),
        ({"host": "a b"}, "host: 'a b' is not a DNS name"),
        ({}, "host: must name a host"),
        ({"host": "web", "port": {"number": 81}}, "has no port 81 (it has 80)"),
        ({"host": "web", "port": {"number": 0}}, "port.number: 0 is not between 1 and 65535"),
        ({"host": "web", "port": {"name": "http"}}, "port.name: no such field"),
        ({"host": "web", "port": 80}, "port: must be a mapping, not 80"),
        ({"host": "web", "subset": "v9"}, "no DestinationRule gives web.shop.svc.cluster.local"),
        ("web", "destination: must be a mapping"),
    ],
)
def test_a_destination_that_is_not_there_keeps_its_share(destination: Any, why: str) -> None:
    """Its requests are answered with 500, not sent to the others: nothing is hidden."""
    rules, message = told(route=[{"destination": destination, "weight": 10}, to("db", weight=90)])
    db = BackendRef(f"{NS}/{hostname('db')}", 80)
    assert rules[0].backends == (WeightedBackend(None, 10), WeightedBackend(db, 90))
    assert f"spec.http[0].route[0].destination{'' if destination == 'web' else '.'}" in message
    assert why in message


@pytest.mark.parametrize(
    ("route", "backends", "why"),
    [
        ([to("web", weight=0), to("api", weight=0)], 0, "no destination has a weight"),
        ([to("web", weight=-1), to("db", weight=1)], 1, "route[0].weight: -1 is not between 0"),
        ([{"weight": 1}], 1, "route[0].destination: must be set"),
        ([to("web", weigth=1)], 1, "destination.weigth: no such field"),
        ([], 0, "must have one of route, redirect"),
        ({}, 0, "route: must be a list"),
        ([to("web")] * 300, 256, "more than 256 destinations"),
    ],
)
def test_bad_routes(route: Any, backends: int, why: str) -> None:
    if isinstance(route, list) and len(route) > 256:
        route = [{**r, "weight": 1} for r in route]
    rules, message = told(route=route)
    assert why in message
    if backends:
        assert len(rules[0].backends) == backends
    else:  # nowhere to go: 500 for what it matches
        assert all(r.backends == () and r.redirect is None for r in rules)


def test_the_first_of_two_actions_is_done() -> None:
    rules, message = told(route=[to("web")], redirect={"uri": "/x"})
    assert rules[0].redirect is not None
    assert rules[0].backends == ()
    assert "redirect and route exclude each other: redirect is done" in message


# ---- actions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirect", "want"),
    [
        ({"uri": "/x"}, Redirect(301, path="/x", full=True)),
        (
            {"authority": "a.example", "redirectCode": 308},
            Redirect(308, "http", "a.example", full=True),
        ),
        ({"prefixRewrite": "/x"}, Redirect(301, path="/x")),
        ({"scheme": "https"}, Redirect(301, "https", full=True)),
        ({"scheme": "https", "port": 443}, Redirect(301, "https", full=True)),
        ({"port": 8080}, Redirect(301, "http", port=8080, full=True)),
        ({"port": 80}, Redirect(301, "http", full=True)),
        ({"derivePort": "FROM_REQUEST_PORT"}, Redirect(301, "http", port=90, full=True)),
        ({"derivePort": "FROM_PROTOCOL_DEFAULT"}, Redirect(301, full=True)),
    ],
)
def test_redirects(redirect: dict[str, Any], want: Redirect) -> None:
    mesh = Mesh()
    mesh.virtual({"hosts": ["api"], "http": [{"redirect": redirect}]})
    assert mesh.http("api", 90)[0].redirect == want


@pytest.mark.parametrize(
    ("response", "want"),
    [
        ({"status": 204}, DirectResponse(204)),
        ({"status": 403, "body": {"string": "no"}}, DirectResponse(403, "no")),
        ({"status": 200, "body": {"bytes": "aGk="}}, DirectResponse(200, "hi")),
    ],
)
def test_direct_responses(response: dict[str, Any], want: DirectResponse) -> None:
    assert rule_of(directResponse=response).response == want


@pytest.mark.parametrize(
    ("rule", "why", "kept"),
    [
        ({"redirect": {"redirectCode": 300}}, "redirectCode: 300 is none of 301", {}),
        ({"redirect": {"url": "/x"}}, "redirect.url: no such field", {"redirect"}),
        ({"redirect": {"uri": "/a\r\nx: y"}}, "with a line break", {}),
        ({"directResponse": {"status": 99}}, "status: 99 is not between 200 and 599", {}),
        ({"directResponse": {}}, "directResponse.status: must be set", {}),
        (
            {"directResponse": {"status": 200, "body": {"string": "x" * 5000}}},
            "body: longer than 4096 bytes",
            {"response"},
        ),
        ({"directResponse": {"status": 200, "body": {"bytes": "!"}}}, "base64", {"response"}),
    ],
)
def test_a_bad_answer_is_a_500_for_what_it_matches(
    rule: dict[str, Any], why: str, kept: set[str]
) -> None:
    rules, message = told(**rule)
    assert why in message
    (found,) = rules
    assert found.backends == ()
    assert {n for n in ("redirect", "response") if getattr(found, n) is not None} == set(kept)


@pytest.mark.parametrize(
    ("rewrite", "want"),
    [
        ({"uri": "/v2"}, Rewrite(path="/v2")),
        ({"authority": "b.example"}, Rewrite(host="b.example")),
        (
            {"uriRegexRewrite": {"match": "^/a/([^/]+)", "rewrite": r"/b/\1"}},
            Rewrite(path=r"/b/\1", regex="^/a/([^/]+)"),
        ),
        ({}, None),
    ],
)
def test_rewrites(rewrite: dict[str, Any], want: Rewrite | None) -> None:
    assert rule_of(rewrite=rewrite).rewrite == want


def test_headers() -> None:
    found = rule_of(
        headers={
            "request": {"set": {"X-A": "1"}, "add": {"x-b": "2"}, "remove": ["X-C"]},
            "response": {"set": {"y": ""}},
        },
        route=[{**to("web"), "headers": {"request": {"set": {"host": "b.example", "z": "1"}}}}],
    )
    assert found.request_headers == HeaderChange((("x-a", "1"),), (("x-b", "2"),), ("x-c",))
    assert found.response_headers == HeaderChange((("y", ""),))
    assert found.backends[0].request == HeaderChange((("z", "1"),))
    assert found.backends[0].rewrite == Rewrite(host="b.example")


def test_a_host_that_the_rule_sets_wins_over_its_destination_s() -> None:
    found = rule_of(
        headers={"request": {"set": {":authority": "a.example"}}},
        route=[{**to("web"), "headers": {"request": {"set": {"Host": "b.example"}}}}],
    )
    assert found.rewrite == Rewrite(host="a.example")
    assert found.backends[0].rewrite is None


@pytest.mark.parametrize(
    ("retries", "want"),
    [
        ({"attempts": 0}, Retry(0, conditions=DEFAULT_RETRY_ON)),
        ({"attempts": 3}, Retry(3, conditions=DEFAULT_RETRY_ON)),
        (
            {
                "attempts": 2,
                "perTryTimeout": "2s",
                "retryOn": "5xx, 429,reset,429",
                "backoff": "25ms",
                "retryIgnorePreviousHosts": False,
                "retryRemoteLocalities": True,
            },
            Retry(
                2,
                codes=(429,),
                conditions=("5xx", "reset"),
                per_try_timeout=2.0,
                backoff=0.025,
                other_hosts=False,
                other_places=True,
            ),
        ),
        ({"attempts": 1, "retryOn": "503"}, Retry(1, codes=(503,))),
    ],
)
def test_retries(retries: dict[str, Any], want: Retry) -> None:
    assert rule_of(retries=retries).retry == want


@pytest.mark.parametrize(
    ("timeout", "want"), [("0s", None), ("1.5s", 1.5), ("100ms", 0.1), ("1h1m1s", 3661.0)]
)
def test_timeouts(timeout: str, want: float | None) -> None:
    assert rule_of(timeout=timeout).timeout == want


@pytest.mark.parametrize(
    ("fault", "want"),
    [
        (
            {"delay": {"fixedDelay": "2s", "percentage": {"value": 0.5}}},
            Fault(delay=2.0, delay_percent=0.5),
        ),
        ({"delay": {"fixedDelay": "2s", "percent": 10}}, Fault(delay=2.0, delay_percent=10)),
        (
            {"abort": {"httpStatus": 503, "percentage": {"value": 100}}},
            Fault(abort_code=503, abort_percent=100),
        ),
        (
            {"abort": {"grpcStatus": "UNAVAILABLE", "percentage": {"value": 1}}},
            Fault(abort_grpc=14, abort_percent=1),
        ),
    ],
)
def test_faults(fault: dict[str, Any], want: Fault) -> None:
    assert rule_of(fault=fault).fault == want


def test_mirrors() -> None:
    found = rule_of(
        mirror={"host": "db"},
        mirrorPercentage={"value": 12.5},
        mirrors=[
            {"destination": {"host": "api", "port": {"number": 90}}},
            {"destination": {"host": "api"}, "percentage": {"value": 0}},
        ],
    )
    db = BackendRef(f"{NS}/{hostname('db')}", 80)
    assert found.mirrors == (Mirror(db, 12.5), Mirror(BackendRef(API, 90), 100.0))
    assert rule_of(mirror={"host": "db"}, mirrorPercent=7).mirrors == (Mirror(db, 7.0),)


def test_cors() -> None:
    assert rule_of(
        corsPolicy={
            "allowOrigins": [{"exact": "https://a.example"}, {"regex": r"https://.*\.b"}],
            "allowMethods": ["GET", "PUT"],
            "allowHeaders": ["x-a"],
            "exposeHeaders": ["x-b"],
            "maxAge": "24h",
            "allowCredentials": True,
            "unmatchedPreflights": "IGNORE",
        }
    ).cors == Cors(
        (TextMatch("exact", "https://a.example"), TextMatch("regex", r"https://.*\.b")),
        ("GET", "PUT"),
        ("x-a",),
        ("x-b",),
        86400,
        True,
        False,
    )
    assert rule_of(corsPolicy={"allowOrigin": ["*"]}).cors == Cors((TextMatch("exact", "*"),))


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"timeout": 5}, "spec.http[0].timeout: 5 is not a duration"),
        ({"timeout": "-1s"}, "timeout: '-1s' is not a duration"),
        ({"timeout": "10us"}, "timeout: '10us' is not between 1ms and 10 years"),
        ({"retries": {"retryOn": "5xx"}}, "retries.attempts: is not set, which means 0"),
        ({"retries": {"attempts": -1}}, "attempts: -1 is not between 0 and 100"),
        ({"retries": {"attempts": 1, "retryOn": "everything"}}, "retryOn: 'everything' is neither"),
        ({"retries": {"attempts": 1, "retryRemoteLocalities": 1}}, "retryRemoteLocalities: 1 is"),
        ({"fault": {"delay": {"fixedDelay": "1s"}}}, "percentage: is not set, which means 0"),
        ({"fault": {"delay": {"percentage": {"value": 1}}}}, "fixedDelay: must be set"),
        ({"fault": {"delay": {"exponentialDelay": "1s"}}}, "exponentialDelay: not supported"),
        ({"fault": {"abort": {"httpStatus": 600}}}, "httpStatus: 600 is not between 200 and 599"),
        (
            {"fault": {"abort": {"httpStatus": 500, "grpcStatus": "OK"}}},
            "fault.abort: set one of httpStatus and grpcStatus",
        ),
        ({"fault": {"abort": {"grpcStatus": "NOPE"}}}, "grpcStatus: 'NOPE' is no status of gRPC"),
        ({"fault": {"abort": {"http2Error": "X"}}}, "http2Error: not supported"),
        ({"mirror": {"host": "nope"}}, "mirror.host: there is no service nope"),
        ({"mirrorPercentage": {"value": 101}}, "mirrorPercentage.value: 101 is not between"),
        ({"mirrors": [{}]}, "mirrors[0].destination: must be set"),
        ({"corsPolicy": {"allowOrigins": [{"regex": "("}]}}, "allowOrigins[0].regex: '('"),
        ({"corsPolicy": {"allowOrigins": ["*"]}}, "allowOrigins[0]: must be a mapping"),
        ({"corsPolicy": {"allowMethods": "GET"}}, "allowMethods: must be a list"),
        ({"headers": {"request": {"set": {"a b": "c"}}}}, "set.a b: is not the name of a header"),
        ({"headers": {"request": {"set": {"a": 5}}}}, "set.a: 5 is not text (quote it)"),
        ({"headers": {"request": {"set": {"a": "x\ny"}}}}, "with a line break"),
        ({"headers": {"response": {"set": {"Host": "x"}}}}, "response.set.Host"),
        ({"headers": {"request": {"set": {"a": "%REQ(b)%"}}}}, "commands of Envoy are not filled"),
        ({"headers": {"request": {"remove": [":path"]}}}, "remove: ':path' is not the name"),
        ({"headers": {"requests": {}}}, "headers.requests: no such field"),
        ({"rewrite": {"uriRegexRewrite": {"match": "(", "rewrite": "a"}}}, "missing )"),
        ({"rewrite": {"uriRegexRewrite": {"match": "a", "rewrite": r"\1"}}}, "has 0 groups"),
        ({"rewrite": {"uriRegexRewrite": {"rewrite": "a"}}}, "match must be set"),
        ({"websocketUpgrade": True}, "spec.http[0].websocketUpgrade: no such field"),
    ],
)
def test_a_bad_part_is_named_and_the_rule_stays(rule: dict[str, Any], why: str) -> None:
    rules, message = told(**rule)
    assert why in message
    assert rules[0].backends == (WeightedBackend(BackendRef(WEB, 80)),)
