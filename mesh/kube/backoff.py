"""How long to wait before the next try. Pure: randomness is given."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Doubles from `first` to `most` seconds, each spread over half to one and a half of that.

    Without the spread, all watches of all replicas would come back in the same instant to an API
    server that has just started.
    """

    def __init__(self, first: float, most: float, random: Callable[[], float]) -> None:
        self._first = first
        self._most = most
        self._random = random
        self._failures = 0

    def reset(self) -> None:
        """Begin anew: something worked."""
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait now."""
        pause = min(self._first * 2.0**self._failures, self._most)
        self._failures = min(self._failures + 1, 30)
        return pause * (0.5 + self._random())
