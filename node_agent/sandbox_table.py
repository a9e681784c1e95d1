"""Which sandbox each pod of the node has, from the CNI plugin and from the container runtime.

The table owns one descriptor of each namespace. A path can come to mean another namespace, so what
the rest of the agent gets is the descriptor's own path, /proc/self/fd/N.

The two tellers overlap: the plugin is first and certain, the runtime's list is late but complete.
What the list says counts only against sandboxes that were known before the list was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

# A sandbox that the plugin told of is listed only when the runtime has finished making it; one
# that never is belongs to a start that failed without a DEL.
UNLISTED: Final = 300.0  # seconds
# The runtime lists a sandbox as ready until the plugin's DEL and what follows it are done.
REMOVED: Final = 300.0


@dataclass(slots=True)
class Known:
    """One sandbox. netns: a descriptor; since: when told of; listed: the runtime knows it."""

    uid: str
    sandbox: str
    netns: int
    addresses: tuple[str, ...]
    since: float
    listed: bool

    @property
    def path(self) -> str:
        """A path of its namespace for this process, as long as it is known."""
        return f"/proc/self/fd/{self.netns}"


@dataclass(frozen=True, slots=True)
class Found:
    """One sandbox that the runtime was asked about; netns: a descriptor, the taker's to close."""

    uid: str
    sandbox: str
    netns: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the runtime.

    began: when; ready: pod uid to its newest ready sandbox; problems: pod uid to why its namespace
    cannot be had.
    """

    began: float
    ready: Mapping[str, str]
    found: Collection[Found]
    problems: Mapping[str, str]


class SandboxTable:
    """uid to Known. `now` and `began` are of one monotonic clock, seconds."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        self._removed: dict[str, float] = {}  # sandbox -> when

    def get(self, uid: str) -> Known | None:
        """Give a pod's sandbox."""
        return self._known.get(uid)

    def __iter__(self) -> Iterator[Known]:
        return iter(list(self._known.values()))

    def add(
        self, uid: str, sandbox: str, netns: int, addresses: tuple[str, ...], now: float
    ) -> Known:
        """Take in what the plugin told of; the descriptor becomes the table's."""
        self._forget(uid)
        self._removed.pop(sandbox, None)
        known = self._known[uid] = Known(uid, sandbox, netns, addresses, now, listed=False)
        return known

    def drop(self, sandbox: str, now: float) -> bool:
        """Forget a sandbox that is being removed; whether it was known."""
        self._removed[sandbox] = now
        for known in self:
            if known.sandbox == sandbox:
                self._forget(known.uid)
                return True
        return False

    def take(self, look: Look, now: float) -> None:
        """Take in what the runtime says."""
        self._removed = {s: at for s, at in self._removed.items() if now - at < REMOVED}
        for found in look.found:
            known = self._known.get(found.uid)
            newer = known is not None and known.since >= look.began
            if newer or found.sandbox in self._removed:
                os.close(found.netns)  # the plugin told of what is not in the list yet
            else:
                self._forget(found.uid)
                self._known[found.uid] = Known(
                    found.uid, found.sandbox, found.netns, found.addresses, look.began, listed=True
                )
        ready = set(look.ready.values())
        for known in self:
            if known.sandbox in ready:
                known.listed = True
            elif known.since < look.began and (known.listed or now - known.since > UNLISTED):
                self._forget(known.uid)

    def retain(self, uids: Collection[str]) -> None:
        """Forget the sandboxes of all other pods."""
        for known in self:
            if known.uid not in uids:
                self._forget(known.uid)

    def close(self) -> None:
        """Close every descriptor."""
        self.retain(())

    def _forget(self, uid: str) -> None:
        known = self._known.pop(uid, None)
        if known is not None:
            os.close(known.netns)
