"""Make before break, when a binding changes. Pure: the clock is an argument.

Node proxies and waypoints are told by streams of their own. A Service that went directly goes on
so until its waypoint's Envoys have answered that they listen for it; and a waypoint that it leaves
goes on listening until node proxies have heard. What was refused before, and what is new, waits for
nothing: nobody loses anything by it, and nothing is to pass around its waypoint at its beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mesh.manifest import Key

GatewayKey = tuple[str, str]  # namespace, name
LONGEST: Final = 2.0  # seconds that a new binding waits for its waypoint
BLIND: Final = 0.25  # where no pod of the waypoint is connected here, but to another replica
LINGER: Final = 3.0  # seconds that a waypoint listens for what has left it


@dataclass(slots=True)
class _Held:
    gateway: GatewayKey
    since: float
    version: int = -1  # of the waypoint's snapshot; -1: not made yet


class Holds:
    """Bindings that node proxies are not told of yet, and parts of waypoints about to go."""

    def __init__(self) -> None:
        self._held: dict[Key, _Held] = {}
        self._leaving: dict[tuple[GatewayKey, Key], float] = {}

    def __contains__(self, key: Key) -> bool:
        """Say whether a binding is held back."""
        return key in self._held

    def hold(self, key: Key, gateway: GatewayKey, now: float) -> None:
        """Hold a binding back."""
        self._held[key] = _Held(gateway, now)

    def drop(self, key: Key) -> None:
        """It is bound otherwise, or gone."""
        self._held.pop(key, None)

    def made(self, version: Callable[[GatewayKey], int]) -> None:
        """Take the versions of the snapshots that have what is new."""
        for held in self._held.values():
            if held.version < 0:
                held.version = version(held.gateway)

    def release(self, now: float, reached: Callable[[GatewayKey], int | None]) -> set[Key]:
        """Let go what may be told now; `reached`: the version that all of a waypoint's pods have.

        None: no pod of it is connected here.
        """
        out = set()
        for key, held in self._held.items():
            there, waited = reached(held.gateway), now - held.since
            ready = waited >= BLIND if there is None else 0 <= held.version <= there
            if ready or waited >= LONGEST:
                out.add(key)
        for key in out:
            del self._held[key]
        return out

    def leave(self, gateway: GatewayKey, key: Key, now: float) -> None:
        """A waypoint is to stop listening for something, soon."""
        self._leaving.setdefault((gateway, key), now + LINGER)

    def stay(self, gateway: GatewayKey, key: Key) -> None:
        """It is not, after all."""
        self._leaving.pop((gateway, key), None)

    def left(self, now: float) -> list[tuple[GatewayKey, Key]]:
        """Name what waypoints stop listening for now."""
        out = [what for what, due in self._leaving.items() if due <= now]
        for what in out:
            del self._leaving[what]
        return out

    def due(self, now: float) -> float | None:
        """When to look again at the latest; None: nothing waits."""
        times = list(self._leaving.values())
        for held in self._held.values():
            blind = held.since + BLIND
            times.append(blind if blind > now else held.since + LONGEST)
        return min(times, default=None)
