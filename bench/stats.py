"""Medians, ratios and the order of rounds. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the extremes it was taken from."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that so many percent of the values do not exceed (nearest rank)."""
    ranked = sorted(values)
    rank = math.ceil(len(ranked) * percent / 100)
    return ranked[max(rank, 1) - 1]


def order(contenders: Sequence[str], pair: int) -> list[str]:
    """Rotate who starts, so that no contender always runs on a warm or a cold machine."""
    at = pair % len(contenders)
    return [*contenders[at:], *contenders[:at]]


def ratios(rates: Mapping[str, Sequence[float]], over: str, under: str) -> list[float]:
    """Ratio of each pair: round i of one contender by round i of the other, seconds apart."""
    return [a / b for a, b in zip(rates[over], rates[under], strict=True)]
