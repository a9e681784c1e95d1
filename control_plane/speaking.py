"""Statuses written beside the loop: nothing that is served waits for them."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Mapping
from typing import Any, Final

from control_plane.status import StatusSink
from mesh.manifest import Key
from waypoint.config.status import Status

log = logging.getLogger(__name__)

_AGAIN: Final = 1.0  # seconds from a write that failed to the next try


class Speaker:
    """Collects what happened while the last writing ran. Of one event loop.

    Its memory is bounded by the number of objects: of each only the newest is kept.
    """

    def __init__(self, sink: StatusSink) -> None:
        self._sink = sink
        self._changed: dict[Key, Mapping[str, Any]] = {}
        self._gone: set[Key] = set()
        self._said: dict[Key, Status | None] = {}
        self._news = asyncio.Event()

    def tell(
        self,
        changed: Mapping[Key, Mapping[str, Any]],
        gone: set[Key],
        said: Mapping[Key, Status | None],
    ) -> None:
        """Take a change in (as StatusSink.write does); writing it follows."""
        for key in gone:
            self._changed.pop(key, None)
            self._said.pop(key, None)
        # Gone and there again: what was said of the object before is not said of this one.
        again = self._gone & changed.keys()
        self._said.update(dict.fromkeys(again))
        self._gone -= again
        self._gone |= gone
        self._changed.update(changed)
        self._said.update(said)
        if changed or gone or said:
            self._news.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            told = (self._changed, self._gone, self._said)
            self._changed, self._gone, self._said = {}, set(), {}
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            try:
                written = await asyncio.to_thread(self._sink.write, *told, now)
            except OSError as e:
                # A disk full, say. The sink knows what it still owes.
                log.error("statuses: %s; trying again", e)
                await asyncio.sleep(_AGAIN)
                self._news.set()
                continue
            if written:
                log.info("status of %d objects written", written)
