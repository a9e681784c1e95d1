"""DestinationRule: which counts for a service, and what it says."""

from __future__ import annotations

from typing import Any

import pytest
from istio_rig import NS, ROOT, Mesh, hostname, service

from waypoint.config.istio import ServiceState
from waypoint.config.traffic import (
    DEFAULT,
    ConsistentHash,
    LocalityBalancing,
    Outliers,
    Pool,
    RetryBudget,
    TrafficPolicy,
)

WEB = f"{NS}/{hostname('web')}"


def lb(simple: str) -> dict[str, object]:
    return {"loadBalancer": {"simple": simple}}


def policy(spec: dict[str, object]) -> TrafficPolicy:
    mesh = Mesh()
    mesh.rule({"host": "web", "trafficPolicy": spec})
    return mesh.index.traffic(WEB).policy


def found(spec: dict[str, Any], *subsets: dict[str, Any]) -> str:
    """What a trafficPolicy is told."""
    mesh = Mesh()
    condition = mesh.condition(
        mesh.rule({"host": "web", "trafficPolicy": spec, "subsets": list(subsets)})
    )
    return "" if condition.reason == "Accepted" else condition.message


# ---- which rule counts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "matches"),
    [
        ("web", True),
        ("WEB", True),
        (hostname("web"), True),
        (hostname("web") + ".", True),
        ("*.shop.svc.cluster.local", True),
        ("*", True),
        ("web.shop", False),  # not completed, as with Istio: a dot means a full name
        ("*.other.svc.cluster.local", False),
        ("we", False),
    ],
)
def test_hosts(host: str, matches: bool) -> None:
    mesh = Mesh()
    mesh.rule({"host": host, "trafficPolicy": lb("RANDOM")})
    assert (mesh.index.traffic(WEB).policy.balancing == "random") is matches


def test_a_short_host_is_completed_from_the_rules_own_namespace() -> None:
    mesh = Mesh()
    key = mesh.rule({"host": "web", "trafficPolicy": lb("RANDOM")}, namespace=ROOT)
    assert mesh.index.traffic(WEB) == DEFAULT
    assert mesh.condition(key).reason == "TargetNotFound"
    assert "web.istio-system.svc.cluster.local" in mesh.condition(key).message


def test_the_service_s_namespace_comes_before_the_root() -> None:
    mesh = Mesh()
    root = mesh.rule({"host": "*", "trafficPolicy": lb("RANDOM")}, "all", ROOT)
    assert mesh.index.traffic(WEB).policy.balancing == "random"
    mesh.rule({"host": "*.shop.svc.cluster.local", "trafficPolicy": lb("ROUND_ROBIN")}, "here")
    assert mesh.index.traffic(WEB).policy.balancing == "round_robin"
    exact = mesh.rule({"host": "web"}, "web")
    assert mesh.index.traffic(WEB).origin == exact
    assert mesh.index.traffic(WEB).policy == TrafficPolicy()  # rules do not inherit
    assert mesh.index.traffic(f"{NS}/{hostname('api')}").policy.balancing == "round_robin"
    assert "closer or more specific rules count" in mesh.condition(root).message
    mesh.index.put(exact, None)
    assert mesh.index.traffic(WEB).policy.balancing == "round_robin"


@pytest.mark.parametrize(
    ("export", "counts"), [(["."], False), (["*"], True), ([NS], True), (["x"], False), ([], True)]
)
def test_the_root_s_rules_are_exported(export: list[str], counts: bool) -> None:
    mesh = Mesh()
    spec = {"host": hostname("web"), "trafficPolicy": lb("RANDOM"), "exportTo": export}
    key = mesh.rule(spec, namespace=ROOT)
    assert (mesh.index.traffic(WEB) != DEFAULT) is counts
    if not counts:
        assert "exportTo" in mesh.condition(key).message


def test_rules_of_other_namespaces_do_not_count_and_are_told() -> None:
    mesh = Mesh()
    key = mesh.rule({"host": hostname("web"), "trafficPolicy": lb("RANDOM")}, namespace="other")
    assert mesh.index.traffic(WEB) == DEFAULT
    condition = mesh.condition(key)
    assert (condition.status, condition.reason) == (False, "AncestorNotBound")
    assert "namespace other" in condition.message
    assert f"move it to that of {WEB}" in condition.message


def test_several_rules_become_one_by_age() -> None:
    mesh = Mesh()
    young = mesh.rule(
        {
            "host": "web",
            "trafficPolicy": lb("RANDOM"),
            "subsets": [{"name": "v1", "labels": {"v": "other"}}, {"name": "v2"}],
        },
        "a-young",
        created="2026-02-01T00:00:00Z",
    )
    old = mesh.rule(
        {
            "host": hostname("web"),
            "trafficPolicy": lb("ROUND_ROBIN"),
            "subsets": [{"name": "v1", "labels": {"v": "1"}}],
        },
        "b-old",
        created="2026-01-01T00:00:00Z",
    )
    traffic = mesh.index.traffic(WEB)
    assert traffic.origin == old
    assert [s.name for s in traffic.subsets] == ["v1", "v2"]
    assert traffic.subsets[0].labels == (("v", "1"),)
    assert {s.policy.balancing for s in traffic.subsets} == {"round_robin"}
    assert mesh.condition(old).reason == "Accepted"
    told = mesh.condition(young)
    assert told.reason == "PartiallyInvalid"
    assert "spec.trafficPolicy: DestinationRule shop/b-old is older" in told.message
    assert "spec.subsets: 'v1' of DestinationRule shop/b-old is older" in told.message


def test_a_workload_selector_takes_the_rule_out() -> None:
    mesh = Mesh()
    key = mesh.rule(
        {
            "host": "web",
            "workloadSelector": {"matchLabels": {"a": "b"}},
            **{"trafficPolicy": lb("RANDOM")},
        }
    )
    assert mesh.index.traffic(WEB) == DEFAULT
    assert mesh.condition(key).reason == "Invalid"
    assert "spec.workloadSelector" in mesh.condition(key).message


# ---- ports and subsets -------------------------------------------------------------------------


def test_a_port_s_settings_inherit_nothing_and_a_subset_s_blocks_replace() -> None:
    mesh = Mesh(service("web", ports=(80, 90)))
    outlier = {"outlierDetection": {"consecutive5xxErrors": 2}}
    mesh.rule(
        {
            "host": "web",
            "trafficPolicy": {
                **lb("ROUND_ROBIN"),
                **outlier,
                "retryBudget": {"percent": 50},
                "portLevelSettings": [
                    {"port": {"number": 90}, "connectionPool": {"tcp": {"maxConnections": 3}}}
                ],
            },
            "subsets": [
                {"name": "plain", "labels": {"v": "1"}},
                {"name": "own", "trafficPolicy": lb("RANDOM")},
                {
                    "name": "ported",
                    "trafficPolicy": {
                        "portLevelSettings": [{"port": {"number": 80}, **lb("RANDOM")}]
                    },
                },
            ],
        }
    )
    t = mesh.index.traffic(WEB)
    ejecting = Outliers(consecutive_5xx=2, min_health_percent=0)
    budget = RetryBudget(50, 3)
    assert t.at(80) == TrafficPolicy("round_robin", outliers=ejecting, budget=budget)
    assert t.at(90) == TrafficPolicy(pool=Pool(max_connections=3), budget=budget)
    subsets = {s.name: s for s in t.subsets}
    assert subsets["plain"].at(80) == t.at(80)
    assert subsets["plain"].at(90) == t.at(90)
    assert subsets["own"].at(80) == TrafficPolicy("random", outliers=ejecting, budget=budget)
    assert subsets["own"].at(90) == TrafficPolicy(
        "random", pool=Pool(max_connections=3), budget=budget
    )
    assert subsets["ported"].at(80) == TrafficPolicy("random", budget=budget)
    assert subsets["ported"].at(90) == t.at(90)


@pytest.mark.parametrize(
    ("subset", "why"),
    [
        ({"name": "a|b"}, "spec.subsets[1].name: 'a|b' is not a name"),
        ({}, "spec.subsets[1].name"),
        ({"name": "ok"}, "'ok' is there already"),
        ({"name": "x", "labels": {"v": 1}}, "spec.subsets[1].labels.v: 1 is not text (quote it)"),
        ({"name": "x", "label": {"v": "1"}}, "spec.subsets[1].label: no such field"),
        ("x", "spec.subsets[1]: must be a mapping"),
    ],
)
def test_a_bad_subset_leaves_the_others(subset: object, why: str) -> None:
    """One whose labels are wrong would select other pods: it is not there at all."""
    mesh = Mesh()
    key = mesh.rule({"host": "web", "subsets": [{"name": "ok"}, subset]})
    names = [s.name for s in mesh.index.traffic(WEB).subsets]
    assert names[0] == "ok"
    assert ("x" in names) is (why.endswith("such field"))
    assert why in mesh.condition(key).message


# ---- what a policy says ------------------------------------------------------------------------


PRIORITY = {"failoverPriority": ["topology.kubernetes.io/region"]}


@pytest.mark.parametrize(
    ("balancer", "want"),
    [
        ({"simple": "LEAST_CONN"}, TrafficPolicy("least_request")),
        ({"simple": "UNSPECIFIED"}, TrafficPolicy("least_request")),
        (
            {"consistentHash": {"httpHeaderName": "X-User", "ringHash": {"minimumRingSize": 9}}},
            TrafficPolicy(hash=ConsistentHash(header="x-user", minimum_ring_size=9)),
        ),
        (
            {"consistentHash": {"useSourceIp": True, "maglev": {"tableSize": 101}}},
            TrafficPolicy(hash=ConsistentHash(source_ip=True, maglev=True, table_size=101)),
        ),
        (
            {"consistentHash": {"httpCookie": {"name": "c", "path": "/", "ttl": "0s"}}},
            TrafficPolicy(hash=ConsistentHash(cookie="c", cookie_path="/", cookie_ttl=0.0)),
        ),
        (
            {"consistentHash": {"httpQueryParameterName": "Q", "minimumRingSize": 7}},
            TrafficPolicy(hash=ConsistentHash(query="Q", minimum_ring_size=7)),
        ),
        (
            {"simple": "ROUND_ROBIN", "warmup": {"duration": "1m"}},
            TrafficPolicy("round_robin", warmup=60.0),
        ),
        ({"warmupDurationSecs": "1m30s"}, TrafficPolicy(warmup=90.0)),
        (
            {
                "localityLbSetting": {
                    "distribute": [{"from": "eu/*", "to": {"eu/a": 80, "us": 20}}],
                }
            },
            TrafficPolicy(
                locality=LocalityBalancing(
                    distribute=(("eu/*", (("eu/a", 80), ("us", 20))),),
                )
            ),
        ),
        (
            {"localityLbSetting": {"failover": [{"from": "eu", "to": "us"}], "enabled": True}},
            TrafficPolicy(locality=LocalityBalancing(failover=(("eu", "us"),))),
        ),
        (
            {"localityLbSetting": {"enabled": False}},
            TrafficPolicy(locality=LocalityBalancing(enabled=False)),
        ),
        (
            {"localityLbSetting": {"failoverPriority": ["topology.kubernetes.io/region"]}},
            TrafficPolicy(
                locality=LocalityBalancing(failover_priority=("topology.kubernetes.io/region",))
            ),
        ),
    ],
)
def test_load_balancing(balancer: dict[str, object], want: TrafficPolicy) -> None:
    assert policy({"loadBalancer": balancer}) == want
    lost: dict[str, Any] = {"outlierDetection": {}} if "localityLbSetting" in balancer else {}
    assert found({"loadBalancer": balancer, **lost}) == ""


@pytest.mark.parametrize("setting", [{"failover": [{"from": "a", "to": "b"}]}, PRIORITY])
def test_failover_needs_outlier_detection(setting: dict[str, Any]) -> None:
    """Beside it, or from what is inherited; without it the field is named, once."""
    near = {"loadBalancer": {"localityLbSetting": setting}}
    lost = {"outlierDetection": {"consecutive5xxErrors": 1}}
    told = "spec.trafficPolicy.loadBalancer.localityLbSetting: failover needs outlierDetection"
    assert found(near).count("failover needs") == 1
    assert told in found(near)
    assert found({**near, **lost}) == ""
    assert found(lost, {"name": "v1", "trafficPolicy": near}) == ""
    assert found(near, {"name": "v1", "trafficPolicy": lost}).count("failover needs") == 1


@pytest.mark.parametrize(
    ("balancer", "why"),
    [
        ({"simple": "FASTEST"}, "loadBalancer.simple: 'FASTEST' is none of UNSPECIFIED"),
        ({"simple": "PASSTHROUGH"}, "PASSTHROUGH is not supported"),
        ({"consistentHash": {}}, "set exactly one of httpHeaderName"),
        (
            {"consistentHash": {"useSourceIp": True, "httpHeaderName": "a"}},
            "set exactly one of httpHeaderName",
        ),
        ({"consistentHash": {"useSourceIp": False}}, "says nothing to tell requests apart by"),
        ({"consistentHash": {"httpCookie": {}}}, "httpCookie.name: a cookie needs a name"),
        (
            {"consistentHash": {"useSourceIp": True, "maglev": {"tableSize": 100}}},
            "maglev.tableSize: 100 is not a prime number",
        ),
        (
            {"consistentHash": {"useSourceIp": True, "ringHash": {"minimumRingSize": 1 << 40}}},
            "ringHash.minimumRingSize: 1099511627776 is not between 0 and 8388608",
        ),
        ({"simple": "RANDOM", "consistentHash": {"useSourceIp": True}}, "set simple or"),
        ({"simple": "RANDOM", "warmup": {"duration": "1s"}}, "only ROUND_ROBIN and LEAST_REQUEST"),
        ({"warmup": {}}, "warmup.duration: must be set"),
    ],
)
def test_bad_load_balancing_is_named(balancer: dict[str, object], why: str) -> None:
    assert why in found({"loadBalancer": balancer})


TO = {"to": {"us": 100}}
EU = {"from": "eu", **TO}


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"distribute": [{"from": "eu", "to": {"us": 99}}]}, "distribute[0].to: weights must add"),
        ({"distribute": [{"from": "eu", "to": {"us": 0}}]}, "distribute[0].to.us: 0 is not"),
        ({"distribute": [{"from": "eu", "to": {"us": "1"}}]}, "distribute[0].to.us: '1' is not"),
        ({"distribute": [{"from": "eu", "to": {}}]}, "distribute[0].to: must have places"),
        ({"distribute": [{"from": "eu"}]}, "distribute[0].to: must have places"),
        ({"distribute": [{"from": "eu", "to": [1]}]}, "distribute[0].to: must be a mapping"),
        ({"distribute": [{"from": "*/eu", **TO}]}, "distribute[0].from: '*/eu' is not a place"),
        ({"distribute": [TO]}, "distribute[0].from: '' is not a place"),
        (
            {"distribute": [{"from": "eu", "to": {"us": 50, "us/a": 50}}]},
            "distribute[0].to: 'us/a' and 'us' have places in common",
        ),
        (
            {"distribute": [EU, {"from": "eu/a/*", **TO}]},
            "distribute[1].from: 'eu/a/*' and 'eu' have places in common",
        ),
        ({"distribute": [EU], "failover": [{"from": "a", "to": "b"}]}, "failover: not both"),
        ({"distribute": [EU], "failoverPriority": ["a"]}, "failoverPriority: not both"),
        (
            {"failover": [{"from": "a", "to": "b"}], **PRIORITY},
            "failover: not both: beside labels of places",
        ),
        ({"failover": [{"from": "eu", "to": "eu"}]}, "failover[0]: from and to must be two"),
        ({"failover": [{"from": "eu/a", "to": "us"}]}, "failover[0]: from and to must be two"),
        (
            {"failover": [{"from": "eu", "to": "us"}, {"from": "eu", "to": "as"}]},
            "failover[1].from: 'eu' fails over to 'us' already",
        ),
        ({"failoverPriority": ["=a"]}, "failoverPriority[0]: '=a' is neither a label nor"),
        ({"failoverPriority": [1]}, "failoverPriority[0]: 1 is neither a label nor"),
        ({"failoverPriority": ["a", "a=b"]}, "failoverPriority[1]: 'a' is there already"),
        ({"failoverPriority": [f"l{i}" for i in range(25)]}, "localityLbSetting: more than 24"),
        ({"enabled": "yes"}, "localityLbSetting.enabled: 'yes' is neither true nor false"),
        ({"distributed": []}, "localityLbSetting.distributed: no such field"),
    ],
)
def test_a_wrong_place_is_named_once(setting: dict[str, object], why: str) -> None:
    said = found({"loadBalancer": {"localityLbSetting": setting}, "outlierDetection": {}})
    assert why in said
    assert said.count("localityLbSetting") == 1, said


def test_pools() -> None:
    spec = {
        "tcp": {
            "maxConnections": 1,
            "connectTimeout": "250ms",
            "idleTimeout": "5s",
            "maxConnectionDuration": "1h",
            "tcpKeepalive": {"probes": 3, "time": "10s", "interval": "1s"},
        },
        "http": {
            "http1MaxPendingRequests": 2,
            "http2MaxRequests": 3,
            "maxRequestsPerConnection": 4,
            "maxRetries": 5,
            "idleTimeout": "6s",
            "h2UpgradePolicy": "UPGRADE",
            "maxConcurrentStreams": 7,
        },
    }
    assert policy({"connectionPool": spec}).pool == Pool(
        max_connections=1,
        connect_timeout=0.25,
        tcp_keepalive=(3, 10.0, 1.0),
        idle_timeout=6.0,
        max_connection_duration=3600.0,
        max_pending_requests=2,
        max_requests=3,
        max_requests_per_connection=4,
        max_retries=5,
        upgrade_to_h2=True,
        max_concurrent_streams=7,
    )
    assert found({"connectionPool": spec}) == ""
    assert policy({"connectionPool": {"tcp": {"maxConnections": 0}}}).pool == Pool()


def test_outliers() -> None:
    spec = {
        "consecutive5xxErrors": 0,
        "consecutiveGatewayErrors": 2,
        "consecutiveLocalOriginFailures": 3,
        "splitExternalLocalOriginErrors": True,
        "interval": "1s",
        "baseEjectionTime": "3m",
        "maxEjectionPercent": 100,
        "minHealthPercent": 30,
    }
    assert policy({"outlierDetection": spec}).outliers == Outliers(
        consecutive_5xx=0,
        consecutive_gateway_errors=2,
        consecutive_local_failures=3,
        split_local_errors=True,
        interval=1.0,
        base_ejection=180.0,
        max_ejection_percent=100,
        min_health_percent=30,
    )
    assert found({"outlierDetection": spec}) == ""


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"connectionPool": {"tcp": {"maxConnections": -1}}}, "-1 is not between 0 and"),
        ({"connectionPool": {"tcp": {"maxConnections": "5"}}}, "'5' is not a number"),
        ({"connectionPool": {"tcp": {"maxConnections": True}}}, "True is not a number"),
        ({"connectionPool": {"tcp": {"maxConnections": 1.5}}}, "1.5 is not a whole number"),
        ({"connectionPool": {"tcp": {"connectTimeout": "5"}}}, "'5' is not a duration"),
        ({"connectionPool": {"tcp": {"connectTimeout": 5}}}, "5 is not a duration"),
        ({"connectionPool": {"tcp": {"connectTimeout": "10us"}}}, "not between 1ms and 10 years"),
        ({"connectionPool": {"tcp": {"connectTimeout": "9999999h"}}}, "not between 1ms and 10"),
        ({"connectionPool": {"htpp": {}}}, "connectionPool.htpp: no such field (known: http, tcp)"),
        ({"connectionPool": []}, "spec.trafficPolicy.connectionPool: must be a mapping"),
        ({"outlierDetection": {"consecutiveErrors": 5}}, "use consecutive5xxErrors"),
        ({"outlierDetection": {"maxEjectionPercent": 101}}, "is not between 0 and 100"),
        ({"proxyProtocol": {"version": "V2"}}, "spec.trafficPolicy.proxyProtocol: not supported"),
        ({"tunnel": {"targetHost": "a"}}, "spec.trafficPolicy.tunnel: not supported"),
        ({"portLevelSettings": [{"loadBalancer": {}}]}, "must have the number of a service port"),
        ({"portLevelSettings": [{"port": {"number": 80}}] * 2}, "80 has settings already"),
        ({"portLevelSettings": [{"port": {"name": "http"}}]}, "port.name: no such field"),
        ({"retryBudget": {"budgetInterval": "1s"}}, "retryBudget.budgetInterval: not supported"),
    ],
)
def test_bad_values_are_named_and_the_rest_is_kept(spec: dict[str, object], why: str) -> None:
    assert why in found({**lb("RANDOM"), **spec})
    assert policy({**lb("RANDOM"), **spec}).balancing == "random"


# ---- what is told ------------------------------------------------------------------------------


def test_bindings() -> None:
    mesh = Mesh()
    key = mesh.rule({"host": "web", "trafficPolicy": lb("RANDOM")})
    nowhere = mesh.condition(key, ServiceState())
    assert (nowhere.status, nowhere.reason) == (False, "AncestorNotBound")
    assert "istio.io/use-waypoint" in nowhere.message
    sender = mesh.condition(key, ServiceState(senders=("other/gate",)))
    assert (sender.status, sender.reason) == (True, "Accepted")
    assert sender.message == f"in effect for {WEB} at other/gate"


@pytest.mark.parametrize(
    "spec", [None, "x", [], 5, {"host": 5}, {"host": "a b"}, {}, {"host": "*a"}]
)
def test_what_is_no_rule(spec: object) -> None:
    mesh = Mesh()
    key = mesh.rule(spec)
    assert mesh.index.traffic(WEB) == DEFAULT
    assert (mesh.condition(key).status, mesh.condition(key).reason) == (False, "Invalid")
