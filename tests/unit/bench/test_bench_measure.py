"""Rounds of a row are interleaved, and each is charged what it cost."""

from __future__ import annotations

import pytest

from bench import measure
from bench.load import Outcome
from bench.measure import Round
from bench.measure import measure as run
from bench.pods import Pod
from bench.rows import ROWS, Row


class _Way:
    def __init__(self, name: str) -> None:
        self.name = name

    client: Pod

    def target(self, server: str) -> tuple[str, int, int]:
        return server, 8080, 5201

    def proxies(self) -> list[int]:
        return []


def test_every_pair_holds_one_round_of_each_in_rotating_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After one warm-up each, three pairs of two contenders alternate who is first."""
    ran: list[tuple[str, int]] = []

    def fake(row: Row, way: measure.Contender, seconds: int) -> Round:
        ran.append((way.name, seconds))
        return Round(Outcome(float(len(ran)), 1), 0.0, 0.0)

    monkeypatch.setattr(measure, "one_round", fake)
    monkeypatch.setattr(measure, "background", lambda: 0.1)
    result = run(ROWS["across-rps1"], [_Way("direct"), _Way("ambit")], pairs=3, seconds=4)
    assert ran[:2] == [("direct", 1), ("ambit", 1)]
    assert [name for name, _ in ran[2:]] == [
        "direct",
        "ambit",
        "ambit",
        "direct",
        "direct",
        "ambit",
    ]
    assert [r.outcome.rate for r in result.rounds["direct"]] == [3.0, 6.0, 7.0]
    assert result.ratio("ambit", "direct").median == 8 / 7
    assert result.background == [0.1, 0.1, 0.1]
