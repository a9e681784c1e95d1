"""Where things run: pods of a lab, and processes inside them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import BenchError

# The load generator and the servers never share a CPU, as two machines never do. Left to the
# scheduler they sometimes do, and a request rate at c=1 then jumps threefold between rounds.
# What is measured (the proxies) floats.
CLIENT_CPU: Final = min(os.sched_getaffinity(0))
SERVER_CPU: Final = max(os.sched_getaffinity(0))


def pinned(cpu: int, command: list[str]) -> list[str]:
    """Build the command line that runs `command` on one CPU."""
    return ["taskset", "-c", str(cpu), *command]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod: its network namespace, its cgroup (None: leave the process where it is), its IPv4."""

    name: str
    address: str
    netns: Path
    cgroup: Path | None = None

    def argv(self, command: list[str]) -> list[str]:
        """Build the command that becomes `command` inside the pod, in the same process."""
        # The cgroup is joined first: the mesh captures sockets by it, whoever makes them.
        join = f"echo 0 >{self.cgroup}/cgroup.procs && " if self.cgroup else ""
        script = f'{join}exec nsenter --net={self.netns} -- "$@"'
        return ["sh", "-c", script, "sh", *command]

    def run(self, command: list[str], timeout: float) -> str:
        """Run a command inside the pod and return what it printed; raises BenchError."""
        try:
            done = subprocess.run(
                self.argv(command), capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as e:
            raise BenchError(f"{self.name}: {command[0]} did not end in {timeout:.0f} s") from e
        # iperf3 reports its own failure as JSON on stdout, with a code of 1.
        if done.returncode != 0 and not done.stdout.lstrip().startswith("{"):
            why = (done.stderr or done.stdout).strip()[-400:]
            raise BenchError(f"{self.name}: {' '.join(command)}: {why}")
        return done.stdout

    def start(self, command: list[str], log: Path) -> subprocess.Popen[str]:
        """Start a process inside the pod that reads stdin and prints to stdout (both pipes)."""
        with log.open("ab") as errors:
            return subprocess.Popen(
                self.argv(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )


def stop(processes: list[subprocess.Popen[str]]) -> None:
    """End processes: politely, then not."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
