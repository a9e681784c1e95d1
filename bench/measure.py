"""Interleaved rounds of one row, and what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from bench import usage
from bench.load import Outcome, command, read_outcome
from bench.pods import CLIENT_CPU, Pod, pinned
from bench.rows import Kind, Row
from bench.stats import Spread, order, ratios

WARM_UP_SECONDS: Final = 1


class Contender(Protocol):
    """One way from the client pod to the server pods."""

    @property
    def name(self) -> str:
        """How results call it."""
        ...

    @property
    def client(self) -> Pod:
        """The pod the load comes from."""
        ...

    def target(self, server: str) -> tuple[str, int, int]:
        """Host, HTTP port and iperf3 port that the client dials to reach a server."""
        ...

    def proxies(self) -> Iterable[int]:
        """Processes whose CPU time and memory this way costs."""
        ...


@dataclass(frozen=True, slots=True)
class Round:
    """One round: what the load generator saw, and what it cost per request or connection.

    proxy_cpu_us: the contender's own processes; machine_cpu_us: everything, load and server too.
    """

    outcome: Outcome
    proxy_cpu_us: float
    machine_cpu_us: float


@dataclass(slots=True)
class Result:
    """All rounds of a row: by contender, in the order of the pairs.

    background: CPUs that something else kept busy before each pair.
    """

    row: Row
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    background: list[float] = field(default_factory=list)

    def spread(self, name: str, value: Callable[[Round], float | None]) -> Spread | None:
        """Summarise one number of one contender; None where the row does not have it."""
        values = [v for v in map(value, self.rounds[name]) if v is not None]
        return Spread.of(values) if values else None

    def ratio(self, over: str, under: str) -> Spread:
        """Summarise the per-pair ratios of rates."""
        rates = {n: [r.outcome.rate for r in rounds] for n, rounds in self.rounds.items()}
        return Spread.of(ratios(rates, over, under))


def one_round(row: Row, contender: Contender, seconds: int) -> Round:
    """Run the load once; raises BenchError when it went wrong."""
    host, http_port, iperf_port = contender.target(row.server)
    argv = pinned(CLIENT_CPU, command(row, host, http_port, iperf_port, seconds))
    pids = list(contender.proxies())
    proxy, machine = usage.cpu_seconds(pids), usage.busy_seconds()
    text = contender.client.run(argv, timeout=seconds + 20)
    machine = usage.busy_seconds() - machine
    after = usage.cpu_seconds(pids)
    outcome = read_outcome(row, text)
    # Throughput is costed by the megabyte, the rest by the request or connection.
    units = outcome.count / 1e6 if row.kind is Kind.THROUGHPUT else outcome.count
    spent = sum(after[pid] - proxy[pid] for pid in after.keys() & proxy.keys())
    return Round(outcome, spent / units * 1e6, machine / units * 1e6)


def background(seconds: float = 0.5) -> float:
    """CPUs busy while nothing is measured."""
    before, began = usage.busy_seconds(), time.monotonic()
    time.sleep(seconds)
    return (usage.busy_seconds() - before) / (time.monotonic() - began)


def measure(
    row: Row,
    contenders: list[Contender],
    pairs: int,
    seconds: int,
    progress: Callable[[str], Any] = lambda _: None,
) -> Result:
    """Run every contender once in each of `pairs` turns, in rotating order."""
    by_name = {c.name: c for c in contenders}
    for contender in contenders:
        one_round(row, contender, WARM_UP_SECONDS)
    result = Result(row, {name: [] for name in by_name})
    for pair in range(pairs):
        result.background.append(background())
        for name in order(list(by_name), pair):
            done = one_round(row, by_name[name], seconds)
            result.rounds[name].append(done)
        seen = ", ".join(
            f"{n} {rounds[-1].outcome.rate / row.scale:,.4g}" for n, rounds in result.rounds.items()
        )
        progress(f"{row.name} {pair + 1}/{pairs}: {seen} {row.kind.value}")
    return result
