"""Retries by place, by a real Envoy: whether another place is tried while this one is not lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from envoy_rig import bound, proxy, rule, to

from waypoint.config.routing import Retry


def test_retries_in_other_places(tmp_path: Path) -> None:
    """Two tries in a place, then the next one; without retryRemoteLocalities it is never left."""
    cases = {
        "stays": bound([rule(to("far"), retry=Retry(2, backoff=0.001))], 80),
        "goes": bound([rule(to("far"), retry=Retry(2, backoff=0.001, other_places=True))], 81),
        "too-few": bound([rule(to("far"), retry=Retry(1, backoff=0.001, other_places=True))], 82),
    }
    with proxy(tmp_path, cases) as wp:
        assert wp.asks("stays", "/", 40) == Counter({503: 40})
        assert wp.asks("goes", "/", 40) == Counter({200: 40})
        assert wp.asks("too-few", "/", 40) == Counter({503: 40})
