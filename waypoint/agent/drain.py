"""The end of a waypoint without a failed request.

From SIGTERM on this pod is not ready, so that the control plane takes it out of what node proxies
choose from. Meanwhile Envoy serves on and says with every response that the client should go
elsewhere (GOAWAY on HBONE, `connection: close` within). It ends when nothing is carried any more,
at the earliest after `minimum`, at the latest after `most` seconds.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import Final

from mesh.errors import Unavailable
from waypoint.agent.admin import EnvoyAdmin

log = logging.getLogger(__name__)

_ACTIVE: Final = r"^http\..*\.downstream_rq_active$"
_ACTIVE_LINE: Final = re.compile(rb"^http\.(.*)\.downstream_rq_active: (\d+)$", re.MULTILINE)
_TURN: Final = 0.25
_QUIET: Final = 2  # looks in a row that found nothing


async def drain(admin: EnvoyAdmin, minimum: float, most: float) -> None:
    """Drain Envoy; returns when it may be ended."""
    started = time.monotonic()
    quiet = 0
    try:
        await admin.post("/healthcheck/fail")
        while quiet < _QUIET and time.monotonic() - started < most:
            await asyncio.sleep(_TURN)
            active = active_streams(await admin.get(f"/stats?filter={_ACTIVE}"))
            settled = time.monotonic() - started >= minimum
            quiet = quiet + 1 if settled and not active else 0
        lasted = time.monotonic() - started
        if quiet < _QUIET:
            log.warning("drained for %.1f s; %d connections are cut", lasted, active)
        else:
            log.info("drained in %.1f s", lasted)
        await admin.post("/drain_listeners")
    except Unavailable as e:
        log.warning("cannot drain: %s", e)


def active_streams(stats: bytes) -> int:
    """Count what Envoy carries: connections within HBONE and requests within them."""
    found = _ACTIVE_LINE.findall(stats)
    return sum(int(number) for prefix, number in found if prefix != b"admin")
