"""CORS at the real Envoy: who is let in, and which headers a preflight may have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from envoy_rig import Proxy, bound, proxy, rule

from waypoint.config.routing import Cors, PathMatch, RouteMatch, TextMatch


def under(path: str) -> RouteMatch:
    return RouteMatch(path=PathMatch("segments", path))


RULES = [
    rule(
        match=under("/echo"),
        cors=Cors(
            (TextMatch("exact", "https://a.example"),),
            ("GET",),
            credentials=True,
            echo_headers=True,
        ),
    ),
    rule(
        match=under("/strict"),
        cors=Cors(
            origins=(
                TextMatch("exact", "https://a.example"),
                TextMatch("regex", r"https://.*\.b\.example"),
            ),
            methods=("GET", "PUT"),
            request_headers=("x-h",),
            expose_headers=("x-app",),
            max_age=60,
            credentials=True,
            forward_unmatched=False,
        ),
    ),
]


@pytest.fixture(scope="module")
def wp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy(tmp_path_factory.mktemp("envoy"), {"cors": bound(RULES)}) as running:
        yield running


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://a.example", True),
        ("https://x.b.example", True),
        ("https://x.b.example.evil", False),
        ("http://a.example", False),
    ],
)
def test_cors(wp: Proxy, origin: str, allowed: bool) -> None:
    asked = [("origin", origin), ("access-control-request-method", "PUT")]
    preflight = wp.ask("cors", "/strict", "OPTIONS", asked)
    assert not preflight.app  # answered here
    simple = wp.ask("cors", "/strict", headers=asked[:1])
    assert simple.app == "a"
    if allowed:
        got = {k: v for k, v in preflight.headers.items() if k.startswith("access-control-")}
        assert got == {
            "access-control-allow-origin": origin,
            "access-control-allow-credentials": "true",
            "access-control-allow-methods": "GET,PUT",
            "access-control-allow-headers": "x-h",
            "access-control-expose-headers": "x-app",
            "access-control-max-age": "60",
        }
        assert simple.headers["access-control-allow-origin"] == origin
        assert simple.headers["access-control-expose-headers"] == "x-app"
    else:
        assert "access-control-allow-origin" not in preflight.headers
        assert "access-control-allow-origin" not in simple.headers


def test_cors_with_credentials_allows_the_headers_that_are_asked_for(wp: Proxy) -> None:
    """Never a star, and nothing where nothing is asked for."""
    asked = [("origin", "https://a.example"), ("access-control-request-method", "GET")]
    more = [("access-control-request-headers", "x-one,x-two")]
    preflight = wp.ask("cors", "/echo", "OPTIONS", asked + more)
    assert not preflight.app
    assert preflight.headers["access-control-allow-headers"] == "x-one,x-two"
    assert preflight.headers["access-control-allow-credentials"] == "true"
    bare = wp.ask("cors", "/echo", "OPTIONS", asked)
    assert bare.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-headers" not in bare.headers
    assert "access-control-allow-headers" not in wp.ask("cors", "/echo", headers=asked[:1]).headers
