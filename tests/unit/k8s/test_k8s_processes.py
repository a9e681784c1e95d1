"""Processes of a test cluster, without namespaces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.k8s.cluster import ClusterError
from tests.k8s.cluster.locks import exclusive
from tests.k8s.cluster.processes import Part, Place, parent, run, start_time, wait_until

HERE = Place((), "")
ROOT = Path(__file__).parents[3]


def test_a_part_is_found_again_and_started_once(tmp_path: Path) -> None:
    part = Part("one", tmp_path)
    pid = part.start(HERE, ["sleep", "60"])
    assert Part("one", tmp_path).pid == pid == part.start(HERE, ["false"])
    part.stop()
    assert part.pid == 0


def test_the_child_is_what_counts_where_the_command_forks(tmp_path: Path) -> None:
    part = Part("one", tmp_path)
    pid = part.start(HERE, ["sh", "-c", "sleep 60; exit 3"], forks=True)
    name = Path(f"/proc/{pid}/comm")
    wait_until("it has become sleep", 10, lambda: name.read_text() == "sleep\n", part)
    part.stop()


def test_a_part_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    part = Part("deaf", tmp_path)
    part.start(HERE, [sys.executable, "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); "
        "time.sleep(60)"])  # fmt: skip
    wait_until("it is deaf", 10, lambda: part.tail() == "on", part)
    part.stop(signal.SIGTERM, patience=0.3)
    assert part.pid == 0


def test_another_process_of_the_same_number_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "one.pid").write_text(f"{os.getpid()} 1")
    part = Part("one", tmp_path)
    assert part.pid == 0
    part.stop()


def test_a_part_that_died_says_what_it_said(tmp_path: Path) -> None:
    part = Part("one", tmp_path)
    part.start(HERE, ["sh", "-c", "echo no such flag >&2; exit 1"])
    with pytest.raises(ClusterError, match="one ended: no such flag"):
        wait_until("never", 10, lambda: False, part)


def test_waiting_ends_and_names_what_for(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"not within 0\.1 s: the moon rises"):
        wait_until("the moon rises", 0.1, lambda: False)


def test_parts_get_none_of_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://elsewhere.example")
    part = Part("one", tmp_path)
    part.start(HERE, ["env"], {"EXTRA": "yes"})
    wait_until("it ends", 10, lambda: not part.pid)
    text = part.log.read_text()
    assert "EXTRA=yes" in text
    assert "elsewhere" not in text


def test_a_command_s_output_or_complaint(tmp_path: Path) -> None:
    assert run(["cat"], data=b"in") == "in"
    with pytest.raises(ClusterError, match=r"sh -c echo oops >&2; exit 2: oops"):
        run(["sh", "-c", "echo oops >&2; exit 2"])
    with pytest.raises(ClusterError, match=r"sleep 9: not done in 0.1 s"):
        run(["sleep", "9"], timeout=0.1)


def test_a_place_is_control_groups_then_namespaces_then_those_inside() -> None:
    place = Place((Path("/g/a"), Path("/g/b")), "x", 42, (Path("/g/in"),))
    words = place.wrap(["command"])
    enter = words.index("nsenter")
    assert "/g/a /g/b" in words[:enter]
    assert words[enter : enter + 3] == ["nsenter", "-t", "42"]
    assert "/g/in" in words[enter:]
    assert words[-1] == "command"
    assert Place((), "x").wrap(["c"]) == ["nsenter", "--net=/run/netns/x", "--", "c"]


def test_groups_are_joined_before_the_command_runs(tmp_path: Path) -> None:
    """Files stand for groups: what joins is the process itself, which is written as 0."""
    groups = (tmp_path / "a", tmp_path / "b/c")
    assert run(["true"], Place(groups, "")) == ""
    assert [(g / "cgroup.procs").read_text() for g in groups] == ["0\n", "0\n"]


def test_facts_about_processes() -> None:
    assert parent(os.getpid()) == str(os.getppid())
    assert start_time(os.getpid()).isdigit()
    with subprocess.Popen(["true"]) as gone:
        pass
    assert start_time(gone.pid) == parent(gone.pid) == ""


def test_one_at_a_time(tmp_path: Path) -> None:
    """Also when the first removes the file that the second waits for."""
    file = tmp_path / "locks" / "one"
    script = (
        "import sys, pathlib\n"
        "from tests.k8s.cluster.locks import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1]), print):\n"
        "    print('mine', flush=True)\n"
    )
    heard: list[str] = []
    with exclusive(file, heard.append):
        words = [sys.executable, "-u", "-c", script, str(file)]
        other = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert other.stdout is not None
        assert other.stdout.readline() == f"waiting for whoever holds {file}\n"
        time.sleep(0.1)
        assert other.poll() is None
    assert other.stdout.readline() == "mine\n"
    assert other.wait(10) == 0
    assert heard == []
    assert not file.exists()
