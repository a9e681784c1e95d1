"""CPU time and memory of a set of processes, and of the whole machine, from /proc (Linux only)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")


def cpu_seconds_of(stat: str) -> float:
    """User plus system time of all threads, from the text of /proc/PID/stat (proc(5))."""
    # The command name may hold spaces and brackets: fields are counted from its last bracket.
    fields = stat.rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def busy_seconds_of(stat: str) -> float:
    """Time all CPUs were not idle, from the text of /proc/stat (proc(5))."""
    fields = [int(f) for f in stat.split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, _steal = fields
    return (user + nice + system + irq + softirq) / _TICK


def cpu_seconds(pids: Iterable[int]) -> dict[int, float]:
    """CPU time of each process that still lives."""
    found = {}
    for pid in pids:
        try:
            found[pid] = cpu_seconds_of((_PROC / str(pid) / "stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def busy_seconds() -> float:
    """Time all CPUs of the machine were not idle since boot."""
    return busy_seconds_of((_PROC / "stat").read_text())


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. rss counts shared pages in every process; pss divides them among those that share."""

    rss: int
    pss: int


def memory_of(rollup: str) -> Memory:
    """Read the text of /proc/PID/smaps_rollup."""
    kib = {}
    for line in rollup.splitlines()[1:]:
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    return Memory(kib["Rss"] * 1024, kib["Pss"] * 1024)


def memory(pids: Iterable[int]) -> Memory:
    """Sum over the processes that still live."""
    rss = pss = 0
    for pid in pids:
        try:
            one = memory_of((_PROC / str(pid) / "smaps_rollup").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
        rss, pss = rss + one.rss, pss + one.pss
    return Memory(rss, pss)


def has_mapped(pids: Iterable[int], part: str) -> bool:
    """Whether any of the processes has a file mapped whose path contains `part`."""
    for pid in pids:
        try:
            if part in (_PROC / str(pid) / "maps").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False
