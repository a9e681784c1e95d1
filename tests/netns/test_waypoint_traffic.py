"""The examples of docs/traffic.md, applied to the lab and tried with requests through Envoy."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab import Lab
from tests.netns.mesh_objects import client, namespace
from tests.netns.page_examples import examples
from tests.netns.waypoints import NS, Answer, Shop, echo, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

PAGE = "traffic.md"
Apply = Callable[..., None]
_USED: set[str] = set()


@pytest.fixture(scope="module")
def wp() -> Iterator[Shop]:
    with Lab("t-wp-traffic") as lab:
        lab.up(
            [
                *shop(),
                echo("echo-v3", app="other", version="v3", on="node1"),
                namespace("visitors"),
                *client("visitors", "visitor", "node1"),
            ]
        )
        found = Shop(lab)
        found.until(lambda: found.ask().status == 200)
        yield found


@pytest.fixture
def example(wp: Shop) -> Iterator[Apply]:
    """Apply an example of the page (and what is given besides); take it away after the test."""
    applied: list[dict[str, Any]] = []

    def do(heading: str, *more: dict[str, Any]) -> None:
        _USED.add(heading)
        objects = [*examples(PAGE)[heading], *more]
        applied.extend(objects)
        wp.lab.apply(objects)
        for obj in objects:
            wp.until(lambda o=obj: accepted(wp, o))  # type: ignore[misc]

    yield do
    wp.lab.delete(applied)
    wp.until(lambda: plain(wp))


def accepted(wp: Shop, obj: dict[str, Any]) -> bool:
    found = wp.condition(obj["kind"], obj["metadata"]["name"], "WaypointAccepted")
    return found.get("status") == "True" and found["reason"] == "Accepted"


def plain(wp: Shop) -> bool:
    """Whether no example is in effect any more: both versions answer, as they are asked."""
    seen = {a.seen["version"] for a in wp.asks(8, "/plain") if a.status == 200}
    return seen == {"v1", "v2"}


def versions(answers: list[Answer]) -> Counter[str]:
    return Counter(a.seen["version"] for a in answers if a.status == 200)


def burst(wp: Shop, path: str, times: int, *curl: str, parallel: bool = True) -> Counter[int]:
    """Many requests by one curl; returns how often each status came."""
    marks = ["-w", "%{http_code}\\n", "-o", "/dev/null", "-sS", "--max-time", "15"]
    together = ["-Z", "--parallel-immediate", "--parallel-max", str(times)] if parallel else []
    url = f"http://echo.{NS}{path}{'&' if '?' in path else '?'}n=[1-{times}]"
    done = wp.lab.exec(f"{NS}/client", ["curl", *marks, *together, *curl, url], timeout=60)
    return Counter(int(line) for line in done.stdout.split())


# ---- where requests go -------------------------------------------------------------------------


def test_canary(wp: Shop, example: Apply) -> None:
    """Nine in ten to v1; then all to v2, while requests go on without an error."""
    example("Canary")
    wp.until(lambda: versions(wp.asks(6))["v1"] >= 4)
    seen = versions(wp.asks(100))
    assert seen["v1"] + seen["v2"] == 100
    assert 1 <= seen["v2"] <= 30, seen
    shifted = copy.deepcopy(examples(PAGE)["Canary"][1])
    shares = shifted["spec"]["http"][0]["route"]
    shares[0]["weight"], shares[1]["weight"] = 0, 100
    wp.lab.apply([shifted])
    deadline = time.monotonic() + 15
    while versions(wp.asks(5)) != {"v2": 5}:  # every one of them is answered
        assert time.monotonic() < deadline
    assert versions(wp.asks(20)) == {"v2": 20}


def test_by_header_or_cookie(wp: Shop, example: Apply) -> None:
    example("A/B by header or cookie")
    wp.until(lambda: versions(wp.asks(4)) == {"v1": 4})
    for headers, version in (
        ({}, "v1"),
        ({"x-group": "beta"}, "v2"),
        ({"x-group": "betamax"}, "v1"),
        ({"cookie": "group=beta"}, "v2"),
        ({"cookie": "a=b; group=beta; c=d"}, "v2"),
        ({"cookie": "group=beta2"}, "v1"),
    ):
        assert versions(wp.asks(3, headers=headers)) == {version: 3}, headers


def test_by_caller(wp: Shop, example: Apply) -> None:
    example("By caller")
    visitor = "visitors/visitor"
    wp.until(lambda: wp.ask("/internal/x", who=visitor).status == 403)
    assert wp.ask("/internal/x", who=visitor).body == "not for you\n"
    assert wp.ask("/internal/x").status == 200
    assert wp.ask("/other", who=visitor).status == 200


def test_rewrite_redirect_and_headers(wp: Shop, example: Apply) -> None:
    example("Rewrite, redirect and headers")
    wp.until(lambda: wp.ask("/old/a").status == 308)
    assert wp.ask("/old/a/b?c=d").headers["location"] == [f"http://echo.{NS}/new/a/b?c=d"]
    assert wp.ask("/users/12/name").seen["path"] == "/u/12/name"
    answer = wp.ask("/api/x", headers={"x-secret": "s", "x-from": "me"})
    seen = {k.lower(): v for k, v in answer.seen["headers"].items()}
    assert answer.seen["path"] == "/x"
    assert seen["host"] == "api.example.com"
    assert seen["x-from"] == "waypoint"
    assert "x-secret" not in seen
    assert answer.headers["x-served-by"] == ["waypoint"]


def test_delegation(wp: Shop, example: Apply) -> None:
    example("Delegation")
    wp.until(lambda: wp.ask("/team/blue").body == "blue\n")
    assert wp.ask("/team/red").seen["version"] == "v2"
    assert wp.ask("/else").seen["version"] == "v1"


# ---- when things go wrong ----------------------------------------------------------------------


def test_timeouts(wp: Shop, example: Apply) -> None:
    example("Timeouts")
    wp.until(lambda: wp.ask("/?delay=2").status == 504)
    answer = wp.ask("/?delay=3")
    assert answer.status == 504
    assert 0.4 < answer.seconds < 2
    assert wp.ask("/?delay=0.1").status == 200


def test_retries_hide_a_flaky_backend(wp: Shop, example: Apply) -> None:
    assert wp.ask("/?flaky=9&id=before").status == 503
    example("Retries")
    wp.until(lambda: wp.ask(f"/?flaky=1&id=probe-{time.monotonic()}").status == 200)
    # Every server fails the first request of an id; nobody sees that.
    assert all(wp.ask(f"/?flaky=1&id=r{i}").status == 200 for i in range(20))
    assert wp.ask("/?flaky=9&id=too-many").status == 503


def test_a_circuit_breaker_opens_and_closes(wp: Shop, example: Apply) -> None:
    assert burst(wp, "/?delay=0.5", 20) == {200: 20}
    example("Circuit breaker")
    # Envoy's workers each count their own: with few of them most of a burst is beyond the limits.
    wp.until(lambda: burst(wp, "/?delay=0.5", 20)[503] >= 10)
    refused = [a for a in wp.asks(1) if a.status == 503]
    assert not refused  # closed again: there is room
    assert burst(wp, "/", 10, parallel=False) == {200: 10}
    headers = ["-H", "x-a: b"]
    assert burst(wp, "/?delay=0.5", 20, *headers)[200] >= 1  # open, but not shut


def test_outliers_are_ejected_and_come_back(wp: Shop, example: Apply) -> None:
    example("Outlier ejection")
    bad = "/?status=500&only=v2"
    # Until v2 is out: three failures in a row, and then none.
    wp.until(lambda: burst(wp, bad, 10, parallel=False) == {200: 10})
    assert versions(wp.asks(10)) == {"v1": 10}
    started = time.monotonic()
    wp.until(lambda: versions(wp.asks(6)).get("v2", 0) > 0, seconds=30)
    assert time.monotonic() - started > 1  # it was out for a while


def test_fault_injection(wp: Shop, example: Apply) -> None:
    example("Fault injection")
    slow = {"x-chaos": "slow"}
    wp.until(lambda: wp.ask(headers=slow).seconds > 0.65)
    delays = [wp.ask(headers=slow).seconds for _ in range(4)]
    assert all(0.65 < seconds < 3 for seconds in delays), delays
    assert wp.ask(headers=slow).status == 200
    broken = burst(wp, "/", 60, "-H", "x-chaos: broken")
    assert broken[200] + broken[503] == 60
    assert 12 <= broken[503] <= 48, broken
    assert burst(wp, "/", 20) == {200: 20}
    assert wp.ask().seconds < 0.5


# ---- more than one answer ----------------------------------------------------------------------


def test_mirror(wp: Shop, example: Apply) -> None:
    example("Mirror")
    wp.until(lambda: versions(wp.asks(4)) == {"v1": 4})
    before = requests_of(wp, "echo-v2")
    assert versions(wp.asks(10, "/mirrored")) == {"v1": 10}
    wp.until(lambda: requests_of(wp, "echo-v2") >= before + 10)


def requests_of(wp: Shop, name: str) -> int:
    """How many requests a version has had."""
    return int(wp.ask("/count", host=f"{name}.{NS}").seen["requests"])


def test_cors(wp: Shop, example: Apply) -> None:
    example("CORS")

    def preflight(origin: str, method: str = "PUT") -> Answer:
        headers = {"origin": origin, "access-control-request-method": method}
        return wp.ask("/", "-X", "OPTIONS", headers=headers)

    allowed = "access-control-allow-origin"
    wp.until(lambda: allowed in preflight("https://shop.example.com").headers)
    answer = preflight("https://shop.example.com")
    assert answer.status == 200
    assert answer.body == ""  # the waypoint's own
    assert answer.headers[allowed] == ["https://shop.example.com"]
    assert answer.headers["access-control-allow-methods"] == ["GET,PUT"]
    assert answer.headers["access-control-allow-headers"] == ["x-token"]
    assert answer.headers["access-control-max-age"] == ["3600"]
    assert answer.headers["access-control-allow-credentials"] == ["true"]
    assert allowed in preflight("https://a.dev.example.com").headers
    assert allowed not in preflight("https://evil.example.net").headers
    plain_request = wp.ask(headers={"origin": "https://shop.example.com"})
    assert plain_request.status == 200
    assert plain_request.headers[allowed] == ["https://shop.example.com"]


# ---- which endpoint ----------------------------------------------------------------------------


def test_balancing(wp: Shop, example: Apply) -> None:
    example("Balancing")

    def even() -> bool:
        seen = versions(wp.asks(12))
        return abs(seen["v1"] - seen["v2"]) <= 4

    wp.until(even)


def test_consistent_hash(wp: Shop, example: Apply) -> None:
    example("Consistent hash")
    users = [f"user-{i}" for i in range(16)]

    def where(user: str) -> set[str]:
        return {a.seen["pod"] for a in wp.asks(3, headers={"x-user": user})}

    wp.until(lambda: all(len(where(user)) == 1 for user in users[:4]))
    places = [where(user) for user in users]
    assert all(len(found) == 1 for found in places)  # always the same
    assert len(set.union(*places)) == 2  # and not all of them the same
    assert [where(user) for user in users[:6]] == places[:6]


# ---- mistakes ----------------------------------------------------------------------------------


def test_a_mistake_is_told_and_the_rest_holds(wp: Shop, example: Apply) -> None:
    example("Timeouts")
    broken = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "broken", "namespace": NS},
        "spec": {
            "hosts": ["echo"],
            "http": [
                {
                    "match": [{"uri": {"regex": "(?=x)"}}],
                    "directResponse": {"status": 500},
                },
                {
                    "match": [{"uri": {"prefix": "/odd"}}],
                    "route": [
                        {"destination": {"host": "echo"}, "weight": 1},
                        {"destination": {"host": "nowhere"}, "weight": 1},
                    ],
                },
            ],
        },
    }
    wp.lab.apply([broken])
    try:
        told = wp.until(lambda: wp.condition("VirtualService", "broken", "WaypointAccepted"))
        assert (told["status"], told["reason"]) == ("True", "PartiallyInvalid")
        assert "spec.http[0].match[0].uri.regex" in told["message"]
        assert "there is no service nowhere.shop.svc.cluster.local" in told["message"]
        assert wp.ask("/?delay=2").status == 504  # the other object's rule
        assert wp.ask("/x").status == 200
    finally:
        wp.lab.delete([broken])


def test_every_example_of_the_page_is_tried() -> None:
    """Those above, when the whole file runs."""
    tried = {
        "Canary", "A/B by header or cookie", "By caller", "Rewrite, redirect and headers",
        "Delegation", "Timeouts", "Retries", "Circuit breaker", "Outlier ejection",
        "Fault injection", "Mirror", "CORS", "Balancing", "Consistent hash",
    }  # fmt: skip
    places = {"Nearby first", "Shares of places"}  # test_waypoint_places.py
    assert set(examples(PAGE)) == tried | places
    assert not _USED or tried >= _USED
