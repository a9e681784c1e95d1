"""Processes of a cluster: started in the namespaces and the control group they belong to.

A part is known by its pid and the start time of that pid: numbers come again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import cgroups
from tests.k8s.cluster.errors import ClusterError


@dataclass(frozen=True, slots=True)
class Place:
    """Where processes run: a control group, a network namespace, and that of a process's mounts."""

    cgroup: Path
    netns: str  # "": the machine's own
    inside: int = 0  # pid whose mount and UTS namespaces to join; 0: stay in ours

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command there."""
        if self.inside:
            return ["nsenter", "-t", str(self.inside), "-m", "-u", "-n", "--", *command]
        if not self.netns:
            return list(command)
        return ["nsenter", f"--net=/run/netns/{self.netns}", "--", *command]


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

    def start(self, place: Place, command: Sequence[str], env: dict[str, str] | None = None) -> int:
        """Start it, unless it lives."""
        if self.pid:
            return self.pid
        self.log.parent.mkdir(parents=True, exist_ok=True)
        cgroups.make(place.cgroup)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                _born_in(place.cgroup, place.wrap(command)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )
        self._pid_file.write_text(f"{process.pid} {start_time(process.pid)}")
        return process.pid

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


def _born_in(cgroup: Path, command: Sequence[str]) -> list[str]:
    """Join a control group, then become the command: nothing it starts is ever outside."""
    script = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
    return ["/bin/sh", "-c", script, str(cgroup), *command]


def start_time(pid: int) -> str:
    """When a process started, in ticks since boot (proc(5) field 22); "" when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rsplit(")", 1)[1].split()
    return "" if fields[0] in "ZX" else fields[19]


def run(
    command: Sequence[str],
    place: Place | None = None,
    data: bytes | None = None,
    timeout: float = 60,
) -> str:
    """Run to the end; raises ClusterError with what it said."""
    words = place.wrap(command) if place else list(command)
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
