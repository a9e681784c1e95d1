"""What pods of a waypoint are served by place: their own order, and no more than is asked for."""

from __future__ import annotations

from typing import Any

from cp_support import pod, service
from wp_world import CART, PAY, SHORT, World, rule, shop, wp_pod

from control_plane.resources import Snapshot
from control_plane.waypoints import sending
from waypoint.config.envoy.pack import unpack

LOST = {"outlierDetection": {"consecutive5xxErrors": 1}}


def node(name: str, zone: str, region: str = "eu") -> dict[str, Any]:
    labels = {"topology.kubernetes.io/region": region, "topology.kubernetes.io/zone": zone}
    return {"kind": "Node", "metadata": {"namespace": "", "name": name, "labels": labels}}


def on(obj: dict[str, Any], name: str) -> dict[str, Any]:
    """The same pod on another node."""
    return {**obj, "spec": {**obj["spec"], "nodeName": name}}


def spread(*more: dict[str, Any]) -> World:
    """Two nodes in two zones, with a pod of the waypoint and one of the service on each."""
    return shop(
        node("n1", "a"),
        node("n2", "b"),
        on(wp_pod("wp-2", "10.244.2.99"), "n2"),
        on(pod("cart-2", ip="10.244.2.5", labels={"app": "cart"}), "n2"),
        *more,
    )


def seen(w: World, client: str, cluster: str = CART) -> list[list[str]]:
    """The addresses of each priority, as a pod of the waypoint is served."""
    found = w.snapshot().seen_by(client).of(SHORT["eds"])[cluster]
    out: dict[int, list[str]] = {}
    for group in unpack(found.type_url, found.payload).get("endpoints", []):
        texts = [str(e["endpoint"]) for e in group["lb_endpoints"]]
        names = [n for t in texts for n in ("10.244.1.5", "10.244.2.5", "10.244.1.6") if n in t]
        out.setdefault(group.get("priority", 0), []).extend(names)
    return [sorted(out[p]) for p in sorted(out)]


BOTH = [["10.244.1.5", "10.244.2.5"]]


def test_each_pod_sees_its_own_zone_first() -> None:
    w = spread()
    assert seen(w, "wp-1") == seen(w, "wp-2") == BOTH
    w.apply(rule("cart", trafficPolicy=LOST))
    assert seen(w, "wp-1") == [["10.244.1.5"], ["10.244.2.5"]]
    assert seen(w, "wp-2") == [["10.244.2.5"], ["10.244.1.5"]]
    assert seen(w, "of-nobody") == BOTH
    w.delete(rule("cart"))
    assert seen(w, "wp-1") == BOTH
    assert w.snapshot().views == {}


def test_traffic_distribution() -> None:
    """As node proxies read it; networking.istio.io/traffic-distribution says the same."""
    w = spread()
    cart = service("cart", "10.96.0.7", {"app": "cart"})
    cart["spec"]["trafficDistribution"] = "PreferClose"
    w.apply(cart)
    assert seen(w, "wp-2") == [["10.244.2.5"], ["10.244.1.5"]]
    w.apply(rule("cart", trafficPolicy={"loadBalancer": {"localityLbSetting": {"enabled": False}}}))
    assert seen(w, "wp-2") == BOTH
    w.delete(rule("cart"))
    del cart["spec"]["trafficDistribution"]
    w.apply(cart)
    assert seen(w, "wp-2") == BOTH
    cart["metadata"]["annotations"] = {"networking.istio.io/traffic-distribution": "PreferSameNode"}
    w.apply(cart, node("n2", "a"))
    assert seen(w, "wp-2") == [["10.244.2.5"], ["10.244.1.5"]]


def test_a_node_that_moves_and_a_pod_that_moves() -> None:
    w = spread(rule("cart", trafficPolicy=LOST))
    before = w.snapshot()
    w.apply(node("n2", "a"))
    assert seen(w, "wp-1") == seen(w, "wp-2") == BOTH
    assert w.snapshot().version > before.version  # who is connected is told
    w.apply(node("n2", "b"), on(wp_pod("wp-1"), "n2"))
    assert seen(w, "wp-1") == [["10.244.2.5"], ["10.244.1.5"]]
    w.delete(wp_pod("wp-2"))
    assert set(w.snapshot().views) == {"wp-1"}


def test_a_change_makes_one_service_for_each_place() -> None:
    """Not one for each pod; other services and types are the same objects for all."""
    w = spread(rule("cart", trafficPolicy=LOST), rule("pay", trafficPolicy=LOST))
    w.apply(*(on(wp_pod(f"more-{i}", f"10.244.2.{50 + i}"), "n2") for i in range(4)))
    w.translator.drain()
    before = w.snapshot()
    w.apply(pod("cart-3", ip="10.244.1.7", labels={"app": "cart"}))
    assert w.translator.drain() == ["backend", "placed", "placed"]
    after = w.snapshot()
    for name in ("wp-1", "wp-2", "more-3"):
        assert changed(before.seen_by(name), after.seen_by(name)) == {("eds", CART)}
    assert after.seen_by("more-3") is after.seen_by("wp-2")
    assert after.seen_by("wp-1").of(SHORT["rds"]) is after.of(SHORT["rds"])
    w.apply(on(wp_pod("late", "10.244.2.77"), "n2"))
    assert w.translator.drain() == []
    assert w.snapshot().seen_by("late").of(SHORT["eds"]) == after.seen_by("wp-2").of(SHORT["eds"])


def test_a_place_is_told_apart_by_what_a_service_asks_for() -> None:
    """One service by nodes and one by zones: the latter is made once for two nodes of a zone."""
    nodes = service("pay", "10.96.0.8", {"app": "pay"})
    nodes["spec"]["trafficDistribution"] = "PreferSameNode"
    w = spread(nodes, rule("cart", trafficPolicy=LOST), node("n3", "b"))
    w.apply(on(wp_pod("wp-3", "10.244.3.99"), "n3"))
    w.translator.drain()
    w.apply(pod("cart-3", ip="10.244.1.7", labels={"app": "cart"}))
    assert w.translator.drain() == ["backend", "placed", "placed"]
    w.apply(pod("pay-3", ip="10.244.1.8", labels={"app": "pay"}))
    assert w.translator.drain() == ["backend", "placed", "placed", "placed"]


def changed(before: Snapshot, after: Snapshot) -> set[tuple[str, str]]:
    return {
        (short, name)
        for short, url in SHORT.items()
        for name, found in after.of(url).items()
        if (old := before.of(url).get(name)) is None or old.version != found.version
    }


def test_who_asks_for_no_places_pays_for_none() -> None:
    w = spread()
    w.translator.drain()
    w.apply(pod("cart-3", ip="10.244.1.7", labels={"app": "cart"}))
    assert w.translator.drain() == ["backend"]
    assert w.snapshot().views == {}
    before = w.snapshot()
    w.apply(on(wp_pod("wp-3", "10.244.2.98"), "n2"), node("n3", "c"))
    assert w.snapshot() is before


def test_labels_of_pods_count() -> None:
    """They may change though nothing else about a pod does; so do subsets."""
    setting = {"localityLbSetting": {"failoverPriority": ["tier=gold"]}}
    subset = {"name": "gold", "labels": {"tier": "gold"}}
    w = spread(rule("cart", trafficPolicy={"loadBalancer": setting, **LOST}, subsets=[subset]))
    assert seen(w, "wp-1") == BOTH
    gold = pod("cart-1", ip="10.244.1.5", labels={"app": "cart", "tier": "gold"})
    w.apply(gold)
    assert seen(w, "wp-1") == seen(w, "wp-2") == [["10.244.1.5"], ["10.244.2.5"]]
    w.apply(pod("cart-1", ip="10.244.1.5", labels={"app": "cart"}))
    assert seen(w, "wp-1") == BOTH


def test_what_cannot_be_arranged_is_served_as_to_everybody(monkeypatch: Any, caplog: Any) -> None:
    w = spread()
    broken = ValueError("broken")

    def encode(encoded: Any) -> Any:
        if set(encoded) == {SHORT["eds"]}:
            raise broken
        return real(encoded)

    real = sending.encode
    monkeypatch.setattr(sending, "encode", encode)
    w.apply(rule("cart", trafficPolicy=LOST))
    assert seen(w, "wp-1") == BOTH
    assert seen(w, "wp-1", PAY) == [["10.244.1.6"]]
    assert "all its endpoints are alike" in caplog.text
