"""A row ends with the one line that is asked of it; results.json holds every round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import markdown, report
from bench.errors import BenchError
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


def test_results_hold_every_round_and_the_machine() -> None:
    """Whoever doubts a median can look at what it was made of."""
    whole = report.build([_result(direct=[2.0, 4.0], ambit=[1.0, 1.0])], {}, {"pairs": 2})
    got = json.loads(json.dumps(whole))
    row = got["rows"]["across-rps1"]
    assert row["ratios"]["ambit/direct"] == {"median": 0.375, "low": 0.25, "high": 0.5}
    assert [r["rate"] for r in row["contenders"]["direct"]["rounds"]] == [2.0, 4.0]
    assert got["machine"]["cpus"] >= 1


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    """No half of a result, and nothing beside it."""
    path = tmp_path / "results.json"
    report.write(path, "one")
    report.write(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_the_page_gets_its_tables_and_keeps_its_words() -> None:
    """Between the two marks, again and again."""
    moment = {"near": {"rss_mib": 70.4, "pss_mib": 50.0}}
    memory = {"ambit": {"idle": moment, "after_load": moment}}
    settings = {"pairs": 1, "seconds": 2}
    whole = report.build([_result(direct=[2000.0], ambit=[1000.0])], memory, settings)
    page = (Path(report.__file__).parent / "RESULTS.md").read_text()
    once = markdown.insert(page, whole)
    assert markdown.insert(once, whole) == once
    assert "| across-rps1 | 0.50 (0.50-0.50) |" in once
    assert "| across-rps1 | requests/s | 2,000; 0.05 / 0.1 ms | 1,000; 0.05 / 0.1 ms |" in once
    assert "| ambit | near | 70 / 50 | 70 / 50 |" in once
    assert once.startswith(page[:200])
    with pytest.raises(BenchError, match="needs the lines"):
        markdown.insert("no marks", whole)


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
