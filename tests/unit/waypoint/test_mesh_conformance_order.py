"""Which rule takes a request that several match: the suite's cases and the text of the API."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from tests.unit.waypoint.mesh_conformance import Mesh
from tests.unit.waypoint.mesh_conformance_objects import header, mesh, query, route, to, under


def rule(number: int, *matches: dict[str, Any]) -> dict[str, Any]:
    """A rule to one of echo, echo-v1 and echo-v2, told apart by number 0, 1, 2."""
    return {"matches": list(matches), **to(("echo", "echo-v1", "echo-v2")[number], 80)}


def exact(path: str) -> dict[str, Any]:
    return {"path": {"type": "Exact", "value": path}}


def method(name: str) -> dict[str, Any]:
    return {"method": name}


def colour(value: str) -> dict[str, Any]:
    return {"headers": [{"name": "color", "value": value}]}


def taken(m: Mesh, path: str = "/", **how: Any) -> int:
    """Which of the three took it; -1 is none."""
    backend = m.ask("echo", path, **how).backend.partition(":")[0]
    return {"echo": 0, "echo-v1": 1, "echo-v2": 2}.get(backend, -1)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/match/exact/one", 0),
        ("/match/exact", 2),
        ("/match", 1),
        ("/match/prefix/one/any", 2),
        ("/match/prefix/any", 1),
        ("/match/any", 0),
        ("/other", -1),
    ],
)
def test_path_match_order(path: str, number: int) -> None:
    """Exact paths come before prefixes, longer prefixes before shorter ones."""
    m = mesh(
        route(
            rule(1, exact("/match")),
            rule(2, exact("/match/exact")),
            rule(0, exact("/match/exact/one")),
            rule(0, under("/match/")),
            rule(1, under("/match/prefix/")),
            rule(2, under("/match/prefix/one")),
        )
    )
    assert taken(m, path) == number


@pytest.fixture(scope="module")
def methods() -> Mesh:
    version = {"headers": [{"name": "version", "value": "four"}]}
    return mesh(
        route(
            rule(1, method("POST")),
            rule(2, method("GET")),
            rule(1, {**under("/path1"), **method("GET")}),
            rule(2, {**header("one"), **method("PUT")}),
            rule(0, {**under("/path2"), **header("two"), **method("POST")}),
            rule(
                1,
                {**under("/path3"), **method("PATCH")},
                {**under("/path4"), **header("three"), **method("DELETE")},
            ),
            rule(1, under("/path5")),
            rule(2, method("PATCH")),
            rule(0, version),
        )
    )


@pytest.mark.parametrize(
    ("path", "asked", "version", "number"),
    [
        ("/", "POST", "", 1),
        ("/", "GET", "", 2),
        ("/", "HEAD", "", -1),
        ("/path1", "GET", "", 1),
        ("/", "PUT", "one", 2),
        ("/path2", "POST", "two", 0),
        ("/path3", "PATCH", "", 1),
        ("/path4", "DELETE", "three", 1),
        ("/", "PUT", "", -1),
        ("/path4", "DELETE", "", -1),
        ("/path5", "PATCH", "", 1),
        ("/", "PATCH", "four", 2),
    ],
)
def test_method_matching(methods: Mesh, path: str, asked: str, version: str, number: int) -> None:
    """A path's length counts before a method, a method before headers."""
    headers = {"version": version} if version else {}
    assert taken(methods, path, method=asked, headers=headers) == number


@pytest.mark.parametrize(
    ("headers", "number"),
    [
        ({"version": "one"}, 1),
        ({"version": "two"}, 2),
        ({"version": "two", "color": "orange"}, 1),
        ({"color": "blue"}, 1),
        ({"color": "green"}, 1),
        ({"color": "red"}, 2),
        ({"color": "yellow"}, 2),
        ({"color": "purple"}, -1),
        ({"version": "three"}, -1),
        ({}, -1),
    ],
)
def test_header_matching(headers: dict[str, str], number: int) -> None:
    """All headers of one match must be there, and more of them come first."""
    both = {"headers": [{"name": "Version", "value": "two"}, *colour("orange")["headers"]]}
    m = mesh(
        route(
            rule(1, header("one")),
            rule(2, header("two")),
            rule(1, both),
            rule(1, colour("blue"), colour("green")),
            rule(2, colour("red"), colour("yellow")),
        )
    )
    assert taken(m, headers=headers) == number


def test_the_first_of_two_equal_header_names_counts() -> None:
    """Names are compared without case; a second entry for a name must be ignored."""
    twice = {"headers": [{"name": "version", "value": "one"}, {"name": "VERSION", "value": "two"}]}
    m = mesh(route(rule(1, twice)))
    assert taken(m, headers={"version": "one"}) == 1
    assert taken(m, headers={"version": "two"}) == -1


def test_exact_path_matching() -> None:
    """An exact path is that path, without what follows it and in its own case."""
    m = mesh(route(rule(1, exact("/one")), rule(2, exact("/two"))))
    assert [taken(m, p) for p in ("/one", "/two", "/one/", "/one/more", "/One", "/")] == [
        1,
        2,
        -1,
        -1,
        -1,
        -1,
    ]


def test_matching_across_routes() -> None:
    """Rules of several routes are ordered as if they were one route's."""
    one = route(rule(1, under("/"), header("one")), name="part1")
    two = route(rule(2, under("/v2"), header("two")), name="part2")
    for texts in permutations((one, two)):
        m = mesh(*texts)
        assert taken(m, "/") == 1
        assert taken(m, "/example", headers={"version": "one"}) == 1
        assert taken(m, "/v2/example") == 2
        assert taken(m, "/", headers={"version": "two"}) == 2


# What decides, each by more than everything below it. All match the request of the test below.
_LADDER = (
    {**exact("/a/b")},
    {**under("/a/b")},
    {**under("/a"), **method("GET")},
    {**under("/a"), "headers": [{"name": n, "value": "1"} for n in "xy"]},
    {**under("/a"), **colour("red")},
    {**under("/a"), "queryParams": [{"name": n, "value": "1"} for n in "pq"]},
    {**under("/a"), **query("dog")},
    {**under("/a")},
)


@pytest.mark.parametrize("at", range(len(_LADDER) - 1))
@pytest.mark.parametrize("of_one_route", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
def test_what_decides(at: int, of_one_route: bool, reverse: bool) -> None:
    """Exact path, length of prefix, method, number of headers, number of query parameters: what
    comes earlier decides, whatever is written first and whichever route is older.
    """
    rules = [rule(1, _LADDER[at]), rule(2, _LADDER[at + 1])]
    if reverse:
        rules.reverse()
    if of_one_route:
        m = mesh(route(*rules))
    else:
        m = mesh(
            route(rules[0], name="a", created="2026-01-01T00:00:00Z"),
            route(rules[1], name="b", created="2026-02-01T00:00:00Z"),
        )
    path = "/a/b?p=1&q=1&animal=dog"
    assert taken(m, path, headers={"x": "1", "y": "1", "color": "red"}) == 1


def test_ties_go_to_the_oldest_route() -> None:
    """Of equal matches the older route's wins, then the first by namespace/name."""
    old, new = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
    for texts in permutations(
        (route(to("echo-v1"), name="z", created=old), route(to("echo-v2"), name="a", created=new))
    ):
        assert taken(mesh(*texts)) == 1
    for texts in permutations(
        (route(to("echo-v1"), name="a", created=old), route(to("echo-v2"), name="b", created=old))
    ):
        assert taken(mesh(*texts)) == 1


def test_ties_within_a_route_go_to_the_first_rule() -> None:
    """Of equal matches of one route the first rule's wins."""
    assert taken(mesh(route(to("echo-v1"), to("echo-v2")))) == 1
    assert taken(mesh(route(to("echo-v2"), to("echo-v1")))) == 2
