"""Control groups of a lab: make, kill what is inside, remove."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

_PATIENCE: Final = 5.0  # seconds a killed process may take to leave


def make(path: Path) -> Path:
    """Create a control group and those above it."""
    path.mkdir(parents=True, exist_ok=True)
    return path


def members(path: Path) -> list[int]:
    """List the processes of a control group and of those below it."""
    found: list[int] = []
    for folder, _, files in os.walk(path):
        if "cgroup.procs" in files:
            with contextlib.suppress(OSError):
                text = Path(folder, "cgroup.procs").read_text()
                found += [int(line) for line in text.split()]
    return found


def kill(path: Path) -> None:
    """SIGKILL everything inside, and wait until it is gone."""
    if not path.is_dir():
        return
    try:
        (path / "cgroup.kill").write_text("1")  # Linux 5.14
    except OSError:
        _kill_each(path)
    deadline = time.monotonic() + _PATIENCE
    while members(path) and time.monotonic() < deadline:
        time.sleep(0.005)
        _kill_each(path)


def remove(path: Path) -> None:
    """Kill everything inside, then remove the control group and those below it."""
    if not path.is_dir():
        return
    kill(path)
    for folder, _, _ in os.walk(path, topdown=False):
        _remove_one(Path(folder))


def _kill_each(path: Path) -> None:
    for pid in members(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _remove_one(path: Path) -> None:
    # A zombie keeps its control group busy until its parent has waited for it.
    for _ in range(200):
        try:
            path.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.005)
