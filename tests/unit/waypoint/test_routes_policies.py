"""XBackendTrafficPolicy and BackendTLSPolicy."""

from __future__ import annotations

from typing import Any

import pytest
from certificates_rig import pair
from routes_rig import BOUND, NS, Mesh, route, skey, to, to_service

from mesh.manifest import Key
from waypoint.config.pem import NOBODY
from waypoint.config.routing import BackendRef, Session, WeightedBackend
from waypoint.config.traffic import (
    DEFAULT,
    BackendTls,
    RetryBudget,
    ServiceTraffic,
    Subset,
    TrafficPolicy,
)

API = skey("api")


def target(name: str = "api", **more: Any) -> dict[str, Any]:
    return {"group": "", "kind": "Service", "name": name, **more}


def traffic_policy(**spec: Any) -> dict[str, Any]:
    return {"targetRefs": [target()], **spec}


def tls_policy(*targets: dict[str, Any], **validation: Any) -> dict[str, Any]:
    full = {"hostname": "api.example", "wellKnownCACertificates": "System", **validation}
    return {
        "targetRefs": list(targets) or [target()],
        "validation": {k: v for k, v in full.items() if v is not None},
    }


# ---- XBackendTrafficPolicy ---------------------------------------------------------------------


def test_retry_budgets_fill_what_a_destination_rule_leaves_open() -> None:
    mesh = Mesh()
    spec = traffic_policy(retryConstraint={"budget": {"percent": 30}, "minRetryRate": {"count": 3}})
    key = mesh.put("XBackendTrafficPolicy", spec)
    found = mesh.index.traffic(API, DEFAULT)
    assert found.policy == TrafficPolicy(budget=RetryBudget(30, 3))
    assert found.at(90).budget == RetryBudget(30, 3)
    own = TrafficPolicy("random", budget=RetryBudget(1, 1))
    base = ServiceTraffic(own, ((90, TrafficPolicy("random")),), (Subset("v1", (), own),))
    found = mesh.index.traffic(API, base)
    assert (found.policy, found.at(80)) == (own, own)
    assert found.at(90) == TrafficPolicy("random", budget=RetryBudget(30, 3))
    assert found.subsets[0].policy == own
    assert mesh.index.traffic(skey("web"), DEFAULT) is DEFAULT
    assert mesh.conditions(key)["Accepted"].status
    (ancestor,) = mesh.index.status(key, lambda _: None).parents  # type: ignore[arg-type, return-value]
    assert ancestor.ref == {"group": "", "kind": "Service", "namespace": NS, "name": "api"}


def test_sessions_of_a_service() -> None:
    """With routes or without; a rule's own session and several backends do not take it."""
    mesh = Mesh()
    spec = traffic_policy(sessionPersistence={"sessionName": "s"})
    assert mesh.index.put(
        Key("XBackendTrafficPolicy", NS, "p"), {"metadata": {}, "spec": spec}
    ) == {API}
    status = mesh.index.status(Key("XBackendTrafficPolicy", NS, "p"), lambda _: BOUND)
    assert "by rules that send to it alone" in status.parents[0].conditions[0].message
    (default,) = mesh.http("api", 80)
    assert default.session == Session("cookie", "s")
    assert default.backends == (WeightedBackend(BackendRef(API, 80)),)
    mesh.put(
        "HTTPRoute",
        route(
            {"name": "one", "backendRefs": [to("api")]},
            {"name": "two", "backendRefs": [to("api"), to("web")]},
            {
                "name": "own",
                "backendRefs": [to("api")],
                "sessionPersistence": {"sessionName": "mine"},
            },
        ),
    )
    found = {r.name: r.session.name if r.session else "" for r in mesh.http()}
    assert found == {"one": "s", "two": "", "own": "mine"}
    put = mesh.index.put(Key("XBackendTrafficPolicy", NS, "p"), None)
    assert put == {API, skey("web")}
    assert {r.name: r.session for r in mesh.http()}["one"] is None
    assert mesh.http("api", 80) == ()


@pytest.mark.parametrize(
    ("spec", "reason", "why"),
    [
        ({"targetRefs": [target("nope")]}, "TargetNotFound", "there is no Service shop/nope"),
        ({"targetRefs": [target(kind="Pod")]}, "TargetNotFound", "'Pod' is no kind of backend"),
        (traffic_policy(retryConstraint={"budget": {"percent": 101}}), "Invalid", "percent: 101"),
        (traffic_policy(retries={}), "Invalid", "spec.retries: no such field"),
        (traffic_policy(sessionPersistence={"type": "IP"}), "Invalid", "type: 'IP' is none of"),
    ],
)
def test_traffic_policies_that_cannot_be(spec: dict[str, Any], reason: str, why: str) -> None:
    mesh = Mesh()
    key = mesh.put("XBackendTrafficPolicy", spec)
    told = mesh.conditions(key)["Accepted"]
    assert (told.status, told.reason) == (False, reason)
    assert why in told.message
    assert mesh.index.traffic(API, DEFAULT) is DEFAULT


def test_the_older_policy_counts() -> None:
    mesh = Mesh()
    young = mesh.put("XBackendTrafficPolicy", traffic_policy(), "a", created="2026-02-01")
    spec = traffic_policy(retryConstraint={})
    old = mesh.put("XBackendTrafficPolicy", spec, "b", created="2026-01-01")
    assert mesh.index.traffic(API, DEFAULT).policy.budget == RetryBudget(20, 10)
    told = mesh.conditions(young)["Accepted"]
    assert (told.status, told.reason) == (False, "Conflicted")
    assert str(old) in told.message
    assert mesh.conditions(old)["Accepted"].status


# ---- BackendTLSPolicy --------------------------------------------------------------------------


def test_tls_with_the_system_s_roots() -> None:
    mesh = Mesh()
    key = mesh.put("BackendTLSPolicy", tls_policy())
    want = BackendTls("simple", "api.example", ("api.example",))
    assert mesh.index.traffic(API, DEFAULT).policy.tls == want
    told = mesh.conditions(key)
    assert told["Accepted"].status
    assert told["ResolvedRefs"].status


def test_tls_with_a_ca_and_names() -> None:
    mesh = Mesh()
    spec = tls_policy(
        wellKnownCACertificates=None,
        caCertificateRefs=[{"group": "", "kind": "ConfigMap", "name": "ca"}],
        subjectAltNames=[
            {"type": "URI", "uri": "spiffe://x/y"},
            {"type": "Hostname", "hostname": "z.example"},
        ],
    )
    key = mesh.put("BackendTLSPolicy", spec)
    assert mesh.index.config_maps() == {(NS, "ca")}
    told = mesh.conditions(key)
    assert told["ResolvedRefs"].reason == "InvalidCACertificateRef"
    assert told["Accepted"].reason == "NoValidCACertificate"
    assert "connections fail" in told["Accepted"].message
    assert mesh.index.traffic(API, DEFAULT).policy.tls == BackendTls(
        "simple", "api.example", ("spiffe://x/y", "z.example"), NOBODY
    )
    for data in ({}, {"ca.crt": "junk"}):
        assert mesh.index.put_config_map(NS, "ca", data) == {API}
        assert "has no certificate in ca.crt" in mesh.conditions(key)["ResolvedRefs"].message
    own = pair("ca")[0].decode()
    mesh.index.put_config_map(NS, "ca", {"ca.crt": f"# of ours\n{own}"})
    tls = mesh.index.traffic(API, DEFAULT).policy.tls
    assert tls is not None
    assert tls.ca == own
    assert mesh.conditions(key)["Accepted"].status


def test_a_port_s_own_policy_comes_before_the_service_s() -> None:
    mesh = Mesh()
    mesh.put("BackendTLSPolicy", tls_policy(hostname="all.example"), "all", created="2026-01")
    mesh.put(
        "BackendTLSPolicy", tls_policy(target(sectionName="port-90")), "one", created="2026-02"
    )
    found = mesh.index.traffic(API, DEFAULT)
    hosts = [p.tls.sni for p in (found.policy, found.at(80), found.at(90)) if p.tls]
    assert hosts == ["all.example", "all.example", "api.example"]


def test_a_port_that_is_not_there_is_told() -> None:
    """At its target alone; nothing is encrypted there, and it counts again once the port is."""
    mesh = Mesh()
    spec = tls_policy(target(sectionName="https"), target(sectionName="port-90"))
    key = mesh.put("BackendTLSPolicy", spec)
    status = mesh.index.status(key, lambda _: None)  # type: ignore[arg-type, return-value]
    told = [p.conditions[0] for p in status.parents]
    assert [(c.type, c.status, c.reason) for c in told] == [
        ("Accepted", False, "TargetNotFound"),
        ("Accepted", True, "Accepted"),
    ]
    assert "has no port named 'https'" in told[0].message
    found = mesh.index.traffic(API, DEFAULT)
    assert found.at(80).tls is None
    assert found.at(90).tls is not None


@pytest.mark.parametrize(
    ("validation", "reason", "why"),
    [
        ({"hostname": None}, "Invalid", "validation.hostname: must be set"),
        ({"wellKnownCACertificates": None}, "Invalid", "set one of caCertificateRefs and"),
        ({"wellKnownCACertificates": "Mine"}, "Invalid", "'Mine' is none of System"),
        ({"subjectAltNames": [{"type": "URI"}]}, "Invalid", "must have the hostname or uri"),
        ({"hostnam": "x"}, "Invalid", "hostnam: no such field"),
        (
            {
                "wellKnownCACertificates": None,
                "caCertificateRefs": [{"group": "", "kind": "Secret", "name": "x"}],
            },
            "NoValidCACertificate",
            "'Secret' is no ConfigMap",
        ),
    ],
)
def test_a_bad_tls_policy_trusts_nobody(validation: dict[str, Any], reason: str, why: str) -> None:
    mesh = Mesh()
    key = mesh.put("BackendTLSPolicy", tls_policy(**validation))
    told = mesh.conditions(key)["Accepted"]
    assert (told.status, told.reason) == (False, reason)
    assert why in told.message
    tls = mesh.index.traffic(API, DEFAULT).policy.tls
    assert tls is not None
    assert tls.ca == NOBODY
    assert tls.verify


def test_a_destination_rule_s_tls_wins() -> None:
    mesh = Mesh()
    mesh.put("BackendTLSPolicy", tls_policy())
    base = ServiceTraffic(TrafficPolicy(tls=BackendTls("simple", "rule.example")))
    assert mesh.index.traffic(API, base).policy == base.policy


def test_policies_do_not_disturb_routes() -> None:
    mesh = Mesh()
    mesh.put("HTTPRoute", route({}, parents=[to_service("api", port=80)]))
    before = mesh.http("api", 80)
    mesh.put("BackendTLSPolicy", tls_policy())
    assert mesh.http("api", 80) == before
