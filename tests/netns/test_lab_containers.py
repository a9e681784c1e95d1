"""Containers in the lab's pods live as a kubelet would have them live."""

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

from lab import Lab, cleanup
from lab.layout import Layout
from tests.netns.mesh_objects import pod

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

NS = "plain"


def until(what: str, true: Callable[[], Any], seconds: float = 15) -> Any:
    """Wait for something to become true; its value."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return value


def running(marker: str) -> list[int]:
    """Pids of processes that have the marker among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if marker.encode() in words:
            found.append(int(path.parent.name))
    return found


def one(name: str, container: dict[str, Any], **spec: Any) -> list[dict[str, Any]]:
    """A pod of one container, and its account."""
    objects = pod(NS, name, "node1", [])
    objects[1]["spec"] |= {"containers": [{"name": "app", **container}], **spec}
    return objects


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("t-containers", mesh=False) as made:
        made.up(pod(NS, "idle", "node1", ["sleep", "infinity"]))
        yield made


@pytest.fixture
def apply(lab: Lab) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Apply objects for one test; they are gone after it."""
    applied: list[dict[str, Any]] = []

    def do(objects: list[dict[str, Any]]) -> None:
        applied.extend(objects)
        lab.apply(objects)

    yield do
    lab.delete(applied)


Apply = Callable[[list[dict[str, Any]]], None]


def test_init_containers_run_one_after_the_other_before_the_others(
    lab: Lab, apply: Apply, tmp_path: Path
) -> None:
    """Each must succeed before the next begins; one that fails is tried again."""
    trace = tmp_path / "trace"
    flaky = f"test -e {trace} || {{ touch {trace}; exit 3; }}; sleep 0.3; echo one >>{trace}"
    apply(
        one(
            "staged",
            {"command": ["sh", "-c", f"echo app >>{trace}; exec sleep infinity"]},
            initContainers=[
                {"name": "one", "command": ["sh", "-c", flaky]},
                {"name": "two", "command": ["sh", "-c", f"echo two >>{trace}"]},
            ],
        )
    )
    lab.wait_ready()
    until("the app has begun", lambda: "app" in trace.read_text())
    assert trace.read_text().split() == ["one", "two", "app"]


def test_a_pod_whose_init_container_fails_for_good_has_failed(lab: Lab, apply: Apply) -> None:
    """restartPolicy Never: the containers never start."""
    init = [{"name": "one", "command": ["false"]}]
    container = {"command": ["sleep", "7712340"]}
    apply(one("doomed", container, initContainers=init, restartPolicy="Never"))
    until("Failed", lambda: lab.get("Pod", NS, "doomed").get("status", {}).get("phase") == "Failed")
    assert not running("7712340")


def test_a_pod_is_never_ready_while_it_crashes(lab: Lab, apply: Apply) -> None:
    """Not even between two starts: a service must not send anybody there."""
    apply(one("crasher", {"command": ["sh", "-c", "exit 7"]}))
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        conditions = lab.get("Pod", NS, "crasher").get("status", {}).get("conditions", [])
        assert {"True"} != {c["status"] for c in conditions if c["type"] == "Ready"}
        time.sleep(0.01)


def test_a_failing_liveness_probe_restarts_the_container(
    lab: Lab, apply: Apply, tmp_path: Path
) -> None:
    """An exec probe, run inside the pod."""
    healthy = tmp_path / "healthy"
    healthy.touch()
    probe = {"exec": {"command": ["test", "-e", str(healthy)]}, "periodSeconds": 1}
    apply(one("sickly", {"command": ["sleep", "7712341"], "livenessProbe": probe}))
    lab.wait_ready()
    (pid,) = until("it runs", lambda: running("7712341"))
    healthy.unlink()
    until("the old process is gone", lambda: pid not in running("7712341"))
    healthy.touch()
    until("a new one runs", lambda: running("7712341"))


def test_a_deleted_pod_gets_its_grace_and_no_more(lab: Lab, tmp_path: Path) -> None:
    """SIGTERM first; what ignores it is killed when its time is over."""
    said = tmp_path / "said"
    stubborn = f"trap 'echo term >>{said}' TERM; echo up >>{said}; while :; do sleep 0.1; done"
    container = {"command": ["sh", "-c", stubborn]}
    objects = one("stubborn", container, terminationGracePeriodSeconds=1)
    lab.apply(objects)
    lab.wait_ready()
    until("it is up", lambda: said.exists() and "up" in said.read_text())
    group = lab.place(f"{NS}/stubborn").cgroup
    began = time.monotonic()
    lab.delete(objects)
    until("its control group is gone", lambda: not group.exists(), 6)
    assert 0.8 < time.monotonic() - began < 5
    assert "term" in said.read_text()


def test_a_pod_that_runs_to_its_end_has_succeeded(lab: Lab, apply: Apply) -> None:
    """restartPolicy Never, as a Job's pod has it."""
    apply(one("oneshot", {"command": ["true"]}, restartPolicy="Never"))
    until(
        "Succeeded",
        lambda: lab.get("Pod", NS, "oneshot").get("status", {}).get("phase") == "Succeeded",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing(tmp_path: Path, number: int) -> None:
    """Ctrl-C, or a CI job's SIGTERM, while it waits for a pod that never gets ready."""
    manifest = tmp_path / "never.yaml"
    manifest.write_text(yaml.safe_dump_all(pod(NS, "never", "node1", ["sleep", "7712342"], 9)))
    command = [sys.executable, "-m", "cli.main", "lab", "up", str(manifest), "--no-mesh"]
    process = subprocess.Popen(
        [*command, "--name", "t-stop"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until("its pod runs", lambda: running("7712342"))
    os.kill(process.pid, number)
    assert process.wait(timeout=20) != 0
    assert cleanup.remains(Layout("t-stop")) == []
    assert not running("7712342")
