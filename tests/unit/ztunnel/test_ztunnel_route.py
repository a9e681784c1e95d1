"""The outbound decision, rule by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.model import Gateway, LoadBalancing, Locality, Port, Service, Tunnel, Workload
from ztunnel.ipc import Peer, Route
from ztunnel.route import Router
from ztunnel.state import Effects, State

CLIENT = Workload(
    "c//Pod/shop/client",
    "client",
    "shop",
    ("10.244.1.2", "fd00::2"),
    "client",
    tunnel=Tunnel.HBONE,
    node="n1",
    locality=Locality("r1", "z1", "s1"),
)
WEB = Service(
    "web", "shop", "web.shop", vips=("10.96.0.1", "fd00:96::1"), ports=(Port(80, 8080), Port(81, 0))
)


def web(number: int, **changes: object) -> Workload:
    values: dict[str, object] = {
        "uid": f"c//Pod/shop/web-{number}",
        "name": f"web-{number}",
        "addresses": (f"10.244.2.{number}", f"fd00:2::{number}"),
        "service_account": "web",
        "node": "n2",
        "services": {WEB.key: (Port(80, 8080),)},
    }
    return replace(CLIENT, **{**values, **changes})  # type: ignore[arg-type]


def router(*values: Workload | Service) -> Router:
    state = State()
    for v in (CLIENT, *values):
        state.set_address(v.uid if isinstance(v, Workload) else v.key, v, Effects())
    return Router(state)


def to(r: Router, ip: str = "10.96.0.1", port: int = 80, source: Workload = CLIENT) -> Route:
    return r.route(source, ip, port)


def names(route: Route) -> list[str]:
    return sorted(e.peer.pod for e in route.endpoints)


# ---- services ----------------------------------------------------------------------------------


def test_service_over_hbone() -> None:
    """To the pod's 15008, authority its own address and port, its identity and the service's."""
    san = "spiffe://cluster.local/ns/shop/sa/extra"
    r = router(replace(WEB, subject_alt_names=(san,)), web(1))
    route = to(r)
    (e,) = route.endpoints
    assert e.hbone
    assert e.tunnel_address == ("10.244.2.1", 15008)
    assert e.address == ("10.244.2.1", 8080)
    assert e.authority == "10.244.2.1:8080"
    assert e.identities == ("spiffe://cluster.local/ns/shop/sa/web", san)
    assert route.service is not None
    assert route.service.hostname == "web.shop"
    assert e.peer.identity == "spiffe://cluster.local/ns/shop/sa/web"


def test_workload_without_hbone_is_dialled_plainly() -> None:
    """No tunnel, nobody's identity."""
    (e,) = to(router(WEB, web(1, tunnel=Tunnel.NONE))).endpoints
    assert not e.hbone
    assert e.address == ("10.244.2.1", 8080)
    assert e.identities == ()


def test_v6_vip_goes_to_v6_endpoints() -> None:
    """The family that was asked for; the authority is bracketed."""
    (e,) = to(router(WEB, web(1)), "fd00:96::1").endpoints
    assert e.authority == "[fd00:2::1]:8080"


def test_family_restriction_of_the_service_beats_the_clients() -> None:
    """IPV4_ONLY never gives a v6 endpoint; one without any allowed address is left out."""
    r = router(replace(WEB, ip_families=1), web(1), web(2, addresses=("fd00:2::2",)))
    (e,) = to(r, "fd00:96::1").endpoints
    assert e.address[0] == "10.244.2.1"


def test_port_that_the_service_lacks_is_refused() -> None:
    """Named with the service and the port."""
    route = to(router(WEB, web(1)), port=8080)
    assert route.error == (
        "no healthy upstream: 10.96.0.1:8080 (service shop/web.shop has no port 8080)"
    )
    assert not route.passthrough


@pytest.mark.parametrize(
    "values",
    [(), (web(1, healthy=False),), (web(1, addresses=()),), (web(1, network="far"),)],
    ids=["none", "unhealthy", "without address", "on another network"],
)
def test_service_without_endpoint_is_refused(values: tuple[Workload, ...]) -> None:
    """Never sent on to the VIP."""
    route = to(router(WEB, *values))
    assert "no healthy upstream: 10.96.0.1:80" in route.error
    assert route.endpoints == ()


def test_unhealthy_endpoints_count_where_the_service_says_so() -> None:
    """ALLOW_ALL (publishNotReadyAddresses)."""
    r = router(replace(WEB, load_balancing=LoadBalancing(health_policy=1)), web(1, healthy=False))
    assert names(to(r)) == ["web-1"]


def test_weights_and_all_endpoints_without_preference() -> None:
    """Every usable endpoint, with its capacity as weight."""
    route = to(router(WEB, web(1, capacity=3), web(2)))
    assert sorted(e.weight for e in route.endpoints) == [1, 3]


NEAR = web(1, node="n1")
ZONE = web(2)
FAR = web(3, locality=Locality("r1", "z2", "s1"))


@pytest.mark.parametrize(
    ("mode", "scopes", "endpoints", "expected"),
    [
        (2, (1, 2, 3, 4), (NEAR, ZONE, FAR), ["web-1"]),
        (2, (1, 2), (NEAR, ZONE, FAR), ["web-1", "web-2"]),
        (2, (1, 2), (FAR,), ["web-3"]),
        (1, (1, 2), (NEAR, ZONE, FAR), ["web-1", "web-2"]),
        (1, (1, 2), (FAR,), []),
        (2, (99,), (NEAR, FAR), ["web-1", "web-3"]),
        (0, (4,), (NEAR, FAR), ["web-1", "web-3"]),
    ],
    ids=["node", "zone", "fall back", "strict", "strict none", "unknown scope", "no mode"],
)
def test_locality(
    mode: int, scopes: tuple[int, ...], endpoints: tuple[Workload, ...], expected: list[str]
) -> None:
    """FAILOVER takes the best there is, STRICT only what agrees in everything."""
    r = router(replace(WEB, load_balancing=LoadBalancing(scopes, mode)), *endpoints)
    assert names(to(r)) == expected


def test_passthrough_service_goes_where_the_client_asked() -> None:
    """ServiceEntry resolution NONE: the client's own address, the service's name in the labels."""
    r = router(replace(WEB, load_balancing=LoadBalancing(mode=3)))
    route = to(r)
    assert route.passthrough
    assert route.service is not None
    assert route.service.name == "web"


# ---- waypoints ---------------------------------------------------------------------------------

WAYPOINT = Gateway(15008, namespace="shop", hostname="wp.shop")
WP_SERVICE = Service("wp", "shop", "wp.shop", vips=("10.96.0.9",), ports=(Port(15008, 15008),))
WP_POD = web(9, name="wp", service_account="wp", tunnel=Tunnel.NONE, services={WP_SERVICE.key: ()})


def test_service_with_a_waypoint_goes_through_it() -> None:
    """HBONE to the waypoint even though it says TCP; it is told the VIP."""
    route = to(router(replace(WEB, waypoint=WAYPOINT), web(1), WP_SERVICE, WP_POD))
    (e,) = route.endpoints
    assert e.hbone
    assert e.tunnel_address == ("10.244.2.9", 15008)
    assert e.authority == "10.96.0.1:80"
    assert e.identities == ("spiffe://cluster.local/ns/shop/sa/wp",)
    assert e.peer.pod == "wp"


def test_waypoint_by_address() -> None:
    """A gateway may be an address: of a service, or of a pod."""
    by_vip = replace(WEB, waypoint=Gateway(15008, address="10.96.0.9"))
    by_pod = replace(WEB, waypoint=Gateway(15009, address="10.244.2.9"))
    assert to(router(by_vip, WP_SERVICE, WP_POD)).endpoints[0].tunnel_address[1] == 15008
    assert to(router(by_pod, WP_POD)).endpoints[0].tunnel_address == ("10.244.2.9", 15009)


@pytest.mark.parametrize("there", [(), (WP_SERVICE,), (WP_SERVICE, replace(WP_POD, healthy=False))])
def test_missing_waypoint_refuses(there: tuple[Workload | Service, ...]) -> None:
    """Fail closed: not there, without endpoints, or unhealthy; nothing goes around it."""
    route = to(router(replace(WEB, waypoint=WAYPOINT), web(1), *there))
    assert route.endpoints == ()
    assert not route.passthrough
    assert route.error.startswith("unknown waypoint: shop/wp.shop")


def test_workload_waypoint_for_pod_addresses_only() -> None:
    """Called by its address through its waypoint; as an endpoint of a service directly."""
    pod = web(1, waypoint=WAYPOINT)
    r = router(WEB, pod, WP_SERVICE, WP_POD)
    assert to(r, "10.244.2.1", 8080).endpoints[0].authority == "10.244.2.1:8080"
    assert to(r, "10.244.2.1", 8080).endpoints[0].peer.pod == "wp"
    assert to(r).endpoints[0].peer.pod == "web-1"


def test_waypoint_itself_goes_straight_to_the_workload() -> None:
    """Else it would call itself for ever."""
    r = router(web(1, waypoint=WAYPOINT), WP_SERVICE, WP_POD)
    assert to(r, "10.244.2.1", 8080, source=WP_POD).endpoints[0].peer.pod == "web-1"


# ---- workloads and the rest --------------------------------------------------------------------


def test_pod_address() -> None:
    """A headless service's pod, or any pod: to its own port."""
    (e,) = to(router(web(1)), "10.244.2.1", 5432).endpoints
    assert e.authority == "10.244.2.1:5432"
    assert e.tunnel_address == ("10.244.2.1", 15008)


def test_unknown_destination_is_passed_through() -> None:
    """What the mesh does not know is not the mesh's."""
    assert to(router(), "93.184.216.34", 443) == Route(passthrough=True)


def test_peer_lookup() -> None:
    """A known address has a name; an unknown one none."""
    r = router(web(1))
    assert r.peer("10.244.2.1").pod == "web-1"
    assert r.peer("1.2.3.4") == Peer()


# ---- what answers rest on ----------------------------------------------------------------------


def stale(r: Router, value: Workload | Service | None, name: str) -> bool:
    effects = Effects()
    if value is None:
        r._state.remove_address(name, effects)
    else:
        r._state.set_address(name, value, effects)
    return r.uses.stale(effects)


def test_unrelated_changes_forget_nothing() -> None:
    """In a busy cluster most changes concern nobody here."""
    r = router(WEB, web(1))
    to(r)
    stranger = web(7, addresses=("10.9.9.9",), services={})
    assert not stale(r, stranger, stranger.uid)


@pytest.mark.parametrize("change", ["endpoint", "gone", "service", "new endpoint", "was unknown"])
def test_changes_that_matter_are_seen(change: str) -> None:
    """Anything an answer rested on, misses included."""
    r = router(WEB, web(1))
    to(r)
    to(r, "10.50.0.1", 80)
    unknown = web(8, addresses=("10.50.0.1",), services={})
    value, name = {
        "endpoint": (web(1, capacity=5), web(1).uid),
        "gone": (None, web(1).uid),
        "service": (replace(WEB, ports=()), WEB.key),
        "new endpoint": (web(2), web(2).uid),
        "was unknown": (unknown, unknown.uid),
    }[change]
    assert stale(r, value, name)


def test_waypoint_that_appears_is_seen() -> None:
    """A refusal for want of a waypoint is forgotten when the waypoint comes."""
    r = router(replace(WEB, waypoint=WAYPOINT))
    to(r)
    assert stale(r, WP_SERVICE, WP_SERVICE.key)


def test_after_forgetting_nothing_is_stale() -> None:
    """Workers that hold no answers need no Forget."""
    r = router(WEB, web(1))
    to(r)
    r.uses.clear()
    assert not stale(r, web(1, capacity=2), web(1).uid)
