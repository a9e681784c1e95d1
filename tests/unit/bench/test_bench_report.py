"""A row ends with the one line that is asked of it; results.json holds every round."""

from __future__ import annotations

import json
from pathlib import Path

from bench import report
from bench.load import Outcome
from bench.measure import Result, Round
from bench.rows import ROWS


def _result(**rates: list[float]) -> Result:
    rounds = {
        name: [Round(Outcome(r, 100, 50.0, 90.0), 1.0, 2.0) for r in values]
        for name, values in rates.items()
    }
    return Result(ROWS["across-rps1"], rounds)


def test_last_line_without_another_ztunnel() -> None:
    """Name, then Ambit over direct, then Ambit over Envoy."""
    result = _result(direct=[100.0, 80.0, 90.0], ambit=[50.0, 20.0, 45.0], envoy=[40.0, 20.0, 90.0])
    assert report.last_line(result) == "across-rps1 ambit/direct 0.500 ambit/envoy 1.000"


def test_last_line_with_another_ztunnel() -> None:
    """Its ratio comes last."""
    result = _result(direct=[100.0], ambit=[50.0], envoy=[40.0], ztunnel=[100.0])
    assert report.last_line(result).endswith(" ambit/ztunnel 0.500")


def test_results_hold_every_round_and_the_machine(tmp_path: Path) -> None:
    """Whoever doubts a median can look at what it was made of."""
    path = tmp_path / "results.json"
    report.write(path, [_result(direct=[2.0, 4.0], ambit=[1.0, 1.0])], {}, {"pairs": 2})
    got = json.loads(path.read_text())
    row = got["rows"]["across-rps1"]
    assert row["ratios"]["ambit/direct"] == {"median": 0.375, "low": 0.25, "high": 0.5}
    assert [r["rate"] for r in row["contenders"]["direct"]["rounds"]] == [2.0, 4.0]
    assert got["machine"]["cpus"] >= 1
    assert list(tmp_path.iterdir()) == [path]


def test_table_has_a_line_for_each_contender() -> None:
    """Absolute numbers beside the ratios."""
    lines = report.table(_result(direct=[1000.0], ambit=[500.0])).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["direct", "ambit"]
    assert "1,000" in lines[1]


def test_a_machine_that_was_not_idle_is_told() -> None:
    """A wide spread has a cause that the reader should know."""
    result = _result(direct=[2.0], ambit=[1.0])
    assert "kept up to" not in report.table(result)
    result.background = [0.0, 1.5]
    assert "1.5 CPUs busy" in report.table(result)
