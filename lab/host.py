"""The machine a lab runs on: root, tools, bpffs, cgroup2."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from lab.errors import LabError
from lab.layout import BPFFS

TOOLS: Final = ("ip", "nft", "dnsmasq", "tcpdump")
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CGROUPS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_OWN_CGROUP: Final = Path("/run/ambit/cgroup")


def check() -> None:
    """Raise LabError where this machine cannot hold a lab."""
    if os.geteuid() != 0:
        raise LabError("a lab makes network namespaces and loads BPF: run as root (sudo)")
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if missing:
        raise LabError(f"not installed: {', '.join(missing)}; run: make setup")


def prepare() -> None:
    """Mount what a lab needs and the machine lacks."""
    if not os.path.ismount(BPFFS):
        _mount("bpf", "bpf", BPFFS)
    cgroup_root()


def cgroup_root() -> Path:
    """Find cgroup2 (unified or hybrid), or mount it."""
    for path in (*_CGROUPS, _OWN_CGROUP):
        if (path / "cgroup.controllers").exists():
            return path
    _OWN_CGROUP.mkdir(parents=True, exist_ok=True)
    _mount("cgroup2", "none", _OWN_CGROUP)
    return _OWN_CGROUP


def find_cgroup_root() -> Path | None:
    """Find cgroup2 without changing anything."""
    with contextlib.suppress(OSError):
        for path in (*_CGROUPS, _OWN_CGROUP):
            if (path / "cgroup.controllers").exists():
                return path
    return None


def _mount(kind: str, source: str, target: Path) -> None:
    done = subprocess.run(
        ["mount", "-t", kind, source, str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LabError(f"cannot mount {kind} at {target}: {done.stderr.strip()}")
