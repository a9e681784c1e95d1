"""cgroup2 on this node: where it is, and a cgroup of the proxy's own.

The hooks know a proxy by its cgroup, so that must hold nobody else. On a cgroup2 node every
container has its own. On a hybrid node the containers' cgroups are in the version 1 hierarchies,
and in the version 2 hierarchy they are all where their runtime was started: there the proxy's
processes are moved into a child. No controller is on in there (else it could not hold processes
and children), so nothing is limited or counted otherwise than before.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from mesh.errors import ConfigError, MeshError

log = logging.getLogger(__name__)

OWN: Final = "ambit-proxy"
MOUNTS: Final = (Path("/host/sys/fs/cgroup"), Path("/sys/fs/cgroup"))
_ROUNDS: Final = 5  # of moving: processes may fork meanwhile
_PROC: Final = Path("/proc")


def root(mounts: Sequence[Path] = MOUNTS) -> Path:
    """Find the cgroup2 hierarchy: a mount, or `unified` in it on hybrid nodes."""
    for mount in mounts:
        for folder in (mount, mount / "unified"):
            # Only version 2 has this file, and has it in every folder but the very root too.
            if (folder / "cgroup.controllers").is_file():
                return folder
    raise ConfigError(
        f"no cgroup2 hierarchy at {', '.join(map(str, mounts))}: mount one "
        "(mount -t cgroup2 none /sys/fs/cgroup/unified), or name it with --cgroup"
    )


def folder_of(top: Path, pid: int) -> Path:
    """Find a process's cgroup by looking; MeshError when it is not below `top`.

    /proc/<pid>/cgroup would be shorter, but speaks relative to the reader's cgroup namespace.
    """
    for folder, _, _ in os.walk(top):
        if pid in _processes(Path(folder)):
            return Path(folder)
    raise MeshError(f"process {pid} is in no cgroup below {top}: the hooks there would not see it")


def isolate(top: Path, pid: int, proc: Path = _PROC) -> int:
    """Give the id of a cgroup that holds a proxy alone, moving it to one of its own if need be.

    pid: the process that speaks for the proxy; its children belong to it.
    """
    folder = folder_of(top, pid)
    if folder.name == OWN:
        return folder.stat().st_ino
    family = _family(pid, _processes(folder), proc)
    if _processes(folder) <= family and folder != top:
        return folder.stat().st_ino
    own = folder / OWN
    try:
        own.mkdir(exist_ok=True)
        for _ in range(_ROUNDS):
            left = _family(pid, _processes(folder), proc)
            if not left:
                break
            _move(left, own)
    except OSError as error:
        raise MeshError(
            f"proxy process {pid} shares cgroup {folder} with others and cannot be moved to "
            f"{own}: {error.strerror}; its connections would be captured"
        ) from error
    log.info("proxy process %d shared cgroup %s; it is in %s now", pid, folder, own)
    return own.stat().st_ino


def remove_own(top: Path) -> None:
    """Move whoever is in cgroups that isolate() made back up, and remove those."""
    for folder, names, _ in os.walk(top):
        if OWN in names:
            own = Path(folder) / OWN
            try:
                _move(_processes(own), Path(folder))
                own.rmdir()
            except OSError as error:
                log.warning("cgroup %s is left: %s", own, error.strerror)


def _move(pids: Iterable[int], folder: Path) -> None:
    for pid in pids:
        try:
            (folder / "cgroup.procs").write_text(str(pid))
        except ProcessLookupError:
            continue


def _processes(folder: Path) -> set[int]:
    try:
        return {int(line) for line in (folder / "cgroup.procs").read_text().split()}
    except OSError:
        return set()  # removed meanwhile, or a threaded one, which holds no whole process


def _family(pid: int, among: Iterable[int], proc: Path) -> set[int]:
    """Give those of `among` that are the process or descend from it."""
    parents: dict[int, int] = {}

    def parent(child: int) -> int:
        if child not in parents:
            parents[child] = _parent(child, proc)
        return parents[child]

    found = set()
    for one in among:
        ancestor = one
        while ancestor > 1 and ancestor != pid:
            ancestor = parent(ancestor)
        if ancestor == pid:
            found.add(one)
    return found


def _parent(pid: int, proc: Path) -> int:
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except OSError:
        return 0
    # "pid (name) state ppid ...": the name may hold anything, parentheses too.
    return int(stat.rpartition(")")[2].split()[1])
