"""How often the same thing is written: at once when it is new, ever less often when it is undone.

What we write comes back by a watch. Between the two, and where somebody else keeps undoing it,
writing again at once would be a storm. Pure: the clock is an argument. Not shared between threads.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final

SPACING: Final = 1.0  # seconds between two writes of one object, whatever they say
FIRST: Final = 5.0  # until the same content is written again; doubles
MOST: Final = 300.0
_FORGET: Final = 600.0  # peace for so long is the end of a quarrel


@dataclass(slots=True)
class _Written:
    content: Any
    at: float
    wait: float


class Pacer:
    """Remembers what was written when, per object."""

    def __init__(self) -> None:
        self._written: dict[Hashable, _Written] = {}

    def due_at(self, key: Hashable, content: Any) -> float:
        """When this may be written; 0.0 is now."""
        last = self._written.get(key)
        if last is None:
            return 0.0
        return last.at + (last.wait if last.content == content else SPACING)

    def wrote(self, key: Hashable, content: Any, now: float) -> None:
        """Note a write, or a try that failed for reasons of this object's own."""
        last = self._written.get(key)
        wait = FIRST
        if last is not None and last.content == content and now - last.at < _FORGET + last.wait:
            wait = min(last.wait * 2, MOST)
        self._written[key] = _Written(content, now, wait)

    def forget(self, key: Hashable) -> None:
        """The object is gone."""
        self._written.pop(key, None)

    def trim(self, now: float) -> None:
        """Drop what is too old to matter."""
        for key in [k for k, w in self._written.items() if now - w.at > _FORGET + w.wait]:
            del self._written[key]
