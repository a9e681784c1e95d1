"""Ratios are taken pair by pair, and nobody always goes first."""

from __future__ import annotations

import pytest

from bench.stats import Spread, order, ratios


def test_each_contender_goes_first_equally_often() -> None:
    """Three pairs of three contenders: three different starts, all contenders every time."""
    names = ["direct", "ambit", "envoy"]
    orders = [order(names, pair) for pair in range(6)]
    assert [o[0] for o in orders] == names * 2
    assert all(sorted(o) == sorted(names) for o in orders)


def test_a_machine_that_slows_down_does_not_move_the_ratio() -> None:
    """Half speed for both in the second pair: the ratio of every pair stays."""
    rates = {"ambit": [50.0, 25.0], "direct": [100.0, 50.0]}
    assert ratios(rates, "ambit", "direct") == [0.5, 0.5]


def test_a_missing_round_is_an_error() -> None:
    """Pairs must be whole."""
    with pytest.raises(ValueError, match="argument 2"):
        ratios({"ambit": [1.0], "direct": [1.0, 2.0]}, "ambit", "direct")


def test_spread_is_median_and_extremes() -> None:
    """One wild round moves an extreme, not the median."""
    assert Spread.of([3.0, 1.0, 100.0]) == Spread(3.0, 1.0, 100.0)
