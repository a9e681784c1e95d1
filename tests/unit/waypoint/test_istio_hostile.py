"""Objects that are broken, huge or contradictory: a status, bounded work, and nothing good lost."""

from __future__ import annotations

from typing import Any

import pytest
from hostile_rig import JUNK, added, places, replaced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from istio_rig import NS, Mesh, hostname, one_rule, to

from waypoint.config.istio.virtual_service import MAX_RULES
from waypoint.config.reading import parse_duration

WEB = f"{NS}/{hostname('web')}"

# Everything that is written somewhere in a good object, to be put in any other place.
GOOD_VIRTUAL: dict[str, Any] = {
    "hosts": ["web", "*.shop.svc.cluster.local"],
    "gateways": ["mesh"],
    "exportTo": ["*"],
    "http": [
        {
            "name": "n",
            "match": [
                {
                    "uri": {"prefix": "/a"},
                    "headers": {"x": {"regex": "a+"}},
                    "withoutHeaders": {"y": {"exact": "b"}},
                    "queryParams": {"q": {}},
                    "port": 80,
                    "sourceNamespace": "a",
                    "ignoreUriCase": True,
                }
            ],
            "route": [
                {
                    "destination": {"host": "api", "port": {"number": 80}, "subset": "v1"},
                    "weight": 1,
                    "headers": {"request": {"add": {"a": "b"}}},
                }
            ],
            "rewrite": {"uri": "/b", "authority": "c"},
            "timeout": "1s",
            "retries": {"attempts": 2, "retryOn": "5xx,503", "perTryTimeout": "1s"},
            "fault": {
                "delay": {"fixedDelay": "1s", "percentage": {"value": 1}},
                "abort": {"httpStatus": 500, "percentage": {"value": 1}},
            },
            "mirrors": [{"destination": {"host": "db"}, "percentage": {"value": 1}}],
            "corsPolicy": {"allowOrigins": [{"exact": "*"}], "maxAge": "1s"},
            "headers": {"response": {"set": {"a": "b"}, "remove": ["c"]}},
        },
        {"redirect": {"uri": "/x", "redirectCode": 302}},
        {"directResponse": {"status": 404, "body": {"string": "x"}}},
        {"match": [{"uri": {"exact": "/d"}}], "delegate": {"name": "vs", "namespace": NS}},
    ],
    "tls": [
        {"match": [{"port": 80, "sniHosts": ["a"]}], "route": [{"destination": {"host": "db"}}]}
    ],
    "tcp": [{"match": [{"port": 80}], "route": [{"destination": {"host": "db"}}]}],
}
GOOD_RULE: dict[str, Any] = {
    "host": "web",
    "trafficPolicy": {
        "loadBalancer": {
            "consistentHash": {
                "httpCookie": {"name": "c", "ttl": "0s"},
                "maglev": {"tableSize": 7},
            },
            "localityLbSetting": {"distribute": [{"from": "a/*", "to": {"b": 100}}]},
            "warmup": {"duration": "1s"},
        },
        "connectionPool": {"tcp": {"maxConnections": 1}, "http": {"maxRetries": 1}},
        "outlierDetection": {"consecutive5xxErrors": 1, "interval": "1s"},
        "tls": {"mode": "MUTUAL", "credentialName": "c", "subjectAltNames": ["a"]},
        "portLevelSettings": [{"port": {"number": 80}, "loadBalancer": {"simple": "RANDOM"}}],
        "retryBudget": {"percent": 1},
    },
    "subsets": [{"name": "v1", "labels": {"a": "b"}, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}],
    "exportTo": ["."],
}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_junk_in_any_place_of_a_good_object_is_told_and_never_raises(data: st.DataObject) -> None:
    mesh = Mesh()
    rule_spec, virtual_spec = GOOD_RULE, GOOD_VIRTUAL
    for _ in range(data.draw(st.integers(1, 3))):
        change = data.draw(st.sampled_from([replaced, added]))
        if data.draw(st.booleans()):
            place = data.draw(st.sampled_from(places(rule_spec)))
            rule_spec = change(rule_spec, place, data.draw(JUNK))
        else:
            place = data.draw(st.sampled_from(places(virtual_spec)))
            virtual_spec = change(virtual_spec, place, data.draw(JUNK))
    keys = [mesh.rule(rule_spec), mesh.virtual(virtual_spec)]
    other = mesh.virtual({"hosts": ["db"], "http": [{"directResponse": {"status": 201}}]}, "good")
    mesh.routes()
    mesh.index.traffic(WEB)
    for key in keys:
        condition = mesh.condition(key)
        assert condition.message
        assert len(condition.message) <= 4100
    assert any(r.origin == other for r in mesh.http("db"))


@pytest.mark.parametrize("good", [GOOD_RULE, GOOD_VIRTUAL], ids=["rule", "virtual"])
def test_a_field_that_does_not_exist_is_named_wherever_it_is(good: dict[str, Any]) -> None:
    """In every mapping of the object whose keys are not the user's own."""
    free = {"labels", "headers", "withoutHeaders", "queryParams", "add", "set", "to"}
    found = [
        p
        for p in places(good)
        if added(good, p, 1) != good and not (p and p[-1] in free and p != ("http", 0, "headers"))
    ]
    assert len(found) > 20
    for place in found:
        mesh = Mesh()
        make = mesh.rule if good is GOOD_RULE else mesh.virtual
        condition = mesh.condition(make(added(good, place, 1)))
        path = "spec" + "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in place)
        assert f"{path}.bogus: no such field" in condition.message, place


def test_five_thousand_rules_are_fine_and_more_than_the_bound_are_cut() -> None:
    mesh = Mesh()
    rules = [
        {"match": [{"uri": {"regex": f"/item/{i}/[0-9]+"}}], "route": [to("web")]}
        for i in range(5000)
    ]
    key = mesh.virtual({"hosts": ["web"], "http": rules})
    assert len(mesh.http()) == 5000
    assert mesh.condition(key).reason == "Accepted"
    key = mesh.virtual({"hosts": ["web"], "http": [{"directResponse": {"status": 200}}] * 20_000})
    assert f"spec.http: more than {MAX_RULES} rules" in mesh.condition(key).message


def test_matches_of_root_and_delegate_do_not_multiply_without_bound() -> None:
    """Three thousand matches in each would be nine million."""
    mesh = Mesh()
    many = [{"headers": {"x": {"exact": str(i)}}} for i in range(3000)]
    root = mesh.virtual({"hosts": ["web"], "http": [{"match": many, "delegate": {"name": "leaf"}}]})
    leaf = mesh.virtual({"http": [{"match": many, "route": [to("web")]}]}, "leaf")
    assert len(mesh.http()) == MAX_RULES
    assert "combinations with its root's matches" in mesh.condition(leaf).message
    assert mesh.condition(root).status


def test_findings_are_bounded() -> None:
    mesh = Mesh()
    rules = [{"route": [to("web")], "bogus": 1} for _ in range(3000)]
    condition = mesh.condition(mesh.virtual({"hosts": ["web"], "http": rules}))
    assert "more findings" in condition.message or condition.message.endswith("...")
    assert len(condition.message) <= 4100


def test_numbers_that_python_does_not_write_out() -> None:
    """YAML has them in hexadecimal."""
    mesh = Mesh()
    key = mesh.virtual(one_rule(timeout=1 << 20_000, route=[{**to("web"), "weight": 1 << 20_000}]))
    assert "spec.http[0].timeout: a huge number is not a duration" in mesh.condition(key).message


@pytest.mark.parametrize("pattern", ["x" * (1 << 20), "((a{100}){100}){100}", "(" * 5000])
def test_huge_regular_expressions(pattern: str) -> None:
    mesh = Mesh()
    match = [{"uri": {"regex": pattern}}, {"uri": {"exact": "/ok"}}]
    condition = mesh.condition(mesh.virtual(one_rule(match=match)))
    assert "spec.http[0].match[0].uri.regex" in condition.message
    assert len(mesh.http()) == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("1.5h", 5400.0),
        ("1h2m3s4ms", 3723.004),
        ("0s", 0.0),
        ("5", None),
        ("", None),
        ("s", None),
        ("1d", None),
        ("-1s", None),
        ("1 s", None),
        ("1e3s", None),
        ("9" * 400 + "s", None),
        (5, None),
        (None, None),
    ],
)
def test_durations(text: Any, seconds: float | None) -> None:
    assert parse_duration(text) == pytest.approx(seconds)
