"""Wheels through pip: which ones the project needs in an image, and fetching the pinned ones."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from deploy.images import cache
from deploy.images.errors import ImageError
from deploy.images.locks import RENEW, Pin
from deploy.images.shell import run, say

PYTHON: Final = "3.11"  # Debian 12's
_GLIBC: Final = 36  # minor version, Debian 12's; older manylinux wheels run too
_PIP: Final = (sys.executable, "-m", "pip", "--disable-pip-version-check")
_TARGET: Final = (
    "--only-binary=:all:",
    "--implementation=cp",
    f"--python-version={PYTHON}",
    *(f"--platform=manylinux_2_{n}_x86_64" for n in range(_GLIBC, 4, -1)),
    "--platform=manylinux2014_x86_64",
)


def normal(name: str) -> str:
    """A project's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(requirements: Sequence[str]) -> list[Pin]:
    """The newest wheels that satisfy requirements and theirs, for the image's Python."""
    with cache.scratch() as work:
        report = work / "report.json"
        command = [*_PIP, "install", "--dry-run", "--ignore-installed", "--quiet"]
        target = [*_TARGET, f"--target={work / 'none'}", f"--report={report}"]
        run([*command, *target, *requirements], "resolving Python packages")
        chosen: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return sorted((_pin(item) for item in chosen), key=lambda p: p.name)


def _pin(item: dict[str, Any]) -> Pin:
    about, archive = item["metadata"], item["download_info"].get("archive_info", {})
    digest = archive.get("hashes", {}).get("sha256")
    if not digest:
        raise ImageError(f"pip gives no sha256 for {about['name']}: a newer pip may")
    return Pin("", normal(about["name"]), about["version"], digest)


def fetch(lock: Path, pins: tuple[Pin, ...]) -> dict[Pin, Path]:
    """Where each pinned wheel is, downloading what the cache lacks; hashes checked by pip."""
    folder = cache.kind("wheels")
    places = {p: folder / p.sha256 for p in pins}
    if missing := [p for p, path in places.items() if not cache.used(path)]:
        say(f"downloading {len(missing)} wheels")
        with cache.scratch() as work:
            command = [*_PIP, "download", "--quiet", "--no-deps", "--require-hashes", *_TARGET]
            run([*command, f"--dest={work}", f"--requirement={lock}"], "downloading wheels")
            by_hash = {cache.sha256(path): path for path in work.iterdir()}
            for pin in missing:
                if pin.sha256 not in by_hash:
                    raise ImageError(f"{pin.name} {pin.version}: pip brought another file; {RENEW}")
                cache.keep(by_hash[pin.sha256], places[pin])
    return places
