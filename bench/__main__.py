"""The command line: python -m bench ROW."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from bench import follow, markdown, memory, report, usage, waypoint
from bench.errors import BenchError
from bench.measure import Result, measure
from bench.rows import ROWS, WAYPOINT_ROWS, Row
from bench.verify import check
from bench.world import ZTUNNEL_VARIABLE, Way, build
from mesh.compiled import GROUP
from mesh.errors import MeshError

_DESCRIPTION = f"""\
Measure what the mesh costs, in the lab, on this machine.

Contenders: direct (no mesh), ambit, envoy (a sidecar pair, mutual TLS over TCP), and, when
{ZTUNNEL_VARIABLE} names another ztunnel binary, ztunnel (in a lab of its own, fed by the same
node agent and control plane). Each pair of rounds runs all of them in turn, in rotating order;
a ratio is the median of the pairs' ratios. Before that every contender is checked to take its path.
"""
_EPILOG = """\
rows: across-* between two nodes, samenode-* on one; throughput (iperf3, one connection, client to
server), rps1 and rps16 (wrk, 1 or 16 connections, HTTP/1.1, 1 KiB answers), newconn (wrk, 4 at a
time, a new connection for every request). waypoint-*: through ztunnel, waypoint and ztunnel, beside
direct and a plain Envoy HTTP proxy. follow: from `apply` to traffic that
follows it, in a large mesh.
Needs root. Only one benchmark runs on a machine at a time; a second one waits.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "row",
        choices=["all", *ROWS, "waypoint", *WAYPOINT_ROWS, "follow"],
        metavar="ROW",
        help=f"all, {', '.join(ROWS)}; waypoint (its rows), {', '.join(WAYPOINT_ROWS)}; follow",
    )
    parser.add_argument("--pairs", type=int, default=5, help="rounds of each contender (default 5)")
    parser.add_argument("--seconds", type=int, default=4, help="length of a round (default 4)")
    parser.add_argument(
        "--only",
        metavar="NAME,NAME",
        help="fewer contenders, for trying things; without ambit the last line compares envoy",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).with_name("results.json"),
        help="where `all` writes its numbers (default bench/results.json); the tables of a"
        " RESULTS.md beside it are renewed",
    )
    size = follow.Size()
    for name, default in (("services", size.services), ("waypoints", size.waypoints)):
        about = f"follow: how many {name} (default {default:,})"
        parser.add_argument(f"--{name}", type=int, default=default, help=about)
    about = f"follow: how many changes (default {size.samples})"
    parser.add_argument("--samples", type=int, default=size.samples, help=about)
    return parser


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold the machine's benchmark lock."""
    with (Path(tempfile.gettempdir()) / "ambit-bench.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another benchmark runs (it holds {lock.name}): waiting", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _contenders(only: str | None) -> list[str]:
    known = ["direct", "ambit", "envoy"]
    if other := os.environ.get(ZTUNNEL_VARIABLE):
        if not os.access(other, os.X_OK):
            raise BenchError(f"{ZTUNNEL_VARIABLE}={other}: no such program")
        known.append("ztunnel")
    if only is None:
        return known
    wanted = only.split(",")
    unknown = set(wanted) - set(known)
    if unknown or len(wanted) < 2:
        raise BenchError(f"--only takes two or more of: {', '.join(known)}")
    return [name for name in known if name in wanted]


def _log(text: str) -> None:
    print(text, flush=True)


def _memory(ways: list[Way]) -> dict[str, Any]:
    found = {}
    with tempfile.NamedTemporaryFile(prefix="ambit-bench-hold-") as log:
        for way in ways:
            if way.proxies():
                found[way.name] = memory.profile(way, Path(log.name))
    return found


def _relay_form(ways: list[Way]) -> str:
    """Say which form of the byte path is measured, as its processes have it."""
    for way in ways:
        if way.name == "ambit":
            compiled = usage.has_mapped(way.proxies(), f"/{GROUP}__mypyc")
            form = "compiled" if compiled else "plain Python"
            _log(f"ambit's relay runs {form}" + ("" if compiled else ": make setup compiles it"))
            return form
    return ""


def _run_waypoint(options: argparse.Namespace) -> None:
    names = [n for n in _contenders(options.only) if n in waypoint.NAMES]
    rows = list(WAYPOINT_ROWS) if options.row == "waypoint" else [options.row]
    _log(f"bringing up the lab for {', '.join(names)}")
    with waypoint.build(names) as ways:
        waypoint.check(ways)
        _log("every contender takes its path")
        _relay_form(ways)
        results = _measure_rows(WAYPOINT_ROWS, rows, ways, options)
    for result in results:
        _log(report.last_line(result))


def _run_follow(options: argparse.Namespace) -> None:
    size = follow.Size(options.services, options.waypoints, options.samples)
    if min(size.services, size.waypoints, size.samples) < 1 or size.services < size.waypoints:
        raise BenchError("--services, --waypoints, --samples: one at least, and a service for each")
    _log(follow.summary(follow.run(size, _log)))


def _measure_rows(
    known: Mapping[str, Row], rows: list[str], ways: list[Way], options: argparse.Namespace
) -> list[Result]:
    results: list[Result] = []
    for row in rows:
        results.append(measure(known[row], list(ways), options.pairs, options.seconds, _log))
        _log(report.table(results[-1]))
    return results


def _run(options: argparse.Namespace) -> None:
    names = _contenders(options.only)
    rows = list(ROWS) if options.row == "all" else [options.row]
    _log(f"bringing up the lab for {', '.join(names)}")
    with build(names) as ways:
        resident = _memory(ways) if options.row == "all" else {}
        check(ways)
        _log("every contender takes its path")
        form = _relay_form(ways)
        results = _measure_rows(ROWS, rows, ways, options)
        for way in ways:
            if way.name in resident:
                resident[way.name]["after_load"] = memory.snapshot(way)
    if options.row == "all":
        settings = {"pairs": options.pairs, "seconds": options.seconds, "relay": form}
        whole = report.build(results, resident, settings)
        report.write(options.output, json.dumps(whole, indent=1) + "\n")
        _log(f"wrote {options.output}")
        page = options.output.with_name("RESULTS.md")
        if page.exists():
            report.write(page, markdown.insert(page.read_text(), whole))
            _log(f"put its tables into {page}")
    for result in results:
        _log(report.last_line(result))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run what the command line says; 0 when the last line can be trusted."""
    options = _parser().parse_args()
    if os.geteuid() != 0:
        print("bench: needs root: it builds network namespaces", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    # A sidecar holding 500 connections needs 1,000 descriptors; children inherit the limit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with _alone():
            runs = {"waypoint": _run_waypoint, "follow": _run_follow}
            runs.get(options.row.partition("-")[0], _run)(options)
    except MeshError as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
