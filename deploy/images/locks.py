"""The lock files: what goes into images, to the byte. Pure.

debian.lock: a line per Debian package, "LAYER NAME VERSION SHA256" (sha256 of the .deb).
requirements.lock, build.lock: pip's requirements with hashes, one wheel each.
Both open with comment lines "# key: value"; `for` names what the lock was made for, so that a
change of the recipe without a new lock is noticed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.images.errors import ImageError

RENEW: Final = "`make images-lock` renews the locks"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_WHEEL: Final = re.compile(r"([A-Za-z0-9._-]+)==(\S+) --hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Pin:
    """One package at one version; layer is empty for a wheel."""

    layer: str
    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Lock:
    """Pins, and what the lock says of itself (`epoch`: when it was made, seconds)."""

    about: Mapping[str, str]
    pins: tuple[Pin, ...]

    @property
    def epoch(self) -> int:
        """The time that files of locked packages carry."""
        return int(self.about.get("epoch", "0"))

    def of(self, layer: str) -> tuple[Pin, ...]:
        """The pins of one layer."""
        return tuple(p for p in self.pins if p.layer == layer)


def fingerprint(parts: Iterable[str]) -> str:
    """Names what a lock is for."""
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]


def render_debian(about: Mapping[str, str], pins: Iterable[Pin]) -> str:
    """The text of debian.lock."""
    lines = [f"{p.layer} {p.name} {p.version} {p.sha256}" for p in pins]
    return _head("Debian packages of the images", about) + "".join(f"{x}\n" for x in lines)


def render_wheels(title: str, about: Mapping[str, str], pins: Iterable[Pin]) -> str:
    """The text of a requirements lock, as pip reads it."""
    lines = [f"{p.name}=={p.version} --hash=sha256:{p.sha256}" for p in pins]
    return _head(title, about) + "".join(f"{x}\n" for x in lines)


def _head(title: str, about: Mapping[str, str]) -> str:
    lines = [f"# {title}. Made by `make images-lock`; not by hand."]
    lines += [f"# {key}: {value}" for key, value in about.items()]
    return "".join(f"{x}\n" for x in lines)


def parse_debian(text: str, where: str) -> Lock:
    """Read debian.lock; raises ImageError with the line that is no pin."""
    pins = []
    for number, line in _lines(text):
        words = line.split()
        if len(words) != 4 or not _SHA256.fullmatch(words[3]):
            raise ImageError(f"{where}:{number}: not LAYER NAME VERSION SHA256: {line!r}; {RENEW}")
        pins.append(Pin(*words))
    return Lock(_about(text), tuple(pins))


def parse_wheels(text: str, where: str) -> Lock:
    """Read a requirements lock; raises ImageError with the line that is no pin."""
    pins = []
    for number, line in _lines(text):
        found = _WHEEL.fullmatch(line)
        if not found:
            raise ImageError(f"{where}:{number}: not NAME==VERSION --hash=sha256:...; {RENEW}")
        pins.append(Pin("", *found.groups()))
    return Lock(_about(text), tuple(pins))


def _lines(text: str) -> list[tuple[int, str]]:
    numbered = enumerate(text.splitlines(), 1)
    return [(n, x.strip()) for n, x in numbered if x.strip() and not x.startswith("#")]


def _about(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        key, colon, value = line.removeprefix("# ").partition(": ")
        if line.startswith("# ") and colon and " " not in key:
            found[key] = value.strip()
    return found


def load(path: Path, wanted: str) -> Lock:
    """Read a lock file; raises ImageError when it is missing or was made for something else."""
    try:
        text = path.read_text()
    except FileNotFoundError as e:
        raise ImageError(f"{path.name} is missing: {RENEW}") from e
    parse = parse_debian if path.name.startswith("debian") else parse_wheels
    lock = parse(text, path.name)
    if lock.about.get("for") != wanted:
        raise ImageError(
            f"{path.name} was made for another list of packages than the one wanted now: {RENEW}"
        )
    return lock
