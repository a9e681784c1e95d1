"""Processes of a cluster: started in the namespaces and the control groups they belong to.

A part is known by its pid and the start time of that pid: numbers come again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab import cgroups
from tests.k8s.cluster.errors import ClusterError

# Parts get no proxy settings and the like of whoever starts the cluster.
_ENV: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_JOIN: Final = (
    'for g in $0; do [ -d $g ] || mkdir -p $g; echo 0 >$g/cgroup.procs || exit; done; exec "$@"'
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where processes run: control groups, and namespaces."""

    cgroups: tuple[Path, ...]  # joined first
    netns: str  # "": the machine's own
    init: int = 0  # pid of a node's init, all of whose namespaces are joined; 0: only netns
    own: tuple[Path, ...] = ()  # the control groups to join in there, as seen from in there

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command there."""
        return [*_join(self.cgroups), *self._enter(), *_join(self.own), *command]

    def wrap_for_now(self, command: Sequence[str]) -> list[str]:
        """As wrap(), for a command that ends when whoever runs it does."""
        return self.wrap(["setpriv", "--pdeathsig", "KILL", *command])

    def _enter(self) -> list[str]:
        if self.init:
            # Joining a PID namespace takes a fork: the first process only waits for the second.
            return ["nsenter", "-t", str(self.init), "-m", "-u", "-n", "-p", "-C", "--"]
        return ["nsenter", f"--net=/run/netns/{self.netns}", "--"] if self.netns else []


def _join(groups: Iterable[Path]) -> list[str]:
    """Put in front of a command: it is in these groups, and nothing it starts is ever outside."""
    names = " ".join(map(str, groups))
    return ["/bin/sh", "-c", _JOIN, names] if names else []


class Part:
    """One process, across invocations of the tool."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._pid_file = folder / f"{name}.pid"

    @property
    def pid(self) -> int:
        """Its pid while it lives, else 0."""
        try:
            pid, started = self._pid_file.read_text().split()
        except (FileNotFoundError, ValueError):
            return 0
        return int(pid) if start_time(int(pid)) == started else 0

    def start(
        self,
        place: Place,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        forks: bool = False,
    ) -> int:
        """Start it, unless it lives; forks: the command's only child is what counts."""
        if self.pid:
            return self.pid
        self.log.parent.mkdir(parents=True, exist_ok=True)
        for group in place.cgroups:  # so that the shell in front needs no child of its own
            cgroups.make(group)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                place.wrap(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                env={**_ENV, **(env or {})},
            )
        pid = _child(process) if forks or place.init else process.pid
        self._pid_file.write_text(f"{pid} {start_time(pid)}")
        return pid

    def stop(self, number: int = signal.SIGTERM, patience: float = 5.0) -> None:
        """End it and wait; SIGKILL when it does not."""
        pid = self.pid
        if not pid:
            return
        for sent in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)  # where this very process started it
                if not self.pid:
                    return
                time.sleep(0.02)
        raise ClusterError(f"{self.name} (pid {pid}) does not end")

    def check(self) -> None:
        """Raise when it died."""
        if not self.pid:
            raise ClusterError(f"{self.name} ended: {self.tail()}")

    def tail(self, lines: int = 4) -> str:
        """The end of its log."""
        try:
            return " | ".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "it wrote nothing"


def _child(process: subprocess.Popen[bytes], patience: float = 5.0) -> int:
    """The first child of a process; the process itself when it ended without one."""
    file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if pids := file.read_text().split():
                return int(pids[0])
        time.sleep(0.002)
    return process.pid


def start_time(pid: int) -> str:
    """When a process started, in ticks since boot (proc(5) field 22); "" when it is gone."""
    fields = _stat(pid)
    return "" if fields[0] in "ZX" else fields[19]


def parent(pid: int) -> str:
    """The pid of a process's parent (proc(5) field 4); "" when it is gone."""
    return _stat(pid)[1]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third on; empty ones when the process is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return [""] * 20
    return stat.rsplit(")", 1)[1].split()  # what is in parentheses may hold anything


def run(
    command: Sequence[str],
    place: Place | None = None,
    data: bytes | None = None,
    timeout: float = 60,
) -> str:
    """Run to the end; raises ClusterError with what it said."""
    words = place.wrap_for_now(command) if place else list(command)
    try:
        done = subprocess.run(words, input=data, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{' '.join(command)[:200]}: not done in {timeout:g} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise ClusterError(f"{' '.join(command)[:200]}: {said[-600:] or done.returncode}")
    return done.stdout.decode(errors="replace")


def wait_until(what: str, seconds: float, seen: Callable[[], object], *parts: Part) -> None:
    """Poll a callable until it is true; raises ClusterError, early when one of the parts died."""
    deadline = time.monotonic() + seconds
    while not seen():
        for part in parts:
            part.check()
        if time.monotonic() > deadline:
            tails = "".join(f"; {p.name}: {p.tail()}" for p in parts)
            raise ClusterError(f"not within {seconds:g} s: {what}{tails}")
        time.sleep(0.05)
