"""Which port a redirect's Location gets: what a browser would go to anyway is not written."""

from __future__ import annotations

from typing import Any

import pytest

from waypoint.config.envoy.matches import redirect
from waypoint.config.routing import PathMatch, Redirect, RouteMatch

MATCH = RouteMatch(path=PathMatch("segments", "/p"))


@pytest.mark.parametrize(
    ("fields", "asked", "shown"),
    [
        # Nothing said: the request's own, which its Host has unless another host is set.
        ({}, 80, None),
        ({}, 8080, None),
        ({"host": "a.b"}, 80, None),
        ({"host": "a.b"}, 8080, 8080),
        # A scheme: its own. In the Host of a request to another port than 80 it must be replaced.
        ({"scheme": "https"}, 80, None),
        ({"scheme": "https", "host": "a.b"}, 8080, None),
        ({"scheme": "https"}, 8080, 443),
        ({"scheme": "http"}, 8080, 80),
        # A port: this one, unless it is the scheme's own.
        ({"port": 8083}, 80, 8083),
        ({"port": 8083, "host": "a.b", "scheme": "https"}, 80, 8083),
        ({"port": 443, "host": "a.b", "scheme": "https"}, 8080, None),
        ({"port": 443, "host": "a.b"}, 80, 443),
        ({"port": 80, "host": "a.b"}, 8080, None),
        ({"port": 80}, 8080, 80),
        ({"port": 80}, 80, None),
    ],
)
def test_port(fields: dict[str, Any], asked: int, shown: int | None) -> None:
    assert redirect(MATCH, Redirect(**fields), asked).get("port_redirect") == shown
