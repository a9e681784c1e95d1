"""Which certificates are needed, which are held, and when to ask again. No I/O, no clock.

An identity is needed while somebody uses it: a node's pods, or a process itself. It is renewed at
half its life, spread by a little so that a node's certificates do not all fall due at once. A
failed renewal changes nothing about the certificate in use; it is tried again after 0.5 s, doubling
to 150 s. What nobody holds yet is asked for before what is only to be renewed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mesh.ca.held import Held

RETRY_FIRST: Final = 0.5
RETRY_MOST: Final = 150.0
MAX_IN_FLIGHT: Final = 8
_SPREAD: Final = 0.05  # of the lifetime, either way
_NEVER_BEFORE: Final = 1.0  # after a certificate came, however short-lived it is


@dataclass(slots=True)
class Identity:
    """One identity of this node. Times are unix seconds."""

    name: str
    users: set[str] = field(default_factory=set)  # uids of local pods, or whatever names a user
    held: Held | None = None
    error: str = ""
    next_try: float = 0.0
    failures: int = 0
    asking: bool = False

    def state(self, now: float) -> str:
        """Say how it stands, in the words of the config dump."""
        if self.held and now < self.held.certificate.not_after:
            return "Available"
        if self.error:
            return f"Unavailable: {self.error}"
        return "Unavailable: expired" if self.held else "Initializing"


class CertStore:
    """All identities in use. `random` gives values in [0, 1)."""

    def __init__(self, random: Callable[[], float]) -> None:
        self.identities: dict[str, Identity] = {}
        self._random = random

    def acquire(self, name: str, user: str, now: float) -> Identity:
        """Note that somebody needs an identity; a missing one is due at once, backoff or not."""
        identity = self.identities.get(name)
        if identity is None:
            identity = self.identities[name] = Identity(name, next_try=now)
        identity.users.add(user)
        if identity.held is None:
            identity.next_try = min(identity.next_try, now)
        return identity

    def release(self, name: str, user: str) -> None:
        """Note that a user is gone; with the last one the identity is dropped."""
        identity = self.identities.get(name)
        if identity is None:
            return
        identity.users.discard(user)
        if not identity.users:
            del self.identities[name]

    def due(self, now: float) -> list[str]:
        """Give the identities to ask for now and mark them as being asked for."""
        idle = [i for i in self.identities.values() if not i.asking and i.next_try <= now]
        idle.sort(key=lambda i: (i.held is not None, i.next_try))
        asking = sum(i.asking for i in self.identities.values())
        chosen = idle[: max(0, MAX_IN_FLIGHT - asking)]
        for identity in chosen:
            identity.asking = True
        return [i.name for i in chosen]

    def granted(self, name: str, held: Held, now: float) -> bool:
        """Take a new certificate; False when nobody needs it any more."""
        identity = self.identities.get(name)
        if identity is None:
            return False
        identity.held, identity.error = held, ""
        identity.asking, identity.failures = False, 0
        life = held.certificate.not_after - held.not_before
        share = 0.5 + _SPREAD * (2 * self._random() - 1)
        identity.next_try = max(held.not_before + life * share, now + _NEVER_BEFORE)
        return True

    def failed(self, name: str, error: str, now: float) -> None:
        """Take note that asking failed; what is held stays."""
        identity = self.identities.get(name)
        if identity is None:
            return
        identity.asking, identity.error = False, error
        identity.next_try = now + min(RETRY_FIRST * 2**identity.failures, RETRY_MOST)
        identity.failures = min(identity.failures + 1, 16)

    def next_timer(self) -> float | None:
        """When `due` will next have something, as far as is known."""
        waiting = [i.next_try for i in self.identities.values() if not i.asking]
        asking = len(self.identities) - len(waiting)
        return min(waiting, default=None) if asking < MAX_IN_FLIGHT else None
