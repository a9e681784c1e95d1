"""The files of the base that no package brings: what maintainer scripts would have made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from deploy.images.errors import ImageError
from deploy.images.recipe import HEADERS, USER

_LINKS: Final = {
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "var/run": "/run",
    "usr/lib/ssl/cert.pem": "/etc/ssl/certs/ca-certificates.crt",
}
FOLDERS: Final = ("dev", "proc", "run", "sys", "tmp", "usr/sbin", "var/tmp")
MODES: Final = {"tmp": 0o1777, "var/tmp": 0o1777}
_FILES: Final = {
    "etc/passwd": (
        "root:x:0:0:root:/:/nonexistent\n"
        f"ambit:x:{USER}:{USER}:ambit:/:/nonexistent\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/nonexistent\n"
    ),
    "etc/group": f"root:x:0:\nambit:x:{USER}:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_AUTHORITIES: Final = "usr/share/ca-certificates"


def make(root: Path) -> None:
    """Put the skeleton around unpacked packages."""
    for path in FOLDERS:
        (root / path).mkdir(parents=True, exist_ok=True)
    for path, target in _LINKS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
    for path, text in _FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    _bundle(root)


def _bundle(root: Path) -> None:
    """All authorities in one file, as update-ca-certificates makes it; the single ones go."""
    found = sorted((root / _AUTHORITIES).rglob("*.crt"), key=lambda p: p.name)
    if not found:
        raise ImageError("ca-certificates holds no certificates")
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text("".join(p.read_text().rstrip("\n") + "\n" for p in found))
    for path in found:
        path.unlink()


def headers(root: Path) -> None:
    """Merge Debian's two halves of kernel headers into the one tree that bcc wants."""
    sources = root / "usr/src"
    halves = sorted(sources.glob("linux-headers-*"), key=lambda p: not p.name.endswith("-common"))
    if not halves:
        raise ImageError("the kernel's headers are missing: is linux-headers-amd64 locked?")
    for half in halves:  # what both have is the second's
        shutil.copytree(half, root / HEADERS, dirs_exist_ok=True)
        shutil.rmtree(half)
