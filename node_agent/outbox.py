"""What is to be written to the API server, by threads, so that the loop never waits for it.

One entry for each key, the latest wins. An entry is tried until it says that it is done.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

log = logging.getLogger(__name__)

WORKERS: Final = 4
CAPACITY: Final = 10_000  # entries; a node has a few hundred pods
_AFTER_BUG: Final = 30.0  # seconds

# Does one write; returns None when it is done, or how many seconds to wait before the next try.
# `tries`: how many failed before.
Write = Callable[[int], float | None]


@dataclass(slots=True)
class _Entry:
    write: Write
    due: float
    tries: int = 0


@dataclass(order=True, slots=True)
class _Turn:
    due: float
    key: str = field(compare=False)


class Outbox:
    """Threads that work off entries when they are due."""

    def __init__(self, workers: int = WORKERS, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._busy: set[str] = set()
        self._turns: list[_Turn] = []
        self._changed = threading.Condition()
        self._stop = False
        self._threads = [
            threading.Thread(target=self._run, name=f"outbox-{i}", daemon=True)
            for i in range(workers)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def put(self, key: str, write: Write, delay: float = 0.0) -> bool:
        """Have `write` done, in place of what waits under that key; False when it is full."""
        with self._changed:
            if key not in self._entries and len(self._entries) >= CAPACITY:
                return False
            self._entries[key] = entry = _Entry(write, self._clock() + delay)
            self._schedule(key, entry)
            return True

    def drop(self, key: str) -> None:
        """Take back what waits; a write that runs already is not stopped."""
        with self._changed:
            self._entries.pop(key, None)

    def __contains__(self, key: str) -> bool:
        with self._changed:
            return key in self._entries or key in self._busy

    def __len__(self) -> int:
        with self._changed:
            return len(self._entries)

    def close(self) -> None:
        """Have the threads end; what waits is not written."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()

    def _schedule(self, key: str, entry: _Entry) -> None:
        heapq.heappush(self._turns, _Turn(entry.due, key))
        self._changed.notify()

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            key, entry = taken
            try:
                wait = entry.write(entry.tries)
            except Exception:
                log.exception("writing %s failed; tried again", key)
                wait = _AFTER_BUG
            self._finish(key, entry, wait)

    def _next(self) -> tuple[str, _Entry] | None:
        """Wait for an entry that is due and that no other thread has in hand."""
        with self._changed:
            while not self._stop:
                now = self._clock()
                if not self._turns or self._turns[0].due > now:
                    self._changed.wait(self._turns[0].due - now if self._turns else None)
                    continue
                key = heapq.heappop(self._turns).key
                entry = self._entries.get(key)
                # Turns of entries that were replaced or dropped are left over: passed by.
                if entry is not None and entry.due <= now and key not in self._busy:
                    self._busy.add(key)
                    return key, entry
        return None

    def _finish(self, key: str, entry: _Entry, wait: float | None) -> None:
        with self._changed:
            self._busy.discard(key)
            current = self._entries.get(key)
            if current is entry:
                if wait is None:
                    del self._entries[key]
                    return
                entry.tries += 1
                entry.due = self._clock() + wait
            if current is not None:
                self._schedule(key, current)
