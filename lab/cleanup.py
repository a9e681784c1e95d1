"""Leaving nothing behind, however a lab ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Final

from lab import cgroups, host, netns
from lab.layout import BPFFS, LABS, Layout

_PATIENCE: Final = 5.0


def is_live(layout: Layout) -> bool:
    """Say whether a lab's manager runs: it holds the lock as long as it lives."""
    try:
        fd = os.open(layout.lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def remains(layout: Layout) -> list[str]:
    """List what there is of a lab on this machine: folders, namespaces, control groups, pins."""
    found = [str(p) for p in (layout.state, layout.pins, *_cgroup(layout)) if p.exists()]
    return found + [f"netns {name}" for name in netns.names() if layout.owns_netns(name)]


def clean(layout: Layout) -> None:
    """Remove all that a lab is, live or dead. Harmless when there is nothing."""
    _kill_manager(layout)
    for path in _cgroup(layout):
        cgroups.remove(path)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # shared by all labs: goes with the last
    netns.delete([name for name in netns.names() if layout.owns_netns(name)])
    _unpin(layout.pins)
    shutil.rmtree(layout.state, ignore_errors=True)
    for path in (layout.pins.parent, LABS, LABS.parent):
        with contextlib.suppress(OSError):
            path.rmdir()


def known() -> list[str]:
    """List the names of all labs that left anything: state folders, control groups, pins."""
    root = host.find_cgroup_root()
    folders = [LABS, BPFFS / "ambit", *([root / "ambit"] if root else [])]
    found = {
        p.name for folder in folders if folder.is_dir() for p in folder.iterdir() if p.is_dir()
    }
    return sorted(found)


def _cgroup(layout: Layout) -> list[Path]:
    root = host.find_cgroup_root()
    return [root / "ambit" / layout.name] if root else []


def _kill_manager(layout: Layout) -> None:
    deadline = time.monotonic() + _PATIENCE
    while is_live(layout) and time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            # The lock is held, so this is its holder's number and nobody else's.
            os.kill(int(layout.lock.read_text()), signal.SIGKILL)
        time.sleep(0.01)


def _unpin(pins: Path) -> None:
    for folder, folders, files in os.walk(pins, topdown=False):
        for name in files:
            with contextlib.suppress(OSError):
                Path(folder, name).unlink()
        for name in folders:
            with contextlib.suppress(OSError):
                Path(folder, name).rmdir()
    with contextlib.suppress(OSError):
        pins.rmdir()
