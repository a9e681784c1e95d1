"""Running tool.py in pods, and two loops of connects while something happens to the mesh."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from lab import Lab
from tests.netns.mesh_objects import TOOL, line


def tool(lab: Lab, who: str, *args: str, timeout: float = 60) -> dict[str, object]:
    """Run a verb of tool.py in a pod; its answer, or the assertion with what it printed."""
    done = lab.exec(who, [sys.executable, TOOL, *args], timeout=timeout)
    assert done.stdout.strip(), done.stderr
    return line(done.stdout)


def start(lab: Lab, who: str, *args: str) -> subprocess.Popen[str]:
    """Run a verb in the background; returns once it is under way."""
    process = lab.popen(who, [sys.executable, TOOL, *args])
    assert process.stdout is not None
    process.stdout.readline()
    return process


def result(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=60)
    assert out.strip(), err
    return line(out)


def under_two_loops(
    lab: Lab, seconds: int, *disturb: Callable[[], None]
) -> list[dict[str, object]]:
    """Two loops of connects, across nodes both ways, while each disturbance happens."""
    loops = [
        start(lab, "mesh/client", "loop", "server", str(seconds)),
        start(lab, "mesh/other", "loop", "near", str(seconds)),
    ]
    pause = seconds / (len(disturb) + 1)
    for action in disturb:
        time.sleep(pause)
        action()
    return [result(p) for p in loops]
