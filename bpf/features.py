"""Which hooks this kernel loads, found by loading them, never by version.

A routine fix in a distribution's kernel has made verifiers refuse programs they took before: only
a real load tells.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bpf import loader
from bpf.pins import Pins


@dataclass(frozen=True, slots=True)
class Feature:
    """One hook: `cause` is empty when it loads, with the verifier's last words when it does not."""

    hook: str
    cause: str

    @property
    def available(self) -> bool:
        """Whether the hook loads."""
        return not self.cause

    @property
    def way_out(self) -> str:
        """What to do about one that does not load."""
        return loader.WAY_OUT if self.cause else ""


def probe(scratch: Path = Path("/sys/fs/bpf/ambit-probe")) -> list[Feature]:
    """Load every hook once, attach none; raises Unsupported when nothing can even be compiled."""
    pins = Pins(scratch.with_name(f"{scratch.name}-{os.getpid()}"))
    pins.make()
    try:
        answer = loader.run(loader.Job(pins.root / "maps", None, keep_going=True))
    finally:
        pins.remove()
    return [Feature(hook, cause) for hook, cause in answer["hooks"].items()]
