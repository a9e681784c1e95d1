"""Where downloads and finished layers wait for the next build: $AMBIT_CACHE/images.

Every entry is named by what it is made of, and appears whole or not at all. Entries that were not
used for a month go.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_KEPT: Final = 30 * 86400.0  # seconds after the last use
_SCRATCH: Final = 86400.0  # of what a killed build left


def folder() -> Path:
    """AMBIT_CACHE, or the user's usual place."""
    given = os.environ.get("AMBIT_CACHE")
    return (Path(given) if given else Path.home() / ".cache" / "ambit") / "images"


def kind(name: str) -> Path:
    """One sort of entries, such as debs."""
    path = folder() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def used(path: Path) -> bool:
    """Whether an entry is there; keeps it from being swept."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def sweep(name: str) -> None:
    """Remove one sort's entries that nobody used for long."""
    limit = time.time() - (_SCRATCH if name == "scratch" else _KEPT)
    for path in kind(name).iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < limit:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep(made: Path, place: Path) -> None:
    """Move an entry to its place, where another build may have put the same in the meantime."""
    try:
        made.rename(place)
    except OSError:
        if not place.exists():
            raise


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder to work in, on the cache's file system so that results can be renamed into it."""
    with tempfile.TemporaryDirectory(prefix="work-", dir=kind("scratch")) as name:
        yield Path(name)


def sha256(path: Path) -> str:
    """A file's hash, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
