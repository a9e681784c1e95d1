"""Where requests go by place: which endpoints come first for whom, and how much each gets."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.model import LoadBalancing, Locality, Port, Service, Workload
from mesh.xds.types import ENDPOINTS
from waypoint.config.envoy.translate import backend_resources, placed_resources
from waypoint.config.locality import (
    NODE,
    REGION,
    SUBZONE,
    ZONE,
    Group,
    Place,
    Preference,
    groups_of,
    keys_of,
    matches,
    narrow,
    needs_labels,
    place_of,
    preference_of,
)
from waypoint.config.model import Backend, Endpoint
from waypoint.config.traffic import (
    LocalityBalancing,
    Outliers,
    ServiceTraffic,
    Subset,
    TrafficPolicy,
)

WEB = Service("web", "shop", "web.shop.svc.cluster.local")
LOST = Outliers(consecutive_5xx=1)


def near(mode: int, *scopes: int) -> Service:
    """A Service with a trafficDistribution (istio.workload.LoadBalancing)."""
    balancing = LoadBalancing(scopes, mode)
    return Service("web", "shop", "web.shop.svc.cluster.local", load_balancing=balancing)


def at(text: str, name: str = "", weight: int = 1, **labels: str) -> Endpoint:
    """An endpoint at region/zone/subzone, called by that unless it has a name."""
    where = Locality(*text.split("/"))
    given = tuple(sorted(labels.items()))
    return Endpoint(name or text, 80, locality=where, weight=weight, labels=given, node=f"n-{text}")


def place(text: str, **labels: str) -> Place:
    region, zone, subzone = [*text.split("/"), "", ""][:3]
    found = {REGION: region, ZONE: zone, SUBZONE: subzone, **labels}
    return tuple((k, v) for k, v in sorted(found.items()) if v)


def order(groups: list[Group]) -> list[set[str]]:
    """The addresses of each priority."""
    found: dict[int, set[str]] = {}
    for group in groups:
        found.setdefault(group.priority, set()).update(e.address for e in group.endpoints)
    assert sorted(found) == list(range(len(found)))  # Envoy takes no gaps
    return [found[priority] for priority in sorted(found)]


def shares(groups: list[Group]) -> dict[str, float]:
    """The share of each endpoint's place."""
    total = sum(g.weight for g in groups)
    return {g.endpoints[0].address: round(100 * g.weight / total, 1) for g in groups}


EVERYWHERE = [at(t) for t in ("eu/a/1", "eu/a/2", "eu/b/1", "us/a/1", "as/a/1")]


@pytest.mark.parametrize(
    ("service", "policy", "want"),
    [
        (WEB, TrafficPolicy(), None),
        (WEB, TrafficPolicy(outliers=LOST), Preference(by_place=True)),
        (WEB, TrafficPolicy(locality=LocalityBalancing()), None),
        (WEB, TrafficPolicy(locality=LocalityBalancing(enabled=False), outliers=LOST), None),
        (
            WEB,
            TrafficPolicy(locality=LocalityBalancing(distribute=(("*", (("eu", 100),)),))),
            Preference(distribute=(("*", (("eu", 100),)),)),
        ),
        (WEB, TrafficPolicy(locality=LocalityBalancing(failover=(("eu", "us"),))), None),
        (
            WEB,
            TrafficPolicy(locality=LocalityBalancing(failover=(("eu", "us"),)), outliers=LOST),
            Preference(by_place=True, failover=(("eu", "us"),)),
        ),
        (
            WEB,
            TrafficPolicy(
                locality=LocalityBalancing(failover_priority=("a", "b=c", "d=")), outliers=LOST
            ),
            Preference(priority=(("a", None), ("b", "c"), ("d", ""))),
        ),
        (
            WEB,
            TrafficPolicy(
                locality=LocalityBalancing(failover=(("eu", "us"),), failover_priority=("a",)),
                outliers=LOST,
            ),
            Preference(priority=(("a", None),), by_place=True, failover=(("eu", "us"),)),
        ),
        (
            near(2, 6, 1, 2),
            TrafficPolicy(),
            Preference(priority=((REGION, None), (ZONE, None))),
        ),
        (near(1, 4), TrafficPolicy(), None),  # internalTrafficPolicy: Local is not for waypoints
        # What a DestinationRule says of places counts, be it that they do not.
        (near(2, 6, 1), TrafficPolicy(locality=LocalityBalancing(enabled=False)), None),
        (near(2, 6, 1), TrafficPolicy(outliers=LOST), Preference(priority=((REGION, None),))),
    ],
)
def test_what_counts(service: Service, policy: TrafficPolicy, want: Preference | None) -> None:
    assert preference_of(service, policy) == want


@pytest.mark.parametrize(
    ("here", "want"),
    [
        ("eu/a/1", [{"eu/a/1"}, {"eu/a/2"}, {"eu/b/1"}, {"us/a/1", "as/a/1"}]),
        ("eu/a", [{"eu/a/1", "eu/a/2"}, {"eu/b/1"}, {"us/a/1", "as/a/1"}]),
        ("us/b/1", [{"us/a/1"}, {"eu/a/1", "eu/a/2", "eu/b/1", "as/a/1"}]),
        ("sa/a/1", [{"eu/a/1", "eu/a/2", "eu/b/1", "us/a/1", "as/a/1"}]),
        ("", [{"eu/a/1", "eu/a/2", "eu/b/1", "us/a/1", "as/a/1"}]),
    ],
)
def test_nearby_first(here: str, want: list[set[str]]) -> None:
    assert order(groups_of(EVERYWHERE, Preference(by_place=True), place(here))) == want


def test_an_unknown_place_prefers_nobody() -> None:
    """Not even those whose place is not known either."""
    nowhere = Endpoint("nowhere", 80)
    assert order(groups_of([*EVERYWHERE, nowhere], Preference(by_place=True))) == [
        {"nowhere", *(e.address for e in EVERYWHERE)}
    ]


def test_failover_between_regions() -> None:
    preference = Preference(by_place=True, failover=(("eu", "as"), ("us", "eu")))
    assert order(groups_of(EVERYWHERE, preference, place("eu/b/1"))) == [
        {"eu/b/1"},
        {"eu/a/1", "eu/a/2"},
        {"as/a/1"},
        {"us/a/1"},
    ]
    assert order(groups_of(EVERYWHERE, preference, place("us/a/1")))[1:] == [
        {"eu/a/1", "eu/a/2", "eu/b/1"},
        {"as/a/1"},
    ]


def test_failover_priority() -> None:
    """Labels from the first on: one that differs makes those after it count for nothing."""
    preference = Preference(priority=((REGION, None), ("version", "v1"), (ZONE, None)))
    endpoints = [
        at("eu/a/1", "best", version="v1"),
        at("eu/b/1", "other-zone", version="v1"),
        at("eu/a/1", "other-version", version="v2"),
        at("us/a/1", "far", version="v1"),
        at("us/a/1", "farther"),
    ]
    here = place("eu/a/1", version="of-the-waypoint")
    assert order(groups_of(endpoints, preference, here)) == [
        {"best"},
        {"other-zone"},
        {"other-version"},
        {"far", "farther"},
    ]
    # One place, two priorities: two groups.
    assert len(groups_of(endpoints, preference, here)) == 4


def test_a_label_that_nobody_has_is_no_difference() -> None:
    preference = Preference(priority=(("gone", None), ("v", "")))
    assert order(groups_of([at("eu/a/1"), at("eu/b/1", v="x")], preference, place("eu"))) == [
        {"eu/a/1"},
        {"eu/b/1"},
    ]


def test_labels_first_and_places_after() -> None:
    preference = Preference((), (("v", "1"),), True, (("eu", "us"),))
    endpoints = [at("as/a/1", v="1"), at("us/a/1", v="1"), at("eu/a/1", v="2"), at("eu/b/1", v="2")]
    assert order(groups_of(endpoints, preference, place("eu/a/1"))) == [
        {"us/a/1"},
        {"as/a/1"},
        {"eu/a/1"},
        {"eu/b/1"},
    ]


def test_same_node_as_a_node_proxy_has_it() -> None:
    preference = preference_of(near(2, 6, 1, 2, 3, 4), TrafficPolicy())
    assert preference is not None
    assert preference.keys == {REGION, ZONE, SUBZONE, NODE}
    here = place("eu/a/1", **{NODE: "n-me"})
    same = Endpoint("same", 80, locality=Locality("eu", "a", "1"), node="n-me")
    assert order(groups_of([same, *EVERYWHERE], preference, here))[:2] == [{"same"}, {"eu/a/1"}]


@pytest.mark.parametrize(
    ("distribute", "want"),
    [
        ((("eu/*", (("eu/a/*", 80), ("us", 20))),), {"eu/a/1": 40, "eu/a/2": 40, "us/a/1": 20}),
        ((("eu/a/1", (("eu/b/1", 100),)),), {"eu/b/1": 100}),
        ((("*", (("*", 100),)),), dict.fromkeys((e.address for e in EVERYWHERE), 20)),
        ((("eu/b", (("us", 100),)), ("eu/a", (("as/a", 100),))), {"as/a/1": 100}),
        ((("eu/a", (("sa", 100),)),), {}),  # what no place names gets nothing, come what may
        ((("us", (("us", 100),)),), dict.fromkeys((e.address for e in EVERYWHERE), 20)),
    ],
)
def test_distribute(distribute: Any, want: dict[str, float]) -> None:
    found = groups_of(EVERYWHERE, Preference(distribute=distribute), place("eu/a/1"))
    assert shares(found) == want
    assert order(found) == ([set(want)] if want else [])


def test_a_place_s_weight_is_shared_by_the_weights_of_its_endpoints() -> None:
    endpoints = [at("eu/a/1", weight=3), at("eu/a/2"), at("us/a/1", weight=100)]
    preference = Preference(distribute=(("*", (("eu", 50), ("us", 50))),))
    found = groups_of(endpoints, preference, place("as"))
    assert shares(found) == {"eu/a/1": 37.5, "eu/a/2": 12.5, "us/a/1": 50}
    one_in_many = [at("eu/a/1", weight=10**6), at("eu/b/1")]
    found = groups_of(one_in_many, Preference(distribute=(("*", (("eu", 100),)),)), place("as"))
    assert min(g.weight for g in found) >= 1  # Envoy refuses 0


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        *((p, True) for p in ("eu", "eu/*", "*", "eu/a", "eu/a/*", "eu/a/1")),
        *((p, False) for p in ("eu/b", "us", "eu/a/2", "e")),
    ],
)
def test_patterns(pattern: str, fits: bool) -> None:
    assert matches(Locality("eu", "a", "1"), pattern) is fits


def test_places_are_told_apart_by_what_counts_only() -> None:
    w = Workload("u", "wp-1", "shop", node="n1", locality=Locality("eu", "a"), cluster_id="c")
    labels = {"app": "wp", REGION: "a label cannot lie about the node's", "empty": ""}
    assert place_of(w, labels, {REGION, ZONE, SUBZONE}) == place("eu/a")
    assert place_of(w, labels, {"app", NODE, "empty"}) == (("app", "wp"), (NODE, "n1"))
    assert place_of(w, labels, ()) == ()
    assert narrow(place("eu/a/1"), frozenset({ZONE})) == ((ZONE, "a"),)


def test_what_a_backend_depends_on() -> None:
    by_label = TrafficPolicy(
        locality=LocalityBalancing(failover_priority=("app", "v=1")), outliers=LOST
    )
    for traffic, keys, labels in (
        (ServiceTraffic(), set(), False),
        (ServiceTraffic(TrafficPolicy(outliers=LOST)), {REGION, ZONE, SUBZONE}, False),
        (ServiceTraffic(by_label), {"app"}, True),
        (ServiceTraffic(ports=((80, by_label),)), {"app"}, True),
        (ServiceTraffic(subsets=(Subset("a", (), by_label),)), {"app"}, True),
        (ServiceTraffic(subsets=(Subset("a", ()),)), set(), True),
    ):
        assert keys_of(Backend(WEB, traffic)) == keys
        assert needs_labels(WEB, traffic) is labels


def test_only_assignments_that_depend_on_the_place_are_made_for_it() -> None:
    ports = (Port(80, 8080, 1), Port(90, 9090, 1))
    web = Service("web", "shop", "web.shop.svc.cluster.local", ports=ports)
    traffic = ServiceTraffic(ports=((90, TrafficPolicy(outliers=LOST)),))
    endpoints = tuple((port.service_port, tuple(EVERYWHERE)) for port in ports)
    backend = Backend(web, traffic, endpoints)
    (found,) = placed_resources(backend, place("eu/a/1")).values()
    assert set(found) == {"outbound|90||web.shop.svc.cluster.local"}
    (same,) = (backend_resources(backend)[ENDPOINTS][name] for name in found)
    assert found[f"outbound|90||{web.hostname}"] != same
