"""The CA that signs at this moment; it may be replaced at any time, from any thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from control_plane.ca.root import SigningCa, fingerprint
from mesh.errors import Unavailable

log = logging.getLogger(__name__)


class CurrentCa:
    """Holds one SigningCa, whole: readers take it once and use it to the end."""

    def __init__(self, on_change: Callable[[SigningCa], None]) -> None:
        self._lock = threading.Lock()
        self._ca: SigningCa | None = None
        self._on_change = on_change

    @property
    def ready(self) -> bool:
        """Say whether there is one."""
        return self._ca is not None

    @property
    def ca(self) -> SigningCa:
        """What signs now; raises Unavailable while there is nothing yet."""
        ca = self._ca
        if ca is None:
            raise Unavailable("the CA has not started yet")
        return ca

    def replace(self, new: SigningCa) -> None:
        """Sign with this from now on."""
        with self._lock:
            old, self._ca = self._ca, new
        if old is not None and (old.certificate, old.roots) == (new.certificate, new.roots):
            return
        log.info(
            "signing with %s (%s) of root %s until %s; trusted roots: %s",
            new.certificate.subject.rfc4514_string(),
            fingerprint(new.certificate)[:12],
            fingerprint(new.root)[:12],
            f"{new.certificate.not_valid_after_utc:%Y-%m-%d %H:%M}Z",
            ", ".join(fingerprint(r)[:12] for r in new.roots),
        )
        self._on_change(new)
