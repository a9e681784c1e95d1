"""A cluster's beginning and end, beside another one that stays up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import cgroups
from tests.k8s.cluster import Cluster, ClusterError
from tests.k8s.cluster.layout import hierarchies
from tests.k8s.objects import namespace, pod

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(300)]
NAME = "life"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _beside(cluster: Cluster) -> None:
    """The one that stays up."""


@pytest.fixture
def second() -> Iterator[Cluster]:
    """Another one, of these tests' own."""
    found = Cluster(NAME)
    yield found
    found.down()


def state() -> dict[str, object]:
    """What this machine has of its own that a cluster could change."""
    groups = {str(p) for top in hierarchies() for p in top.glob(f"{NAME}*")}
    settings = ["vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "kernel/hostname"]
    return {
        "network": subprocess.check_output(["ip", "-br", "addr"], text=True),
        "routes": subprocess.check_output(["ip", "route"], text=True),
        "rules": subprocess.check_output(["nft", "list", "tables"], text=True),
        "namespaces": {n for n in os.listdir("/run/netns") if n.startswith(NAME)},
        "mounts": [m for m in Path("/proc/mounts").read_text().splitlines() if f"/{NAME}" in m],
        "groups": groups,
        "settings": [Path("/proc/sys", s).read_text() for s in settings],
        "bpf": sorted(os.listdir("/sys/fs/bpf")),
        "run": sorted(p for p in os.listdir("/run") if p not in ("netns", "lock")),
        "processes": [c for c in command_lines() if f"/{NAME}/" in c],
    }


def command_lines() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def settle(cluster: Cluster) -> None:
    """Pods on both nodes, and one that runs."""
    cluster.apply(namespace("some"), pod("some", "one", "n1"), pod("some", "two", "n2"))
    cluster.kubectl("wait", "-n", "some", "--for=condition=Ready", "pod", "--all", "--timeout=60s")


def test_down_leaves_nothing_and_the_machine_as_it_was(second: Cluster, cluster: Cluster) -> None:
    before = state()
    second.up()
    settle(second)
    assert len(cluster.get("nodes")["items"]) == 2  # of the same addresses
    second.down()
    assert second.leftovers() == []
    assert state() == before


def test_up_and_down_after_everything_was_killed(second: Cluster) -> None:
    before = state()
    second.up()
    settle(second)
    groups = [second.layout.cp_cgroup, *(n.node.cgroup for n in second.nodes.values())]
    for pid in [pid for group in groups for pid in cgroups.members(group)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    second.up()
    settle(second)
    second.down()
    assert state() == before


def test_the_command_line_tells_what_is_wrong(second: Cluster) -> None:
    def said(*words: str) -> str:
        command = [sys.executable, "-m", "tests.k8s.cluster", "--name", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode, words
        return done.stderr.splitlines()[-1]

    assert said("Not-a-name", "up").startswith("cluster: --name Not-a-name: 1 to 8 ")
    assert "is not up" in said(NAME, "kubectl", "get", "nodes")
    assert "invalid choice: 'n7'" in said(NAME, "node-exec", "n7", "--", "true")
    with pytest.raises(ClusterError, match="is down"):
        second.nodes["n1"].run("true")
