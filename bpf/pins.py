"""Where one node's kernel objects are pinned, and that there is a bpf filesystem to pin them in.

PINS/maps-<layout digest>/  maps; a change of any struct makes a new folder
PINS/build-<digest>/        programs of one build
PINS/hooks/<hook>           links on the node's cgroup
PINS/pods/<netns cookie>    sk_lookup links, one per captured pod
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bpf import libbpf
from mesh.errors import Unsupported

BPFFS_MAGIC = 0xCAFE4A11  # linux/magic.h


@dataclass(frozen=True, slots=True)
class Pins:
    """The folders under one root."""

    root: Path

    @property
    def hooks(self) -> Path:
        """Links of the node's hooks."""
        return self.root / "hooks"

    @property
    def pods(self) -> Path:
        """Links of the pods' namespaces."""
        return self.root / "pods"

    def maps(self, layout_digest: str) -> Path:
        """Maps of one layout."""
        return self.root / f"maps-{layout_digest}"

    def build(self, digest: str) -> Path:
        """Programs of one build."""
        return self.root / f"build-{digest}"

    def make(self) -> None:
        """Create the root, mounting the bpf filesystem it lies in where that is missing."""
        if not _is_bpffs(self.root):
            _mount(Path("/sys/fs/bpf"))
        for folder in (self.root, self.hooks, self.pods):
            folder.mkdir(parents=True, exist_ok=True)
        if not _is_bpffs(self.root):
            raise Unsupported(
                f"{self.root} is not on a bpf filesystem: use a folder under /sys/fs/bpf"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time loads and attaches here."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def others(self, prefix: str, keep: Path) -> list[Path]:
        """Folders of former builds or layouts."""
        return [p for p in self.root.glob(f"{prefix}-*") if p != keep]

    def remove(self) -> None:
        """Unpin everything."""
        shutil.rmtree(self.root, ignore_errors=True)


def attached(pins: Pins) -> dict[str, int]:
    """The cgroup id each of the node's hooks is attached to; 0: that cgroup is gone."""
    found = {}
    for pin in pins.hooks.iterdir():
        link = libbpf.obj_get(pin)
        try:
            found[pin.name] = libbpf.link_target(link, netns=False)
        finally:
            os.close(link)
    return found


class _StatFs(ctypes.Structure):
    """struct statfs, its first field; the rest is room."""

    _fields_ = (("type", ctypes.c_long), ("rest", ctypes.c_byte * 512))


def _is_bpffs(path: Path) -> bool:
    while not path.exists():
        path = path.parent
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = _StatFs()
    done = libc.statfs(os.fsencode(path), ctypes.byref(buffer))
    return bool(done == 0 and (buffer.type & 0xFFFFFFFF) == BPFFS_MAGIC)


def _mount(where: Path) -> None:
    if not where.is_dir() or _is_bpffs(where):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(where), b"bpf", 0, None) != 0:
        e = ctypes.get_errno()
        raise Unsupported(
            f"cannot mount a bpf filesystem at {where}: {os.strerror(e)};"
            " run as root, or mount it yourself"
        )
