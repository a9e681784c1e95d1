"""Does each contender really take its path? Checked by bytes, before anything is measured."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from bench import envoy
from bench.errors import BenchError
from bench.load import BODY_BYTES, HTTP_PORT, command, read_outcome
from bench.objects import FAR, NEAR
from bench.pods import Pod
from bench.rows import ROWS, SERVERS, Row
from bench.world import EnvoyWay, Way, target_of
from cli.target import get_page
from lab.netns import inside
from mesh.ports import INBOUND_HBONE, ZTUNNEL_METRICS

_SETTLE_SECONDS: Final = 5.0  # proxies report in batches
_BYTES: Final = re.compile(r"\bbytes_(?:acked|received):(\d+)")


def bytes_of(ss_output: str) -> int:
    """Sum what the sockets in the output of `ss -tinH` have carried, both ways."""
    return sum(int(n) for n in _BYTES.findall(ss_output))


def sockets(pod: Pod, *condition: str) -> str:
    """List a pod's established TCP sockets that match a condition of ss(8)."""
    return pod.run(["ss", "-tinH", "state", "established", *condition], timeout=5)


def tunnelled_bytes(text: str, source_namespace: str, mutual_tls: bool) -> float:
    """Read response bytes of one client namespace, as the server's proxy counted them."""
    total = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if (
                sample.name == "istio_tcp_sent_bytes_total"
                and labels.get("reporter") == "destination"
                and labels.get("source_workload_namespace") == source_namespace
                and (labels.get("connection_security_policy") == "mutual_tls" or not mutual_tls)
            ):
                total += sample.value
    return total


def _load(way: Way, row: Row, during: str | None) -> tuple[int, str]:
    """Run wrk for a second; return its requests and what ss said halfway in the server pod."""
    server = way.servers[row.server]
    host, http_port, iperf_port = way.target(row.server)
    argv = command(row, host, http_port, iperf_port, 1)
    with subprocess.Popen(
        way.client.argv(argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        time.sleep(0.5)
        seen = sockets(server, *during.split()) if during else ""
        output, _ = process.communicate(timeout=20)
    return read_outcome(row, output).count, seen


def _grows(what: str, read: Callable[[], float], load: Callable[[], int]) -> None:
    """Run the load; `read` must grow by at least the bodies it fetched."""
    before = read()
    want = load() * BODY_BYTES
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (grown := read() - before) < want:
        if time.monotonic() > deadline:
            raise BenchError(
                f"{what}: {want:,} bytes were fetched, only {grown:,.0f} went this way"
            )
        time.sleep(0.25)


def _check_direct(way: Way, row: Row) -> None:
    condition = f"sport = :{HTTP_PORT} and dst {way.client.address}"
    _, seen = _load(way, row, condition)
    if not bytes_of(seen):
        raise BenchError(f"{row.name}, direct: the server saw no connection from the client itself")


def _check_mesh(way: Way, row: Row, node: str) -> None:
    across = node == FAR  # between pods of one node a mesh may have a shorter way than a tunnel
    target = target_of(way)

    def counted() -> float:
        page = target.fetch(node, ZTUNNEL_METRICS, "/metrics").decode()
        return tunnelled_bytes(page, "mesh", mutual_tls=across)

    seen = ""

    def load() -> int:
        nonlocal seen
        requests, seen = _load(way, row, f"sport = :{INBOUND_HBONE}")
        return requests

    _grows(f"{row.name}, {way.name}: metrics of ztunnel on {node}", counted, load)
    if across and not bytes_of(seen):
        raise BenchError(f"{row.name}, {way.name}: nothing on port {INBOUND_HBONE} of the server")


def _check_envoy(way: EnvoyWay, row: Row) -> None:
    server = way.servers[row.server]

    def counted() -> float:
        return _envoy_stat(server.netns, f"cluster.inbound_{HTTP_PORT}.upstream_cx_rx_bytes_total")

    def handshakes() -> float:
        port = envoy.TLS_PORTS[HTTP_PORT]
        return _envoy_stat(server.netns, f"listener.0.0.0.0_{port}.ssl.handshake")

    before = handshakes()
    _grows(f"{row.name}, envoy: the server's sidecar", counted, lambda: _load(way, row, None)[0])
    if handshakes() == before:
        raise BenchError(f"{row.name}, envoy: the sidecars made no TLS handshake")


def _envoy_stat(netns: Path, name: str) -> float:
    page = inside(netns, lambda: get_page(envoy.ADMIN_PORT, "/stats")).decode()
    for line in page.splitlines():
        key, _, value = line.partition(": ")
        if key == name:
            return float(value)
    raise BenchError(f"Envoy has no statistic {name}")


def check(ways: Iterable[Way]) -> None:
    """Check every way to every server; raises BenchError for the first that is not what it says."""
    for way in ways:
        for place, server in SERVERS.items():
            row = ROWS[f"{place}-rps1"]
            if isinstance(way, EnvoyWay):
                _check_envoy(way, row)
            elif way.name == "direct":
                _check_direct(way, row)
            else:
                _check_mesh(way, row, NEAR if server == "server-near" else FAR)
