"""What the load generators print is read exactly, and a round that went wrong is refused."""

from __future__ import annotations

import json

import pytest

from bench.errors import BenchError
from bench.load import BODY_BYTES, command, read_outcome
from bench.rows import ROWS

WRK = """\
Running 4s test @ http://10.244.2.10:8080/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.21ms  830.11us  12.01ms   92.11%
    Req/Sec    13.86k     1.21k   15.90k    70.00%
  Latency Distribution
     50%  980.50us
     75%    1.31ms
     90%    1.90ms
     99%    4.14ms
  55432 requests in 4.02s, 63.10MB read
Requests/sec:  13788.06
Transfer/sec:     15.70MB
"""


def test_wrk_report_gives_rate_and_percentiles_in_microseconds() -> None:
    """The rate is requests over the measured time; percentiles are turned into one unit."""
    outcome = read_outcome(ROWS["across-rps16"], WRK)
    assert outcome.count == 55432
    assert outcome.rate == pytest.approx(55432 / 4.02)
    assert outcome.p50_us == 980.5
    assert outcome.p99_us == 4140.0


@pytest.mark.parametrize(
    "spoilt",
    [
        WRK.replace("Requests/sec", "  Socket errors: connect 0, read 3, write 0, timeout 0\nR"),
        WRK.replace("Requests/sec", "  Non-2xx or 3xx responses: 12\nR"),
        WRK.replace("55432 requests", "0 requests"),
        WRK[:200],
        "unable to connect to 10.244.2.10:8080 Connection refused\n",
        "",
    ],
)
def test_a_round_with_errors_is_no_measurement(spoilt: str) -> None:
    """Failed requests would flatter the rate: the round is refused."""
    with pytest.raises(BenchError):
        read_outcome(ROWS["across-rps16"], spoilt)


def test_no_socket_errors_line_of_zeros_is_fine() -> None:
    """wrk prints the line only when something is not zero, but zeros are no error."""
    zeros = WRK + "  Socket errors: connect 0, read 0, write 0, timeout 0\n"
    assert read_outcome(ROWS["across-rps1"], zeros).count == 55432


def test_iperf3_report_gives_what_the_receiver_got() -> None:
    """Throughput is counted where it arrives."""
    report = {"end": {"sum_received": {"bytes": 2000, "bits_per_second": 4e9}}}
    outcome = read_outcome(ROWS["across-throughput"], json.dumps(report))
    assert (outcome.rate, outcome.count, outcome.p50_us) == (4e9, 2000, None)


@pytest.mark.parametrize("text", ["", "nonsense", json.dumps({"error": "unable to connect"})])
def test_iperf3_failure_is_no_measurement(text: str) -> None:
    """A report of failure, or none, is refused."""
    with pytest.raises(BenchError):
        read_outcome(ROWS["across-throughput"], text)


def test_only_the_new_connection_row_asks_the_server_to_close() -> None:
    """Every other HTTP row keeps its connections."""
    closing = {
        name
        for name, row in ROWS.items()
        if "Connection: close" in command(row, "10.0.0.1", 8080, 5201, 4)
    }
    assert closing == {"across-newconn", "samenode-newconn"}


def test_the_answer_is_large_enough_to_be_seen_in_counters() -> None:
    """The path check multiplies requests by the body's size."""
    assert BODY_BYTES >= 512
