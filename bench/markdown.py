"""The tables of RESULTS.md, made from results.json. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from bench.errors import BenchError

_BEGIN: Final = "<!-- made by python -m bench all: begin -->"
_END: Final = "<!-- made by python -m bench all: end -->"

Json = Mapping[str, Any]


def insert(page: str, report: Json) -> str:
    """Put the tables between the page's two marks; raises BenchError where they are missing."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise BenchError(f"RESULTS.md needs the lines {_BEGIN!r} and {_END!r}")
    return f"{before}{_BEGIN}\n{tables(report)}\n{_END}{after}"


def tables(report: Json) -> str:
    """Render everything: machine, ratios, absolute numbers, cost, memory."""
    machine, settings = report["machine"], report["settings"]
    where = (
        f"{machine['cpus']} CPUs ({machine['cpu_model']}), {machine['memory_mib'] // 1024} GiB,"
        f" Linux {machine['kernel']}, Python {machine['python']};"
        f" {settings['pairs']} pairs of {settings['seconds']} s rounds."
    )
    if settings.get("relay"):
        where += f" Ambit's relay: {settings['relay']}."
    parts = [
        f"Machine: {where}",
        "### Ratios of rates: median (low-high) over the pairs",
        _ratios(report["rows"]),
        "### Absolute: median rate; p50 / p99",
        _rates(report["rows"]),
        "### CPU time of the proxies, and of the whole machine, per request, connection or MB (us)",
        _costs(report["rows"]),
        "### Memory of the proxies, RSS / PSS in MiB",
        _memory(report["memory"]),
    ]
    return "\n\n".join(parts)


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(headings)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _names(rows: Json) -> list[str]:
    """Contenders, in the order in which they ran."""
    return list(next(iter(rows.values()))["contenders"])


def _ratios(rows: Json) -> str:
    # Envoy over direct is the yardstick; the others are what is asked.
    keys = list(next(iter(rows.values()))["ratios"])
    return _table(
        ["row", *keys],
        ([name, *(_spread(row["ratios"][key]) for key in keys)] for name, row in rows.items()),
    )


def _spread(ratio: Json) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def _rates(rows: Json) -> str:
    names = _names(rows)
    return _table(
        ["row", "unit", *names],
        (
            [name, row["unit"], *(_rate(row["contenders"][n], row["unit"]) for n in names)]
            for name, row in rows.items()
        ),
    )


def _rate(contender: Json, unit: str) -> str:
    median = contender["rate"]["median"]
    if unit == "Gbit/s":
        return f"{median / 1e9:.2f}"
    p50, p99 = (contender[key]["median"] / 1e3 for key in ("p50_us", "p99_us"))
    return f"{median:,.0f}; {p50:.2f} / {p99:.1f} ms"


def _costs(rows: Json) -> str:
    names = _names(rows)

    def cell(contender: Json) -> str:
        proxy, machine = (contender[k]["median"] for k in ("proxy_cpu_us", "machine_cpu_us"))
        return f"{proxy:,.0f} / {machine:,.0f}"

    return _table(
        ["row", *names],
        ([name, *(cell(row["contenders"][n]) for n in names)] for name, row in rows.items()),
    )


def _memory(memory: Json) -> str:
    moments = list(dict.fromkeys(m for states in memory.values() for m in states))
    rows = []
    for name, states in memory.items():
        for place in next(iter(states.values())):
            cells = (states.get(m, {}).get(place) for m in moments)
            rows.append(
                [
                    name,
                    place,
                    *(f"{c['rss_mib']:.0f} / {c['pss_mib']:.0f}" if c else "" for c in cells),
                ]
            )
    return _table(["contender", "where", *(m.replace("_", " ") for m in moments)], rows)
