"""Policies by their targets: what is attached where, what statuses say, and that nothing breaks."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from security_objects import (
    BOUND,
    CART,
    ROOT,
    Issuer,
    authentication,
    condition,
    indexed,
    key_of,
    policy,
    ref,
    security,
    source,
    to,
    when,
)

from mesh.authz import PolicySet, Subject
from mesh.model import Action, Scope, SpiffeId
from waypoint.config.envoy.pack import pack
from waypoint.config.routing import BackendRef
from waypoint.config.security import (
    OPEN,
    Provider,
    SecurityIndex,
    Target,
    TargetState,
    bypass_policy,
    filters,
)

GATEWAY = Target("Gateway", "shop", "wp")
CLASS = Target("GatewayClass", "", "istio-waypoint")
ENTRY = Target("ServiceEntry", "shop", "outside")


# ---- targets ---------------------------------------------------------------------------------


def test_policies_are_found_by_what_they_are_attached_to() -> None:
    """A service has its own policies, its waypoint's and its class's; each counts once."""
    own = policy("ALLOW", {}, name="own", targetRefs=[ref(), ref(GATEWAY)])
    gateway = policy("DENY", name="gateway", targetRefs=[ref(GATEWAY)])
    everywhere = policy("DENY", name="all", namespace=ROOT, targetRefs=[ref(CLASS)])
    entry = policy("DENY", name="entry", targetRefs=[ref(ENTRY)])
    index = indexed(own, gateway, everywhere, entry)

    def names(*targets: Target) -> list[str]:
        return [p.name for p in index.security(*targets).policies]

    assert names(CART) == ["own"]
    assert names(CART, GATEWAY, CLASS) == ["all", "gateway", "own"]
    assert names(GATEWAY, CLASS) == ["all", "gateway", "own"]
    assert names(ENTRY) == ["entry"]
    assert index.security(Target("Service", "dev", "cart")) is not None
    assert index.security(Target("Service", "dev", "cart")) == OPEN
    assert index.targets(key_of(own)) == (CART, GATEWAY)
    assert index.at(CART) == (key_of(own),)


def test_changes_name_the_targets_they_touch() -> None:
    """Nothing else is to be translated again, and nothing at all if the meaning is the same."""
    index = SecurityIndex(ROOT)
    obj = policy("DENY", to(paths=["/a"]))
    key = key_of(obj)
    assert index.put(key, obj) == {CART}
    assert index.put(key, {**obj, "metadata": {**obj["metadata"], "labels": {"a": "b"}}}) == set()
    moved = {**obj, "spec": {**obj["spec"], "targetRefs": [ref(GATEWAY)]}}
    assert index.put(key, moved) == {CART, GATEWAY}
    selecting = {**obj, "spec": {"action": "DENY", "rules": []}}
    assert index.put(key, selecting) == {GATEWAY}
    assert index.keys() == ()
    assert index.put(key, obj) == {CART}
    assert index.put(key, None) == {CART}
    assert index.put(key, None) == set()
    assert index.security(CART, GATEWAY) == OPEN


def test_only_rules_change_when_only_rules_change() -> None:
    """The chain of a service stays as it is, and so do the connections on it."""
    one = security(policy("DENY", to(paths=["/a"]), name="p"))
    two = security(policy("ALLOW", to(paths=["/b"]), name="q"))
    assert filters.http_filters(one) == filters.http_filters(two) == filters.http_filters(OPEN)
    assert filters.route_level(one) != filters.route_level(two)
    assert (filters.route_level(OPEN), filters.network_filters(OPEN)) == ({}, [])
    leaf = {"action": {"name": "x"}}
    assert filters.admission(OPEN, leaf) is leaf


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"kind": "Pod", "name": "x"}, "spec.targetRefs[1].kind: 'Pod': must be one of"),
        ({"kind": "Service"}, "spec.targetRefs[1].name: must be the name"),
        ({"kind": "Gateway", "name": "x"}, "spec.targetRefs[1].group: None: of a Gateway it is"),
        ({**ref(CLASS)}, "may be targeted from the root namespace istio-system only"),
        ({**ref(), "namespace": "dev"}, "spec.targetRefs[1].namespace: must be the policy's own"),
        ({**ref(), "sectionName": "http"}, "spec.targetRefs[1].sectionName: no such field"),
        ("cart", "spec.targetRefs[1]: must be a mapping"),
    ],
    ids=str,
)
def test_a_wrong_target_is_named_and_the_others_count(entry: Any, says: str) -> None:
    """The rest of the targets are protected."""
    obj = policy("DENY", {}, targetRefs=[ref(), entry])
    status, reason, message = condition(obj)
    assert (status, reason) == (False, "Invalid")
    assert says in message
    assert "enforced at Service shop/cart only" in message
    assert security(obj) != OPEN


def test_older_and_longer_lists_of_targets() -> None:
    """targetRef is read; more than 16 are cut; a selector beside them is ignored."""
    obj = policy("DENY", {}, targetRefs=None, targetRef=ref())
    assert condition(obj)[:2] == (True, "Accepted")
    many = [{"kind": "Service", "name": f"s{i}"} for i in range(17)]
    assert "17 entries, at most 16" in condition(policy("DENY", {}, targetRefs=many))[2]
    both = policy("DENY", {}, selector={"matchLabels": {"a": "b"}})
    status, _, message = condition(both)
    assert status is False
    assert "the selector is ignored" in message
    assert security(both) != OPEN
    nothing = policy("DENY", {}, targetRefs=[])
    status, reason, message = condition(nothing)
    assert (status, reason) == (False, "AncestorNotBound")


# ---- statuses --------------------------------------------------------------------------------


def test_statuses_say_where_it_is_enforced() -> None:
    """Accepted, not found, not bound, and a part of each."""
    assert condition(policy("DENY", {})) == (
        True,
        "Accepted",
        "enforced for Service shop/cart at shop/wp",
    )
    status, reason, message = condition(policy("DENY", {}), state=TargetState(False))
    assert (status, reason) == (False, "TargetNotFound")
    assert message == "not found, so NOT enforced there: Service shop/cart"
    status, reason, message = condition(policy("DENY", {}), state=TargetState(True))
    assert (status, reason) == (False, "AncestorNotBound")
    assert message == "passes no waypoint, so NOT enforced there: Service shop/cart"
    obj = policy("DENY", {}, targetRefs=[ref(), ref(GATEWAY)])
    states = {CART: BOUND, GATEWAY: TargetState(False)}
    (found,) = indexed(obj).status(key_of(obj), lambda t: states[t]).conditions
    assert (found.status, found.reason) == (True, "PartiallyInvalid")
    assert "not found, so NOT enforced there: Gateway shop/wp" in found.message


def test_statuses_say_what_dry_run_and_tcp_mean() -> None:
    """What is enforced otherwise than one might think."""
    tcp = replace(BOUND, tcp_ports=(3306, 9000))
    message = condition(policy("ALLOW", to(paths=["/a"])), state=tcp)[2]
    assert "connections without HTTP (ports 3306, 9000) have no request.path" in message
    assert "rules with them are left out there, less is allowed" in message
    message = condition(policy("DENY", when("request.headers[a]", "b")), state=tcp)[2]
    assert "rules are taken without them there, more is matched" in message
    assert "without HTTP" not in condition(policy("DENY", source(namespaces=["a"])), state=tcp)[2]
    assert "not enforced, what it would" in condition(policy("DENY", {}, dry_run="true"))[2]
    status, reason, message = condition(policy("DENY", {}, dry_run="yes"))
    assert (status, reason) == (False, "Invalid")
    assert "neither" in message
    assert "the policy is enforced" in message
    assert "have no tokens" in condition(authentication(Issuer().rule()), state=tcp)[2]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (to(paths=["admin"]), "spec.rules[0].to[0].operation.paths[0]: 'admin': must start with"),
        (to(paths=["/a/../b"]), "can never match"),
        (to(paths=["/a?b"]), "can never match"),
        (to(paths=["/a/{*}x"]), "whole segments"),
        (to(paths=["/{**}/{*}"]), "{**} must be the last"),
        (to(paths=["/{*}/b*"]), "no other '*'"),
        (to(paths=["*a*"]), "'*' may only stand alone"),
        (to(paths=[]), "spec.rules[0].to[0].operation.paths: must not be empty"),
        (to(paths="/a"), "spec.rules[0].to[0].operation.paths: must be a list"),
        (to(paths=[None]), "must be text of 1 to 4096 characters"),
        (to(paths=["/" + "a" * 5000]), "must be text of 1 to 4096 characters"),
        (to(ports=["http"]), "must be a port number"),
        (to(ports=[True]), "must be text"),
        (to(verbs=["GET"]), "spec.rules[0].to[0].operation.verbs: no such field"),
        (source(ipBlocks=["10.0.0.0/33"]), "spec.rules[0].from[0].source.ipBlocks[0]"),
        (source(serviceAccounts=["a/b/c"]), "must be a service account's name"),
        (source(requestPrincipals=["alice"]), "compared with ISSUER/SUBJECT"),
        (when("request.header[a]", "x"), "'request.header[a]' is not an attribute (known:"),
        (when("request.headers[a b]", "x"), "not the name of a header"),
        (when("request.auth.claims[]", "x"), "is not an attribute"),
        (when("experimental.envoy.filters.a[b]", "x"), "metadata of filters is not supported"),
        (when("source.ip"), "spec.rules[0].when[0]: must have values or notValues"),
        ({"when": "x"}, "spec.rules[0].when: must be a list"),
        ([], "spec.rules[0]: must be a mapping"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_with_its_consequence(rule: Any, says: str) -> None:
    """Field, reason, and what happens instead; the stricter one."""
    status, reason, message = condition(policy("ALLOW", rule))
    assert (status, reason) == (False, "Invalid")
    assert says in message
    assert "spec.rules[0] is left out: less is allowed than asked for" in message
    assert security(policy("ALLOW", rule, {})).policies[0].rules[0].index == 1
    message = condition(policy("DENY", rule))[2]
    assert says in message
    assert "spec.rules[0] is enforced as if it matched everything" in message


def test_other_wrong_policies() -> None:
    """Action, provider, rules as a whole."""
    assert "'DENNY' is not an action" in condition(policy("DENNY", {}))[2]
    assert "everything is refused" in condition(policy("DENNY", {}))[2]
    assert "must name an extension provider" in condition(policy("CUSTOM", {}))[2]
    named = policy("DENY", {}, provider={"name": "x"})
    assert "is for the action CUSTOM only" in condition(named)[2]
    obj = policy("DENY")
    obj["spec"]["rules"] = "all"
    assert "spec.rules: must be a list; it matches everything" in condition(obj)[2]
    obj["spec"].update(action="ALLOW", ruls=[])
    message = condition(obj)[2]
    assert "nothing is allowed" in message
    assert "spec.ruls: no such field" in message


def test_tokens_without_a_waypoint() -> None:
    """RequestAuthentication for sidecars means nothing here, and says so."""
    obj = authentication(Issuer().rule(), targetRefs=None, selector={"matchLabels": {}})
    status, reason, message = condition(obj)
    assert (status, reason) == (False, "AncestorNotBound")
    assert "NOT enforced: it names no waypoint" in message


# ---- hostile objects -------------------------------------------------------------------------

_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_plain_value_anywhere_is_read(data: st.DataObject) -> None:
    """Nothing raises, there is one status, and what is made of it is what Envoy's messages take."""
    good = policy(
        data.draw(st.sampled_from(["ALLOW", "DENY", "CUSTOM", "AUDIT"])),
        {
            **source(principals=["a/*"], ipBlocks=["10.0.0.0/8"], requestPrincipals=["a/b"]),
            **to(paths=["/a", "/b/{*}"], hosts=["*.x"], ports=["80"]),
            **when("request.headers[a]", "b"),
        },
        provider={"name": "p"},
    )
    tokens = authentication(_RULE | {"audiences": ["a"], "fromHeaders": [{"name": "a"}]})
    obj = data.draw(st.sampled_from([good, tokens]))
    _mutate(obj["spec"], data)
    index = indexed(obj, providers={"p": Provider("p", BackendRef("a/b", 80))})
    if key_of(obj) not in index:
        return  # it has lost its targetRefs: ztunnel's reader has it
    (found,) = index.status(key_of(obj), lambda t: BOUND).conditions
    assert len(found.message) < 5000
    s = index.security(CART)
    for one in filters.http_filters(s):
        pack(_HTTP_FILTER, one)
    for one in filters.network_filters(s):
        pack(_FILTER, one)
    pack(_ROUTES, {"name": "r", "typed_per_filter_config": filters.route_level(s)})
    pack(_MATCHER, _matcher(filters.admission(s, _LEAF)))


_CONNECTION = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
_HTTP_FILTER = f"{_CONNECTION}.HttpFilter"
_FILTER = "type.googleapis.com/envoy.config.listener.v3.Filter"
_ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
_MATCHER = "type.googleapis.com/xds.type.matcher.v3.Matcher"
_LEAF = {
    "action": {
        "name": "chain",
        "typed_config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x"},
    }
}
_RULE = Issuer().rule()


def _matcher(on_match: Any) -> Any:
    return {"on_no_match": on_match}


def _mutate(value: Any, data: st.DataObject) -> None:
    """Replace one value somewhere below by any other."""
    while True:
        keys = sorted(value) if isinstance(value, dict) else list(range(len(value)))
        key = data.draw(st.sampled_from(keys))
        inner = value[key]
        if isinstance(inner, dict | list) and inner and data.draw(st.booleans()):
            value = inner
            continue
        value[key] = data.draw(_plain)
        return


def test_huge_policies_cost_what_they_weigh() -> None:
    """A megabyte of values is read in about a second, and its status stays short."""
    paths = [f"/{'a' * 90}/{i}" for i in range(10_000)]
    start = time.process_time()
    s = security(policy("ALLOW", to(paths=paths)))
    assert len(pack(_ROUTES, {"typed_per_filter_config": filters.route_level(s)})) > 1_000_000
    assert time.process_time() - start < 10
    message = condition(policy("ALLOW", to(paths=["x"] * 10_000)))[2]
    assert len(message) < 5000


# ---- around the waypoint ---------------------------------------------------------------------


def test_nobody_goes_around_the_waypoint() -> None:
    """Only the waypoint's identity reaches the guarded ports, by HBONE or in plaintext."""
    waypoint = SpiffeId("cluster.local", "shop", "wp")
    found = bypass_policy("shop", "cart", [waypoint], [8080, 8080, 9090])
    assert found is not None
    assert (found.key, found.action, found.scope) == (
        "shop/waypoint_only_cart",
        Action.DENY,
        Scope.WORKLOAD_SELECTOR,
    )
    judge = PolicySet([found])
    web = SpiffeId("cluster.local", "shop", "web")
    foreign = SpiffeId("other", "shop", "wp")
    for who in (waypoint, web, foreign, None):
        for port in (8080, 9090, 7070):
            allowed = judge.judge(Subject(who, "10.0.0.1", "10.0.0.2", port)).allowed
            assert allowed is (who == waypoint or port == 7070), (who, port)


def test_edges_of_the_guard() -> None:
    """No port: nothing to guard. No waypoint: nobody. Two waypoints: both."""
    one, two = SpiffeId("a", "b", "c"), SpiffeId("a", "b", "d")
    assert bypass_policy("shop", "cart", [one], []) is None
    nobody = bypass_policy("shop", "cart", [], [80])
    both = bypass_policy("shop", "cart", [one, two], [80])
    assert nobody is not None
    assert both is not None
    for who, expected in ((one, True), (two, True), (None, False)):
        subject = Subject(who, "10.0.0.1", "10.0.0.2", 80)
        assert PolicySet([nobody]).judge(subject).allowed is False
        assert PolicySet([both]).judge(subject).allowed is expected


def test_what_closes_the_side_door() -> None:
    """Policies that can refuse do; those that only log do not."""
    for objects, expected in (
        ([policy("DENY", {})], True),
        ([policy("ALLOW", {})], True),
        ([policy("CUSTOM", {}, provider={"name": "x"})], True),
        ([authentication(Issuer().rule())], True),
        ([policy("AUDIT", {})], False),
        ([policy("DENY", {}, dry_run="true")], False),
        ([], False),
    ):
        assert security(*objects).enforces is expected
