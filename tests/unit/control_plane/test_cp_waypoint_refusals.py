"""What a waypoint's Envoys refuse takes nothing from what worked, and its cause says so."""

from __future__ import annotations

from typing import Any

from cp_support import service
from wp_world import BOUND, CART, CART_ROUTES, PAY, SHORT, World, http_route, rule, shop

from control_plane.delta import Nack
from mesh.manifest import Key


def limited(pending: int) -> dict[str, Any]:
    pool = {"http": {"http1MaxPendingRequests": pending}}
    return rule("cart", trafficPolicy={"connectionPool": pool})


def answer(w: World, short: str, accepted: bool, *names: str, error: str = "no") -> bool:
    """A pod of the waypoint takes or refuses resources of the newest snapshot."""
    found = [w.snapshot().of(SHORT[short])[n] for n in names]
    if accepted:
        return w.waypoints.answered("shop/wp", found, [])
    return w.waypoints.answered("shop/wp", [], [Nack(found[0].type_url, tuple(found), error)])


def test_a_refused_cluster_stays_as_it_was_and_its_rule_says_so() -> None:
    w = shop()
    answer(w, "cds", True, CART, PAY)
    good = w.snapshot()
    w.apply(
        rule("cart", trafficPolicy={"connectionPool": {"http": {"http1MaxPendingRequests": 3}}})
    )
    assert answer(w, "cds", False, CART, error="a bad limit")
    w.later(0.0)
    assert w.changed(good) == {}
    assert w.condition("DestinationRule", "cart", "WaypointAccepted") == (False, "Invalid")
    status = w.statuses[Key("DestinationRule", "shop", "cart")]
    assert "a bad limit" in status.conditions[0].message
    assert w.waypoints.refused == 1
    # Another content is tried, and the status is its own again.
    w.apply(
        rule("cart", trafficPolicy={"connectionPool": {"http": {"http1MaxPendingRequests": 4}}})
    )
    assert "cds" in w.changed(good)
    assert w.condition("DestinationRule", "cart", "WaypointAccepted") == (True, "Accepted")
    assert w.waypoints.refused == 0


def test_refused_routes_stay_as_they_were_and_the_route_says_so() -> None:
    w = shop()
    answer(w, "rds", True, CART_ROUTES)
    good = w.snapshot()
    w.apply(http_route(rules=[{"backendRefs": [{"name": "pay", "port": 80}]}]))
    answer(w, "rds", False, CART_ROUTES, error="a bad regex")
    w.later(0.0)
    assert "rds" not in w.changed(good)
    (parent,) = w.statuses[Key("HTTPRoute", "shop", "r")].parents
    told = {c.type: c for c in parent.conditions}
    assert told["ambit.io/Programmed"].status is False
    assert "a bad regex" in told["ambit.io/Programmed"].message


def test_a_bad_part_of_the_listener_keeps_nobody_else() -> None:
    """Found by halves in a second listener; the others get theirs, the bad one stays away."""
    w = shop()
    answer(w, "lds", True, "main_internal")
    w.apply(*(service(f"s{i}", f"10.96.3.{i}", {"app": "cart"}) for i in range(8)))
    steps = 0
    while True:
        steps += 1
        assert steps < 20
        lds = w.snapshot().of(SHORT["lds"])
        name = "trial_internal" if "trial_internal" in lds else "main_internal"
        bad = "10.96.3.5" in str(w.resource("lds", name))
        again = answer(w, "lds", not bad, name, error="a bad filter")
        w.later(0.0)
        if not again and not bad:
            break
    listener = str(w.resource("lds", "main_internal"))
    assert all((f"10.96.3.{i}" in listener) == (i != 5) for i in range(8))
    assert "trial_internal" not in w.names("lds")
    assert w.condition("Service", "s5", BOUND) == (False, "Invalid")
    assert w.condition("Service", "s4", BOUND) == (True, "WaypointAccepted")
