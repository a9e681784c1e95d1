"""The command line chooses contenders and refuses what cannot be run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import __main__ as command
from bench.errors import BenchError
from bench.world import ZTUNNEL_VARIABLE


@pytest.fixture(autouse=True)
def _no_other_ztunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ZTUNNEL_VARIABLE, raising=False)


def test_the_other_ztunnel_takes_part_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment variable, and last."""
    assert command._contenders(None) == ["direct", "ambit", "envoy"]
    monkeypatch.setenv(ZTUNNEL_VARIABLE, sys.executable)
    assert command._contenders(None) == ["direct", "ambit", "envoy", "ztunnel"]


def test_a_ztunnel_that_is_no_program_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before a lab waits for it in vain."""
    monkeypatch.setenv(ZTUNNEL_VARIABLE, str(tmp_path / "ztunnel"))
    with pytest.raises(BenchError, match="no such program"):
        command._contenders(None)


def test_fewer_contenders_keep_their_order() -> None:
    """Whatever the order they were named in."""
    assert command._contenders("envoy,direct") == ["direct", "envoy"]


@pytest.mark.parametrize("only", ["ambit", "direct,nobody", "direct,ztunnel", ""])
def test_a_comparison_needs_two_known_contenders(only: str) -> None:
    """One alone has no ratio; another ztunnel needs its variable."""
    with pytest.raises(BenchError, match="two or more of: direct, ambit, envoy"):
        command._contenders(only)


def test_help_names_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    """And what each of them does."""
    with pytest.raises(SystemExit):
        command._parser().parse_args(["--help"])
    text = capsys.readouterr().out
    for word in ("across-throughput", "samenode-newconn", "iperf3", "wrk", ZTUNNEL_VARIABLE):
        assert word in text
