"""Routes and policies that are broken, huge or contradictory: told, bounded, and harmless."""

from __future__ import annotations

from typing import Any

from hostile_rig import JUNK, added, places, replaced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routes_rig import BOUND, NS, Mesh, route, skey, to, to_service

GOOD: dict[str, dict[str, Any]] = {
    "HTTPRoute": {
        "parentRefs": [to_service("web", port=80), to_service("api", sectionName="port-80")],
        "hostnames": ["a.example"],
        "rules": [
            {
                "name": "n",
                "matches": [
                    {
                        "path": {"type": "RegularExpression", "value": "/a+"},
                        "method": "GET",
                        "headers": [{"type": "Exact", "name": "a", "value": "b"}],
                        "queryParams": [{"name": "a", "value": "b"}],
                    }
                ],
                "filters": [
                    {
                        "type": "RequestHeaderModifier",
                        "requestHeaderModifier": {
                            "set": [{"name": "a", "value": "b"}],
                            "remove": ["c"],
                        },
                    },
                    {
                        "type": "RequestMirror",
                        "requestMirror": {
                            "backendRef": to("db"),
                            "fraction": {"numerator": 1, "denominator": 2},
                        },
                    },
                    {"type": "CORS", "cors": {"allowOrigins": ["*"], "maxAge": 5}},
                    {"type": "URLRewrite", "urlRewrite": {"hostname": "a"}},
                ],
                "backendRefs": [
                    to("web", weight=1, filters=[]),
                    to("web", namespace="other", group="", kind="Service"),
                ],
                "timeouts": {"request": "2s", "backendRequest": "1s"},
                "retry": {"codes": [503], "attempts": 1, "backoff": "1s"},
                "sessionPersistence": {"sessionName": "s", "cookieConfig": {}},
            },
            {"filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https"}}]},
        ],
    },
    "GRPCRoute": {
        "parentRefs": [to_service("api")],
        "rules": [
            {
                "matches": [{"method": {"service": "a", "method": "b"}, "headers": []}],
                "backendRefs": [to("api", 90)],
            }
        ],
    },
    "TLSRoute": {
        "parentRefs": [to_service("db")],
        "hostnames": ["*.example"],
        "rules": [{"backendRefs": [to("db", 443)]}],
    },
    "TCPRoute": {"parentRefs": [to_service("db")], "rules": [{"backendRefs": [to("db", 5432)]}]},
    "ReferenceGrant": {
        "from": [
            {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": NS},
        ],
        "to": [{"group": "", "kind": "Service", "name": "web"}],
    },
    "XBackendTrafficPolicy": {
        "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "retryConstraint": {
            "budget": {"percent": 1, "interval": "1s"},
            "minRetryRate": {"count": 1, "interval": "1s"},
        },
        "sessionPersistence": {"type": "Header", "header": {"name": "x"}},
    },
    "BackendTLSPolicy": {
        "targetRefs": [{"group": "", "kind": "Service", "name": "web", "sectionName": "port-80"}],
        "validation": {
            "hostname": "a",
            "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "x"}],
            "subjectAltNames": [{"type": "Hostname", "hostname": "a"}],
        },
    },
}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_junk_in_any_place_of_a_good_object_never_raises(data: st.DataObject) -> None:
    mesh = Mesh()
    mesh.put("HTTPRoute", route({"name": "good"}, parents=[to_service("db", port=80)]), "good")
    kind = data.draw(st.sampled_from(sorted(GOOD)))
    spec: Any = GOOD[kind]
    for _ in range(data.draw(st.integers(1, 3))):
        change = data.draw(st.sampled_from([replaced, added]))
        spec = change(spec, data.draw(st.sampled_from(places(spec))), data.draw(JUNK))
    key = mesh.put(kind, spec, namespace="other" if kind == "ReferenceGrant" else NS)
    for name in ("web", "api", "db"):
        mesh.index.routes(skey(name))
        mesh.index.taken(skey(name))
    for parent in mesh.index.status(key, lambda _: BOUND).parents:
        for condition in parent.conditions:
            assert condition.message
            assert len(condition.message) <= 4100
    assert "good" in [r.name for r in mesh.http("db", 80)]


def test_what_is_good_is_taken_whole() -> None:
    for kind, spec in GOOD.items():
        mesh = Mesh()
        key = mesh.put(kind, spec)
        for parent in mesh.index.status(key, lambda _: BOUND).parents:
            types = {c.type: c for c in parent.conditions}
            assert types["Accepted"].reason in ("Accepted", "NoValidCACertificate"), types
            assert "PartiallyInvalid" not in types


def test_a_field_that_does_not_exist_is_told_wherever_it_is() -> None:
    for kind, spec in GOOD.items():
        if kind == "ReferenceGrant":  # has no status, and grants nothing then
            continue
        for place in places(spec):
            wrong = added(spec, place, 1)
            if wrong == spec:
                continue
            mesh = Mesh()
            key = mesh.put(kind, wrong)
            path = "spec" + "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in place)
            said = [
                c.message
                for parent in mesh.index.status(key, lambda _: BOUND).parents
                for c in parent.conditions
            ]
            assert any(f"{path}.bogus: no such field" in text for text in said), (kind, place, said)


def test_thousands_of_routes_and_rules_are_bounded() -> None:
    mesh = Mesh()
    for i in range(500):
        rules = [{"matches": [{"path": {"value": f"/{i}/{j}"}}]} for j in range(10)]
        mesh.put("HTTPRoute", route(*rules), f"r{i}")
    assert len(mesh.http()) == 5000
    huge = [{"matches": [{"path": {"value": f"/{i}"}}]} for i in range(3000)]
    key = mesh.put("HTTPRoute", route(*huge, parents=[to_service("api", port=80)]), "huge")
    assert len(mesh.http("api", 80)) == 1000
    assert "more than 1000 rules" in mesh.conditions(key)["PartiallyInvalid"].message
