"""What is printed and what is written. Pure, but for the file."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from bench.measure import Result, Round
from bench.rows import Kind
from bench.stats import Spread

_NUMBERS: Final[dict[str, Callable[[Round], float | None]]] = {
    "rate": lambda r: r.outcome.rate,
    "p50_us": lambda r: r.outcome.p50_us,
    "p99_us": lambda r: r.outcome.p99_us,
    "proxy_cpu_us": lambda r: r.proxy_cpu_us,
    "machine_cpu_us": lambda r: r.machine_cpu_us,
}
_BUSY: Final = 0.2  # CPUs: more than an idle machine with a lab on it uses
_BASES: Final = ("direct", "envoy", "ztunnel")


def last_line(result: Result) -> str:
    """The line a row ends with: its name, and Ambit's rate over each other's."""
    over = "ambit" if "ambit" in result.rounds else "envoy"
    pairs = [(over, base) for base in _BASES if base in result.rounds and base != over]
    ratios = (f"{over}/{base} {result.ratio(over, base).median:.3f}" for over, base in pairs)
    return " ".join([result.row.name, *ratios])


def table(result: Result) -> str:
    """Absolute medians with their extremes, one line per contender."""
    row = result.row
    cost = "us/MB" if row.kind is Kind.THROUGHPUT else "us each"
    lines = [
        f"{'':9}{row.kind.value:>16}  {'low-high':>19}{'p50 us':>9}{'p99 us':>9}"
        f"{'proxy ' + cost:>15}{'machine ' + cost:>17}"
    ]
    for name in result.rounds:
        rate = _spread(result, name, "rate", row.scale)
        cells = [_median(result, name, key) for key in list(_NUMBERS)[1:]]
        low_high = f"{rate.low:,.5g}-{rate.high:,.5g}"
        lines.append(
            f"{name:9}{rate.median:>16,.5g}  {low_high:>19}"
            f"{cells[0]:>9}{cells[1]:>9}{cells[2]:>15}{cells[3]:>17}"
        )
    busy = max(result.background, default=0.0)
    if busy > _BUSY:
        lines.append(f"note: something else kept up to {busy:.1f} CPUs busy; expect a wide spread")
    return "\n".join(lines)


def _spread(result: Result, name: str, key: str, scale: float) -> Spread:
    got = result.spread(name, _NUMBERS[key])
    assert got is not None
    return Spread(got.median / scale, got.low / scale, got.high / scale)


def _median(result: Result, name: str, key: str) -> str:
    got = result.spread(name, _NUMBERS[key])
    return "" if got is None else f"{got.median:,.0f}"


def as_dict(result: Result) -> dict[str, Any]:
    """One row of results.json."""
    names = list(result.rounds)
    return {
        "unit": result.row.kind.value,
        "ratios": {
            f"{over}/{base}": _spread_dict(result.ratio(over, base))
            for over in names
            for base in _BASES
            if base in names
            and over not in (base, "direct")
            and (over == "ambit" or base == "direct")
        },
        "contenders": {name: _contender(result, name) for name in names},
        "background_cpus": result.background,
    }


def _contender(result: Result, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in _NUMBERS.items():
        spread = result.spread(name, value)
        if spread is not None:
            found[key] = _spread_dict(spread)
    found["rounds"] = [_round(r) for r in result.rounds[name]]
    return found


def _round(r: Round) -> dict[str, float]:
    return {k: v for k, value in _NUMBERS.items() if (v := value(r)) is not None}


def _spread_dict(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "low": spread.low, "high": spread.high}


def machine() -> dict[str, Any]:
    """What it was measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_model": model,
        "memory_mib": memory // 2**20,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def build(
    results: Iterable[Result], memory: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Everything that results.json holds."""
    return {
        "machine": machine(),
        "settings": settings,
        "rows": {result.row.name: as_dict(result) for result in results},
        "memory": memory,
    }


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
