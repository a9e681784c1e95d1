"""Contenders are built from what the lab's container runtime knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import world
from bench.errors import BenchError
from bench.pods import Pod


def test_pods_are_found_by_name_with_their_ipv4_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On whatever node they are, whichever family comes first."""
    for node, addresses in (("near", ["fd00::5", "10.244.1.5"]), ("far", ["10.244.2.6"])):
        folder = tmp_path / "bench" / "nodes" / node / "pods"
        folder.mkdir(parents=True)
        pod = {
            "uid": node,
            "namespace": "mesh",
            "name": f"pod-{node}",
            "netns": f"/run/netns/{node}",
            "cgroup": f"/sys/fs/cgroup/ambit/bench/{node}/pods/{node}",
            "addresses": addresses,
        }
        (folder / f"{node}.json").write_text(json.dumps(pod))
    monkeypatch.setattr(world, "LABS", tmp_path)
    pods = world.find_pods("bench")
    assert {key: pod.address for key, pod in pods.items()} == {
        ("mesh", "pod-near"): "10.244.1.5",
        ("mesh", "pod-far"): "10.244.2.6",
    }


def test_all_processes_of_a_nodes_proxy_are_charged(tmp_path: Path) -> None:
    """Control process and relay workers, on both nodes, found from where the pods are."""

    def pod(node: str, *pids: int) -> Pod:
        proxy = tmp_path / node / "system" / "ztunnel"
        proxy.mkdir(parents=True)
        (proxy / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        return Pod(node, "10.0.0.1", Path("/run/netns/x"), tmp_path / node / "pods" / "uid")

    assert world.ztunnels_of(pod("a", 10, 11), pod("b", 20)) == {"near": [10, 11], "far": [20]}


def test_a_process_enters_cgroup_and_namespace_before_it_becomes_the_command() -> None:
    """One process from the start: its pid is the command's."""
    pod = Pod("ns/p", "10.0.0.1", Path("/run/netns/x"), Path("/sys/fs/cgroup/y"))
    argv = pod.argv(["wrk", "-t1", "http://a b/"])
    assert argv[:2] == ["sh", "-c"]
    assert argv[2].index("/sys/fs/cgroup/y/cgroup.procs") < argv[2].index("--net=/run/netns/x")
    assert argv[4:] == ["wrk", "-t1", "http://a b/"]


@pytest.mark.root
def test_a_command_that_fails_is_named_with_its_pod() -> None:
    """The error says where and why."""
    here = Pod("ns/p", "127.0.0.1", Path("/proc/self/ns/net"))
    assert here.run(["echo", "good"], timeout=5) == "good\n"
    with pytest.raises(BenchError, match="ns/p: sh -c echo why >&2; exit 3: why"):
        here.run(["sh", "-c", "echo why >&2; exit 3"], timeout=5)
    with pytest.raises(BenchError, match="did not end in"):
        here.run(["sleep", "5"], timeout=0.1)
