"""CPU time and memory are read from /proc as proc(5) describes it."""

from __future__ import annotations

import os
import time

import pytest

from bench import usage


def test_cpu_time_survives_brackets_and_spaces_in_the_command_name() -> None:
    """utime and stime are the 14th and 15th field, counted after the name's last bracket."""
    stat = "77 (a) b (c) S 1 77 77 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 9 0 1 1 1"
    assert usage.cpu_seconds_of(stat) == pytest.approx(200 / os.sysconf("SC_CLK_TCK"))


def test_busy_time_leaves_out_idle_waiting_and_stolen_time() -> None:
    """Only time this machine's CPUs worked counts."""
    stat = "cpu  10 20 30 4000 500 6 7 800 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert usage.busy_seconds_of(stat) == pytest.approx(73 / os.sysconf("SC_CLK_TCK"))


def test_memory_rollup_is_read_in_bytes() -> None:
    """RSS and PSS of one process."""
    rollup = "0-1 ---p 0 00:00 0 [rollup]\nRss:   2048 kB\nPss:   1024 kB\nPss_Dirty: 12 kB\n"
    assert usage.memory_of(rollup) == usage.Memory(2048 * 1024, 1024 * 1024)


def test_a_process_that_is_gone_costs_nothing() -> None:
    """A relay worker may die between listing and reading."""
    gone = 2**22 + 1  # above the largest pid Linux gives
    assert usage.cpu_seconds([gone]) == {}
    assert usage.memory([gone]) == usage.Memory(0, 0)


def test_work_of_this_process_is_seen() -> None:
    """Burning CPU moves the counter."""
    me = os.getpid()
    before = usage.cpu_seconds([me])[me]
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert usage.cpu_seconds([me])[me] - before >= 0.05
    assert usage.memory([me]).rss > 0


def test_what_a_process_really_runs_is_read_from_its_maps() -> None:
    """A compiled module is a mapped file; another name is not there."""
    me = [os.getpid(), 2**22 + 1]
    assert usage.has_mapped(me, "/libc")
    assert not usage.has_mapped(me, "/no-such-library")
