"""What is said about objects, and what of it is news."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.manifest import Key
from waypoint.config.status import Status


class Statuses:
    """Statuses by object; drain() tells each change once."""

    def __init__(self) -> None:
        self._said: dict[Key, Status] = {}
        self._news: dict[Key, Status | None] = {}

    def set(self, key: Key, status: Status | None) -> None:
        """Say something about an object; None: nothing any more."""
        if self._said.get(key) == status:
            return
        if status is None:
            del self._said[key]
        else:
            self._said[key] = status
        self._news[key] = status

    def drain(self) -> Mapping[Key, Status | None]:
        """Return what is said otherwise than at the last call."""
        news, self._news = self._news, {}
        return news

    @property
    def said(self) -> Mapping[Key, Status]:
        """All of it."""
        return self._said
