"""Waypoints follow their objects, and a change makes anew no more than it touches."""

from __future__ import annotations

from typing import Any

from cp_support import pod, policy, service
from wp_world import (
    AMBIENT,
    BOUND,
    CART,
    CART_ROUTES,
    PAY,
    World,
    gateway,
    http_route,
    key_of,
    namespace,
    rule,
    shop,
    wp_pod,
)

from mesh.manifest import Key
from mesh.model import Workload
from waypoint.config.features import FEATURES
from waypoint.config.status import CONTROLLER


def endpoints(w: World, cluster: str) -> list[str]:
    found = w.resource("eds", cluster).get("endpoints", [])
    return [str(e) for group in found for e in group["lb_endpoints"]]


def test_a_waypoint_serves_what_is_bound_to_it() -> None:
    w = shop()
    assert {CART, PAY} <= w.names("cds")
    assert {CART, PAY} == w.names("eds")
    assert CART_ROUTES in w.names("rds")
    assert {"main_internal", "connect_terminate", "connect_originate"} == w.names("lds")
    assert "10.96.0.7" in str(w.resource("lds", "main_internal"))
    assert "10.96.0.99" not in str(w.resource("lds", "main_internal"))
    (only,) = endpoints(w, CART)
    assert "spiffe://cluster.local/ns/shop/sa/default" in only
    found = w.address("shop/cart.shop.svc.cluster.local")
    assert found.waypoint is not None
    assert found.waypoint.hostname == "wp.shop.svc.cluster.local"
    assert w.condition("Service", "cart", BOUND) == (True, "WaypointAccepted")
    assert w.condition("Gateway", "wp", "Programmed") == (True, "Programmed")


def test_a_pod_that_comes_changes_endpoints_only() -> None:
    w = shop()
    before = w.snapshot()
    w.translator.drain()
    w.apply(pod("cart-2", ip="10.244.1.7", labels={"app": "cart"}))
    assert w.changed(before) == {"eds": {CART}}
    assert len(endpoints(w, CART)) == 2
    assert w.translator.drain() == ["backend"]


def test_what_touches_nothing_makes_nothing() -> None:
    """Other namespaces' services and pods; the same objects again."""
    w = shop()
    before = w.snapshot()
    w.translator.drain()
    w.apply(
        namespace("other", dataplane_mode="ambient"),
        service("x", "10.96.1.1", {"app": "x"}, namespace="other"),
        pod("x-1", namespace="other", ip="10.244.1.50", labels={"app": "x"}),
        service("cart", "10.96.0.7", {"app": "cart"}),
    )
    assert w.snapshot() is before
    assert w.translator.drain() == []


def test_a_service_that_comes_and_goes() -> None:
    w = shop()
    before = w.snapshot()
    w.translator.drain()
    new = service("new", "10.96.0.9", {"app": "cart"})
    w.apply(new)
    name = "outbound|80||new.shop.svc.cluster.local"
    assert w.changed(before) == {
        "cds": {name},
        "eds": {name},
        "lds": {"main_internal"},
        "rds": {"inbound-vip|80|http|new.shop.svc.cluster.local"},
    }
    assert w.translator.drain() == ["backend", "bound", "listener"]
    w.delete(new)
    assert w.changed(before) == {}
    assert w.condition("Service", "new", BOUND) is None


def test_labels_move_a_service_between_waypoints() -> None:
    """And off all of them."""
    w = shop(gateway("wp2"))
    cart = service("cart", "10.96.0.7", {"app": "cart"})
    cart["metadata"]["labels"] = {"istio.io/use-waypoint": "wp2"}
    w.apply(cart)
    w.later()
    assert CART not in w.names("cds")
    assert CART in w.names("cds", "shop/wp2")
    assert w.condition("Service", "cart", BOUND) == (False, "WaypointIsNotReady")
    cart["metadata"]["labels"] = {"istio.io/use-waypoint": "none"}
    w.apply({**cart, "metadata": {**cart["metadata"], "generation": 3}})
    w.later()
    assert CART not in w.names("cds", "shop/wp2")
    assert w.address("shop/cart.shop.svc.cluster.local").waypoint is None
    assert w.condition("Service", "cart", BOUND) is None


def test_the_namespaces_label_binds_all_at_once() -> None:
    w = shop()
    w.apply(namespace(dataplane_mode="ambient"))
    assert told(w) is None
    w.later()
    assert w.names("eds") == set()
    w.apply(namespace(**AMBIENT))
    assert w.names("eds") == {CART, PAY}
    w.later()
    assert told(w) == "wp.shop.svc.cluster.local"


def told(w: World, service: str = "cart") -> str | None:
    """The waypoint that node proxies know of."""
    found = w.address(f"shop/{service}.shop.svc.cluster.local").waypoint
    return found.hostname if found else None


def test_a_service_goes_directly_until_its_waypoint_listens() -> None:
    """Its pods must have answered for the snapshot that has it; the status waits, too."""
    w = shop()
    w.apply(namespace(dataplane_mode="ambient"))
    w.later()
    w.reached["shop/wp"] = w.snapshot().version
    w.apply(namespace(**AMBIENT))
    assert CART in w.names("cds")
    assert told(w) is None
    assert w.condition("Service", "cart", BOUND) is None
    w.later(0.1)
    assert told(w) is None
    w.reached["shop/wp"] = w.snapshot().version
    w.later(0.0)
    assert told(w) == "wp.shop.svc.cluster.local"
    assert w.condition("Service", "cart", BOUND) == (True, "WaypointAccepted")


def test_a_waypoint_that_does_not_answer_is_waited_for_two_seconds() -> None:
    w = shop()
    w.apply(namespace(dataplane_mode="ambient"))
    w.later()
    w.reached["shop/wp"] = w.snapshot().version
    w.apply(namespace(**AMBIENT))
    w.later(1.9)
    assert told(w) is None
    w.later(0.2)
    assert told(w) == "wp.shop.svc.cluster.local"


def test_new_services_and_refused_ones_wait_for_nothing() -> None:
    """Nothing passes around its waypoint at its beginning."""
    w = shop()
    w.reached["shop/wp"] = w.snapshot().version
    w.apply(service("new", "10.96.0.9", {"app": "cart"}))
    assert told(w, "new") == "wp.shop.svc.cluster.local"
    w.delete(gateway())
    assert told(w) == "wp.shop.svc.cluster.local"
    w.apply(gateway())
    assert told(w) == "wp.shop.svc.cluster.local"


def test_a_waypoint_listens_a_while_for_what_has_left() -> None:
    """Node proxies hear of it a moment later; what is deleted goes at once."""
    w = shop()
    w.apply(namespace(dataplane_mode="ambient"))
    assert told(w) is None
    w.later(2.0)
    assert CART in w.names("cds")
    w.delete(service("pay", "10.96.0.8", {}))
    w.later(1.1)
    assert CART not in w.names("cds")
    w.apply(namespace(**AMBIENT))
    w.delete(service("cart", "10.96.0.7", {}))
    assert CART not in w.names("cds")


def test_a_binding_that_comes_back_stays() -> None:
    w = shop()
    before = w.snapshot()
    w.apply(namespace(dataplane_mode="ambient"))
    w.apply(namespace(**AMBIENT))
    w.later()
    assert w.changed(before) == {}
    assert told(w) == "wp.shop.svc.cluster.local"


def test_a_deleted_gateway_refuses() -> None:
    """Services still name it: an address that nobody has."""
    w = shop()
    w.delete(gateway())
    assert w.waypoints.snapshots == {}
    found = w.address("shop/cart.shop.svc.cluster.local")
    assert found.waypoint is not None
    assert w.condition("Service", "cart", BOUND) == (False, "WaypointIsNotReady")
    assert w.condition("Gateway", "wp", "Accepted") is None
    w.apply(gateway())
    assert w.names("eds") == {CART, PAY}
    assert w.condition("Service", "cart", BOUND) == (True, "WaypointAccepted")


def test_readiness_comes_and_goes() -> None:
    """It is a matter of status: what the waypoint serves does not change."""
    w = shop()
    before = w.snapshot()
    w.apply(wp_pod(ready=False))
    assert w.condition("Service", "cart", BOUND) == (False, "WaypointIsNotReady")
    assert w.condition("Gateway", "wp", "Programmed") == (False, "Pending")
    assert w.snapshot() is before
    w.apply(wp_pod("wp-2", ip="10.244.1.98"))
    assert w.condition("Service", "cart", BOUND) == (True, "WaypointAccepted")


def test_a_destination_rule_changes_its_cluster_only() -> None:
    w = shop()
    before = w.snapshot()
    w.translator.drain()
    w.apply(
        rule("cart", trafficPolicy={"connectionPool": {"http": {"http1MaxPendingRequests": 3}}})
    )
    assert CART in w.changed(before)["cds"]
    assert PAY not in w.changed(before)["cds"]
    assert w.condition("DestinationRule", "cart", "WaypointAccepted") == (True, "Accepted")
    w.delete(rule("cart"))
    assert w.changed(before) == {}


def virtual(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"hosts": ["cart"], **spec},
    }


def to(host: str, subset: str = "", weight: int = 100) -> dict[str, Any]:
    destination = {"host": host, **({"subset": subset} if subset else {})}
    return {"destination": destination, "weight": weight}


def test_routes_bring_what_they_send_to() -> None:
    """A service of another namespace, and a subset; both go with the route."""
    w = shop(
        namespace("far", dataplane_mode="ambient"),
        service("bank", "10.96.2.1", {"app": "bank"}, namespace="far"),
        pod("bank-1", namespace="far", ip="10.244.1.60", labels={"app": "bank"}),
        pod("cart-2", ip="10.244.1.7", labels={"app": "cart", "version": "v2"}),
        rule("cart", subsets=[{"name": "v2", "labels": {"version": "v2"}}]),
    )
    before = w.snapshot()
    split = virtual(
        http=[{"route": [to("cart", "v2", 50), to("bank.far.svc.cluster.local", "", 50)]}]
    )
    w.apply(split)
    bank, subset = (
        "outbound|80||bank.far.svc.cluster.local",
        "outbound|80|v2|cart.shop.svc.cluster.local",
    )
    changed = w.changed(before)
    assert changed["cds"] == changed["eds"] == {bank, subset}
    assert changed["rds"] == {CART_ROUTES}
    assert "lds" not in changed
    (only,) = endpoints(w, subset)
    assert "10.244.1.7" in only
    # Its endpoints follow, though it is bound to nothing.
    w.apply(pod("bank-2", namespace="far", ip="10.244.1.61", labels={"app": "bank"}))
    assert len(endpoints(w, bank)) == 2
    w.delete(split)
    assert bank not in w.names("cds")
    assert subset not in w.names("cds")


def test_pods_that_a_policy_at_the_waypoint_protects_refuse_others() -> None:
    """The policy is attached to the service's pods, names the waypoint, and goes with its cause."""
    w = shop()
    deny = policy(
        "no-writes",
        targetRefs=[{"kind": "Service", "group": "", "name": "cart"}],
        action="DENY",
        rules=[{"to": [{"operation": {"methods": ["POST"]}}]}],
    )
    w.apply(deny)
    name = "shop/waypoint_only_cart"
    assert name in w.policies()
    guarded, free = (
        w.address("Kubernetes//Pod/shop/cart-1"),
        w.address("Kubernetes//Pod/shop/pay-1"),
    )
    assert isinstance(guarded, Workload)
    assert isinstance(free, Workload)
    assert guarded.authorization_policies == (name,)
    assert free.authorization_policies == ()
    assert "ns/shop/sa/wp" in str(w.policies()[name])
    assert w.condition("AuthorizationPolicy", "no-writes", "WaypointAccepted") == (True, "Accepted")
    # A pod that joins is guarded from its first moment.
    w.apply(pod("cart-2", ip="10.244.1.7", labels={"app": "cart"}))
    joined = w.address("Kubernetes//Pod/shop/cart-2")
    assert isinstance(joined, Workload)
    assert joined.authorization_policies == (name,)
    # Without the waypoint they stay closed, now to everybody.
    w.delete(gateway())
    assert "ns/shop/sa/wp" not in str(w.policies()[name])
    w.apply(gateway())
    w.delete(deny)
    assert w.policies() == {}
    guarded = w.address("Kubernetes//Pod/shop/cart-1")
    assert isinstance(guarded, Workload)
    assert guarded.authorization_policies == ()


def own_policies(w: World, name: str) -> tuple[str, ...]:
    found = w.address(f"Kubernetes//Pod/shop/{name}")
    assert isinstance(found, Workload)
    return found.authorization_policies


def test_pods_whose_own_traffic_passes_a_waypoint_are_guarded_at_every_port() -> None:
    """Also where a Service that passes no waypoint, or another one, has them as endpoints."""
    takes = {"istio.io/waypoint-for": "workload"}
    own = gateway("own")
    own["metadata"]["labels"] = takes
    w = shop(own)
    uses = {"app": "cart", "istio.io/use-waypoint": "own"}
    for name in ("cart-1", "cart-2"):
        w.apply(pod(name, ip=f"10.244.2.{name[-1]}", labels=uses))
    assert own_policies(w, "cart-1") == ()
    w.apply(
        policy(
            "all",
            targetRefs=[{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "own"}],
            rules=[{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/x"]}}]}],
        )
    )
    (name,) = own_policies(w, "cart-1")
    assert own_policies(w, "cart-2") == (name,)
    assert own_policies(w, "pay-1") == ()
    # By its own waypoint, and by that of its Service.
    (match,) = [m for c in w.policies()[name].rules[0].clauses for m in c.matches]
    found = [m.value for m in match.not_principals]
    assert found == ["cluster.local/ns/shop/sa/own", "cluster.local/ns/shop/sa/wp"]
    # One of the two leaves, then the other: the policy goes with the last.
    w.apply(pod("cart-2", ip="10.244.2.2", labels={"app": "cart"}))
    assert own_policies(w, "cart-2") == ()
    assert set(w.policies()) == {name}
    w.delete(own)  # closed, now to everybody but the Service's waypoint
    (closed,) = own_policies(w, "cart-1")
    assert "sa/own" not in str(w.policies()[closed])
    w.apply(pod("cart-1", ip="10.244.2.1", labels={"app": "cart"}))
    assert w.policies() == {}


def test_a_policy_of_the_gateway_covers_all_that_passes_it() -> None:
    w = shop()
    before = w.snapshot()
    w.apply(
        policy(
            "all",
            targetRefs=[{"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "wp"}],
            rules=[{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/x"]}}]}],
        )
    )
    assert CART_ROUTES in w.changed(before)["rds"]
    assert set(w.policies()) == {"shop/waypoint_only_cart", "shop/waypoint_only_pay"}


def test_an_object_that_cannot_be_translated_takes_nothing_from_others(
    caplog: Any, monkeypatch: Any
) -> None:
    """A defect of the translation: that service stays as it was, and the rest goes on."""
    w = shop()
    before = w.snapshot()
    real = w.translator.__getattr__

    def broken(name: str) -> Any:
        call = real(name)

        def maybe(*args: Any) -> Any:
            if name == "bound_resources" and args[1].service.name == "cart":
                raise ValueError("a defect")
            return call(*args)

        return maybe

    monkeypatch.setattr(type(w.translator), "__getattr__", lambda self, name: broken(name))
    w.apply(
        virtual(http=[{"route": [to("pay")]}]),
        service("new", "10.96.0.9", {"app": "cart"}),
    )
    changed = w.changed(before)
    assert CART_ROUTES not in changed["rds"]
    assert "outbound|80||new.shop.svc.cluster.local" in changed["cds"]
    assert "Service shop/cart: cannot be translated" in caplog.text


def test_a_route_of_gateway_api_is_served_and_told() -> None:
    """It sends to another service; that goes with it; its status names the parent."""
    w = shop()
    w.apply(http_route(rules=[{"backendRefs": [{"name": "pay", "port": 80}]}]))
    assert PAY in str(w.resource("rds", CART_ROUTES))
    status = w.statuses[Key("HTTPRoute", "shop", "r")]
    (parent,) = status.parents
    assert {c.type: c.status for c in parent.conditions}["Accepted"] is True
    w.apply(http_route(rules=[{"backendRefs": [{"name": "nobody", "port": 80}]}]))
    (parent,) = w.statuses[Key("HTTPRoute", "shop", "r")].parents
    assert {c.type: c.status for c in parent.conditions}["ResolvedRefs"] is False
    w.apply(service("nobody", "10.96.0.30", {"app": "pay"}))
    (parent,) = w.statuses[Key("HTTPRoute", "shop", "r")].parents
    assert {c.type: c.status for c in parent.conditions}["ResolvedRefs"] is True
    w.delete(http_route())
    assert Key("HTTPRoute", "shop", "r") not in w.statuses
    assert PAY not in str(w.resource("rds", CART_ROUTES))


def test_a_class_is_told_the_features() -> None:
    spec = {"controllerName": CONTROLLER}
    w = shop({"kind": "GatewayClass", "metadata": {"name": "own"}, "spec": spec})
    status = w.statuses.get(Key("GatewayClass", "", "own"))
    assert status is not None
    assert status.fields["supportedFeatures"] == [{"name": name} for name in sorted(FEATURES)]


def test_five_thousand_routes_at_a_service() -> None:
    """All of them are served and told, and so is a change of one."""
    w = shop()
    routes = [
        http_route(
            f"r{i}",
            rules=[
                {
                    "matches": [{"path": {"type": "Exact", "value": f"/item/{i}"}}],
                    "backendRefs": [{"name": "pay", "port": 80}],
                }
            ],
        )
        for i in range(5000)
    ]
    w.apply(*routes)
    served = w.resource("rds", CART_ROUTES)["virtual_hosts"][0]["routes"]
    assert len(served) >= 5000
    told = [w.statuses[key_of(r)].parents[0].conditions for r in routes]
    assert all(c.status for conditions in told for c in conditions)
    before = w.snapshot()
    routes[0]["spec"]["rules"][0]["matches"][0]["path"]["value"] = "/another"
    w.apply(routes[0])
    assert w.changed(before) == {"rds": {CART_ROUTES}}


def telemetry(name: str, age: str, **entry: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop", "creationTimestamp": age, "generation": 1}
    return {"kind": "Telemetry", "metadata": metadata, "spec": {"accessLogging": [entry]}}


def test_telemetry_reaches_listeners_and_tells_those_that_lose() -> None:
    """An older one comes after: it counts, and the other hears of it; both follow the Gateway."""
    w = shop()
    silent = str(w.resource("lds", "main_internal"))
    assert "StdoutAccessLog" not in silent
    newer = telemetry("newer", "2026-02-02")
    w.apply(newer)
    assert "StdoutAccessLog" in str(w.resource("lds", "main_internal"))
    assert w.condition("Telemetry", "newer", "WaypointAccepted") == (True, "Accepted")
    w.apply(telemetry("older", "2026-02-01", disabled=True))
    assert str(w.resource("lds", "main_internal")) == silent
    assert w.condition("Telemetry", "older", "WaypointAccepted") == (True, "Accepted")
    assert w.condition("Telemetry", "newer", "WaypointAccepted") == (False, "Conflicted")
    w.delete(gateway())
    assert w.condition("Telemetry", "older", "WaypointAccepted") == (False, "AncestorNotBound")
    w.apply(gateway())
    assert w.condition("Telemetry", "newer", "WaypointAccepted") == (False, "Conflicted")
