"""The load generators: their command lines, and what they print made into numbers. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from bench.errors import BenchError
from bench.rows import Kind, Row

HTTP_PORT: Final = 8080
IPERF_PORT: Final = 5201
BODY_BYTES: Final = 1024  # of every HTTP response


@dataclass(frozen=True, slots=True)
class Outcome:
    """One round. rate: bit/s, requests/s or connections/s; count: bytes, requests, connections."""

    rate: float
    count: int
    p50_us: float | None = None
    p99_us: float | None = None


def command(row: Row, host: str, http_port: int, iperf_port: int, seconds: int) -> list[str]:
    """Build the argument list of one round of `row` against a server."""
    if row.kind is Kind.THROUGHPUT:
        # Client to server, as an upload; the first second (slow start) is left out.
        return ["iperf3", "-c", host, "-p", str(iperf_port), "-t", str(seconds), "-O", "1", "-J"]
    argv = ["wrk", "-t1", f"-c{row.parallel}", f"-d{seconds}s", "--latency", "--timeout", "5s"]
    if row.kind is Kind.CONNECTIONS:
        argv += ["-H", "Connection: close"]
    return [*argv, f"http://{host}:{http_port}/"]


def read_outcome(row: Row, text: str) -> Outcome:
    """Read what the row's load generator printed; raises BenchError when the round went wrong."""
    return _read_iperf3(text) if row.kind is Kind.THROUGHPUT else _read_wrk(text)


def _read_iperf3(text: str) -> Outcome:
    try:
        report = json.loads(text)
    except ValueError as e:
        raise BenchError(f"iperf3 printed no report: {text[-300:]!r}") from e
    if "error" in report:
        raise BenchError(f"iperf3: {report['error']}")
    got = report["end"]["sum_received"]
    return Outcome(float(got["bits_per_second"]), int(got["bytes"]))


_UNITS: Final = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}
_PERCENTILE: Final = re.compile(r"^\s+(50|99)%\s+([0-9.]+)(us|ms|s|m)\s*$", re.MULTILINE)
_TOTAL: Final = re.compile(r"^\s+(\d+) requests in ([0-9.]+)(ms|s|m),", re.MULTILINE)
_ERRORS: Final = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
_BAD_STATUS: Final = re.compile(r"Non-2xx or 3xx responses: (\d+)")


def _read_wrk(text: str) -> Outcome:
    total = _TOTAL.search(text)
    found = {m[1]: float(m[2]) * _UNITS[m[3]] for m in _PERCENTILE.finditer(text)}
    if total is None or int(total[1]) == 0 or len(found) != 2:
        raise BenchError(f"wrk got no answer: {text[-300:]!r}")
    errors = _ERRORS.search(text)
    if errors and any(int(n) for n in errors.groups()):
        raise BenchError(f"wrk saw {errors[0].strip().lower()}: the rate would be flattered")
    bad = _BAD_STATUS.search(text)
    if bad:
        raise BenchError(f"wrk saw {bad[1]} responses that are not 200: the rate means nothing")
    seconds = float(total[2]) * _UNITS[total[3]] / 1e6
    return Outcome(int(total[1]) / seconds, int(total[1]), found["50"], found["99"])
