"""Nearby first, through the Envoys of a waypoint with a pod in each of two zones.

The examples of docs/traffic.md about places, and trafficDistribution of a Service.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab import Lab
from tests.netns.mesh_objects import client, namespace, node
from tests.netns.page_examples import examples
from tests.netns.waypoints import NS, WAYPOINT, Shop, echo, gateway, service

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

PAGE = "traffic.md"
ZONES = {"node1": "a", "node2": "b"}
OF = {"v1": "a", "v2": "b"}  # the zones of the servers' versions


def in_zone(name: str) -> dict[str, Any]:
    found = node(name)
    found["metadata"]["labels"] = {
        "topology.kubernetes.io/region": "europe",
        "topology.kubernetes.io/zone": ZONES[name],
    }
    return found


@pytest.fixture(scope="module")
def wp() -> Iterator[Shop]:
    space = namespace(NS)
    space["metadata"]["labels"]["istio.io/use-waypoint"] = WAYPOINT
    with Lab("t-wp-places") as lab:
        lab.up(
            [
                *map(in_zone, ZONES),
                space,
                gateway(),
                *client(NS, "client", "node1"),
                echo("echo-v1", version="v1", on="node1"),
                echo("echo-v2", version="v2", on="node2"),
                service("echo", {"app": "echo"}),
            ]
        )
        lab.scale(NS, WAYPOINT, 2)
        lab.wait_ready(60)
        found = Shop(lab)
        found.until(lambda: found.ask().status == 200)
        assert set(waypoints(found).values()) == {"a", "b"}
        yield found


def waypoints(wp: Shop) -> dict[str, str]:
    """The zones of the waypoint's pods, by address."""
    label = "gateway.networking.k8s.io/gateway-name"
    return {
        p["status"]["podIP"]: ZONES[p["spec"]["nodeName"]]
        for p in wp.lab.pods()
        if (p["metadata"].get("labels") or {}).get(label) == WAYPOINT
    }


@contextmanager
def applied(wp: Shop, objects: list[dict[str, Any]]) -> Iterator[None]:
    wp.lab.apply(objects)
    try:
        yield
    finally:
        wp.lab.delete(objects)


def accepted(wp: Shop) -> bool:
    found = wp.condition("DestinationRule", "echo", "WaypointAccepted")
    return (found.get("status"), found.get("reason")) == ("True", "Accepted")


def ways(wp: Shop, times: int = 16, query: str = "") -> Counter[tuple[str, str]]:
    """(zone of the waypoint's pod that was asked, zone of the server that answered).

    One curl asks that often, each time on a connection of its own: what is ejected does not stay
    so for long. ("failed", its status) for a request that failed.
    """
    zones = waypoints(wp)
    url = f"http://echo.{NS}/?n=[1-{times}]{query}"
    options = ["-sS", "--max-time", "15", "-H", "connection: close", "-w", "\\n=%{http_code}\\n"]
    done = wp.lab.exec(f"{NS}/client", ["curl", *options, url], timeout=60)
    found: Counter[tuple[str, str]] = Counter()
    body = ""
    for line in done.stdout.splitlines():
        if line == "=200":
            seen = json.loads(body)
            found[zones[seen["peer"]], OF[seen["version"]]] += 1
        elif line.startswith("="):
            found["failed", line[1:]] += 1
        elif line:
            body = line
    assert found.total() == times, done.stderr
    return found


LOCAL = {("a", "a"), ("b", "b")}
ALL_TO_B = {("a", "b"), ("b", "b")}


def local(wp: Shop) -> bool:
    """Whether both of the waypoint's pods were asked, and sent to their own zones only."""
    return set(ways(wp)) == LOCAL


def mixed(wp: Shop) -> bool:
    return len(ways(wp, 24).keys() & {(x, y) for x in "ab" for y in "ab"}) == 4


def test_places_do_not_count_unless_asked_for(wp: Shop) -> None:
    wp.until(lambda: mixed(wp))


def test_nearby_first_and_elsewhere_when_that_is_lost(wp: Shop) -> None:
    with applied(wp, examples(PAGE)["Nearby first"]):
        wp.until(lambda: accepted(wp))
        wp.until(lambda: local(wp))
        assert set(ways(wp, 40)) == LOCAL

        # The server in zone a fails: it is ejected, by both; those who were near go elsewhere.
        bad = "&status=500&only=v1"
        wp.until(lambda: set(ways(wp, query=bad)) == ALL_TO_B, seconds=30)
        wp.until(lambda: local(wp), seconds=40)

        # It goes: the same, at once and without an ejection. It comes back.
        wp.lab.scale(NS, "echo-v1", 0)
        wp.until(lambda: set(ways(wp)) == ALL_TO_B)
        wp.lab.scale(NS, "echo-v1", 1)
        wp.lab.wait_ready(60)
        wp.until(lambda: local(wp))
    wp.until(lambda: mixed(wp))


def test_shares_of_places(wp: Shop) -> None:
    """80 of 100 stay in their zone, whichever that is."""
    with applied(wp, examples(PAGE)["Shares of places"]):
        wp.until(lambda: accepted(wp))
        wp.until(lambda: sum(n for way, n in ways(wp, 40).items() if way in LOCAL) >= 28)
        found = ways(wp, 250)
        for zone in ("a", "b"):
            asked = sum(n for (at, _), n in found.items() if at == zone)
            assert asked >= 50, found
            # Four standard deviations of 100 requests.
            assert 0.64 <= found[zone, zone] / asked <= 0.96, found
        near = sum(n for way, n in found.items() if way in LOCAL)
        assert 0.70 <= near / 250 <= 0.90, found
    wp.until(lambda: mixed(wp))


def test_traffic_distribution_of_a_service(wp: Shop) -> None:
    """As node proxies have it; a DestinationRule can say otherwise."""
    near = service("echo", {"app": "echo"})
    near["spec"]["trafficDistribution"] = "PreferSameZone"
    wp.lab.apply([near])
    try:
        wp.until(lambda: local(wp))
        rule = examples(PAGE)["Nearby first"][0]
        rule["spec"] = {
            "host": "echo",
            "trafficPolicy": {"loadBalancer": {"localityLbSetting": {"enabled": False}}},
        }
        with applied(wp, [rule]):
            wp.until(lambda: mixed(wp))
        wp.until(lambda: local(wp))
    finally:
        wp.lab.apply([service("echo", {"app": "echo"})])
    wp.until(lambda: mixed(wp))
