"""Memory of the proxies: idle, with idle connections open, and after they are gone."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench import hold, usage
from bench.errors import BenchError
from bench.pods import stop
from bench.world import Way

CONNECTIONS: Final = 500
_SETTLE_SECONDS: Final = 2.0


def snapshot(way: Way) -> dict[str, dict[str, float]]:
    """RSS and PSS in MiB of the proxies of each node or pod."""
    sides = {}
    for side, pids in way.sides().items():
        memory = usage.memory(pids)
        sides[side] = {"rss_mib": memory.rss / 2**20, "pss_mib": memory.pss / 2**20}
    return sides


@contextlib.contextmanager
def held_connections(way: Way, server: str, count: int, scratch: Path) -> Iterator[None]:
    """Hold idle connections that have each carried one request."""
    host, port, _ = way.target(server)
    command = [sys.executable, hold.__file__, host, str(port), str(count)]
    process = way.client.start(command, scratch)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if line.strip() != f"held {count}":
            raise BenchError(
                f"{way.name}: could not hold {count} connections: {scratch.read_text()[-300:]}"
            )
        yield
    finally:
        stop([process])


def profile(way: Way, log: Path) -> dict[str, Any]:
    """Measure a way whose proxies have done nothing yet but be verified."""
    found: dict[str, Any] = {"idle": snapshot(way)}
    with held_connections(way, "server-across", CONNECTIONS, log):
        time.sleep(_SETTLE_SECONDS)
        found[f"{CONNECTIONS}_idle_connections"] = snapshot(way)
    time.sleep(_SETTLE_SECONDS)
    found["after_them"] = snapshot(way)
    return found
