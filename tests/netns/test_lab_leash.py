"""A lab ends with the process it belongs to, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import Lab
from tests.netns.mesh_objects import pod

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

NAME = "t-leash"
NEVER_READY = pod("plain", "p", "node1", ["sleep", "7713001"], 9)
READY = pod("plain", "p", "node1", ["sleep", "7713001"])


def running() -> list[str]:
    done = subprocess.run(["pgrep", "-fx", "sleep 7713001"], capture_output=True, text=True)
    return done.stdout.split()


def until(what: str, true: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab(NAME, mesh=False)
    yield made
    made.down()


def up_command(folder: Path, objects: list[dict[str, Any]]) -> list[str]:
    manifest = folder / "objects.yaml"
    manifest.write_text(yaml.safe_dump_all(objects))
    return [sys.executable, "-m", "cli.main", "lab", "up", str(manifest), "--no-mesh", "-q"]


def test_a_killed_up_takes_its_half_built_lab_along(lab: Lab, tmp_path: Path) -> None:
    """kill -9 while it waits: nothing runs on, and the next `up` at once is not refused."""
    process = subprocess.Popen([*up_command(tmp_path, NEVER_READY), "--name", NAME])
    until("the pod runs", running)
    process.kill()
    process.wait()
    lab.up(READY)  # needs no replace
    assert len(running()) == 1
    assert lab.live


def test_a_finished_up_leaves_the_lab_up(lab: Lab, tmp_path: Path) -> None:
    """The command has returned; the lab goes on, and a second `up` must say --replace."""
    command = [*up_command(tmp_path, READY), "--name", NAME]
    assert subprocess.run(command, timeout=60).returncode == 0
    time.sleep(1)
    assert lab.live
    assert running()
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "--replace" in refused.stderr
    assert lab.live


def test_a_killed_owner_takes_its_lab_along(lab: Lab) -> None:
    """A test run or benchmark that is killed leaves no lab running behind."""
    script = (
        "import time\nfrom lab import Lab\nfrom tests.netns.test_lab_leash import NAME, READY\n"
        "with Lab(NAME, mesh=False) as lab:\n    lab.up(READY)\n    print('up', flush=True)\n"
        "    time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    assert running()
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    until("the pod's end", lambda: not running())
    until("the lab's end", lambda: not lab.live)
