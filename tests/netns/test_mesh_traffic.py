"""Real programs over the real mesh, two nodes: what an application must not notice."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from lab import Lab
from tests.netns.drive import tool
from tests.netns.mesh_objects import shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Lab]:
    with Lab("t-traffic") as lab:
        lab.up(shop())
        yield lab


def hbone_lines(lab: Lab, node: str) -> list[str]:
    return [x for x in lab.logs(f"ztunnel/{node}").splitlines() if "dst.hbone_addr" in x]


def test_every_pod_of_the_labelled_namespace_is_proved_captured(mesh: Lab) -> None:
    """Enrolled pods say so, others do not."""
    seen = {
        f"{p['metadata']['namespace']}/{p['metadata']['name']}": p["metadata"]
        .get("annotations", {})
        .get("ambient.istio.io/redirection")
        for p in mesh.pods()
    }
    assert {k: v for k, v in seen.items() if k.startswith("mesh/")} == {
        "mesh/client": "enabled",
        "mesh/near": "enabled",
        "mesh/server": "enabled",
        "mesh/other": "enabled",
    }
    assert not any(v for k, v in seen.items() if k.startswith("plain/"))


def test_the_wire_between_nodes_carries_only_tls_on_15008(mesh: Lab) -> None:
    """A capture between the nodes sees no plaintext and no other port."""
    capture = mesh.capture(
        "node1",
        ["-nn", "-A", "-s0", "-i", "eth0", "tcp and (net 10.244.0.0/16 or net fd00:10:244::/48)"],
    )
    tool(mesh, "mesh/client", "upload", "server", "9001", "2")
    secret = "SECRET-" + "x" * 40
    sent = mesh.exec(
        "mesh/client", ["curl", "-sm5", "--http0.9", "-d", secret, "http://server:9000/"]
    )
    assert secret in sent.stdout  # the echo came back: it did cross the wire
    time.sleep(0.5)
    capture.terminate()
    text = capture.communicate(timeout=10)[0]
    ports = set(re.findall(r"IP6? \S+\.(\d+) > \S+\.(\d+):", text))
    assert ports
    assert all("15008" in pair for pair in ports), ports
    assert secret not in text


def test_addresses_are_what_both_applications_expect(mesh: Lab) -> None:
    """The client sees the peer it asked for, the server the client's real address."""
    by_name = {p["metadata"]["name"]: p["status"]["podIP"] for p in mesh.pods()}
    answer = tool(mesh, "mesh/client", "who", by_name["server"])
    assert answer["peer"] == [by_name["server"], 9005]
    assert answer["mine"][0] == by_name["client"]  # type: ignore[index]
    assert answer["seen"]["peer"].removeprefix("::ffff:") == by_name["client"]  # type: ignore[index]


def test_ipv6_addresses_are_what_both_applications_expect(mesh: Lab) -> None:
    """The same over IPv6, end to end."""
    six = {
        p["metadata"]["name"]: next(i["ip"] for i in p["status"]["podIPs"] if ":" in i["ip"])
        for p in mesh.pods()
        if p["metadata"]["namespace"] == "mesh"
    }
    answer = tool(mesh, "mesh/client", "who", six["server"])
    assert answer["peer"] == [six["server"], 9005]
    assert answer["mine"][0] == six["client"]  # type: ignore[index]
    assert answer["seen"]["peer"] == six["client"]  # type: ignore[index]


@pytest.mark.parametrize("target", ["server", "near"])
def test_curl_reaches_services_by_name(mesh: Lab, target: str) -> None:
    """DNS name, VIP, mesh, application: across nodes and on the same node."""
    done = mesh.exec(
        "mesh/client", ["curl", "-sm5", "--http0.9", "-d", "hi", f"http://{target}:9000/x"]
    )
    assert "POST /x" in done.stdout  # the echo server sends the request back


def test_large_headers_pass(mesh: Lab) -> None:
    """60 KB of request headers arrive whole."""
    done = mesh.exec(
        "mesh/client",
        ["curl", "-sm10", "--http0.9", "-H", "x-big: " + "y" * 60000, "http://server:9000/"],
    )
    assert done.stdout.count("y") >= 60000


@pytest.mark.parametrize("mib", [1024])
def test_a_gibibyte_arrives_unchanged_in_both_directions(mesh: Lab, mib: int) -> None:
    """Checksummed; up includes half-close, as the digest comes after the end of stream."""
    assert tool(mesh, "mesh/client", "upload", "server", "9001", str(mib), timeout=100)["ok"]
    assert tool(mesh, "mesh/client", "download", "server", str(mib), timeout=100)["ok"]


@pytest.mark.parametrize("reverse", [[], ["-R"]])
def test_iperf3_moves_a_gibibyte(mesh: Lab, reverse: list[str]) -> None:
    """iperf3, which checks nothing but opens a control and a data connection."""
    address = next(p["status"]["podIP"] for p in mesh.pods() if p["metadata"]["name"] == "server")
    daemon = mesh.popen("mesh/server", ["iperf3", "-s", "-1"])
    try:
        time.sleep(0.5)
        done = mesh.exec(
            "mesh/client", ["iperf3", "-c", address, "-n", "1G", "-J", *reverse], timeout=60
        )
        result = json.loads(done.stdout)
        assert result["end"]["sum_sent"]["bytes"] >= 1 << 30
    finally:
        daemon.terminate()
        daemon.wait(timeout=10)


def test_500_parallel_connections(mesh: Lab) -> None:
    """All open at once, each gets its own bytes back."""
    assert tool(mesh, "mesh/client", "parallel", "server", "500")["good"] == 500


def test_half_close_is_carried(mesh: Lab) -> None:
    """The answer that follows the client's end of stream arrives."""
    assert tool(mesh, "mesh/client", "upload", "server", "9001", "1")["ok"]


def test_a_slow_reader_gets_everything(mesh: Lab) -> None:
    """64 MiB wait behind a server that does not read for two seconds; nothing is lost."""
    assert tool(mesh, "mesh/client", "upload", "server", "9003", "64")["ok"]


def test_a_server_that_speaks_first_is_heard(mesh: Lab) -> None:
    """No byte of the client's is needed to open the path."""
    assert tool(mesh, "mesh/client", "first", "server")["line"] == "220 hello\n"


def test_refused_and_unreachable_end_at_once(mesh: Lab) -> None:
    """A closed port and an address nobody has are an error to the client, at once, not a hang."""
    address = next(p["status"]["podIP"] for p in mesh.pods() if p["metadata"]["name"] == "server")
    refused = tool(mesh, "mesh/client", "outcome", address, "9999")
    assert refused["end"] in ("ECONNREFUSED", "ECONNRESET"), refused
    assert refused["seconds"] < 2  # type: ignore[operator]
    unreachable = tool(mesh, "mesh/client", "outcome", "10.244.2.250", "9000")
    assert unreachable["end"] in ("EHOSTUNREACH", "ECONNRESET"), unreachable
    assert unreachable["seconds"] < 12  # type: ignore[operator]


def test_traffic_with_uncaptured_pods_passes_both_ways(mesh: Lab) -> None:
    """PERMISSIVE is the default: plaintext in, plain TCP out, real addresses."""
    ips = {p["metadata"]["name"]: p["status"]["podIP"] for p in mesh.pods()}
    inward = tool(mesh, "plain/outsider", "who", ips["server"])
    assert inward["seen"]["peer"].removeprefix("::ffff:") == ips["outsider"]  # type: ignore[index]
    outward = tool(mesh, "mesh/client", "who", ips["legacy"])
    assert outward["seen"]["peer"].removeprefix("::ffff:") == ips["client"]  # type: ignore[index]


def test_the_access_log_names_both_identities(mesh: Lab) -> None:
    """Both reporters say who talked to whom over which path."""
    tool(mesh, "mesh/client", "first", "server")
    time.sleep(1)
    for node in ("node1", "node2"):
        lines = "\n".join(hbone_lines(mesh, node))
        assert 'src.identity="spiffe://cluster.local/ns/mesh/sa/client"' in lines
        assert 'dst.identity="spiffe://cluster.local/ns/mesh/sa/server"' in lines


def test_metrics_count_connections_with_istio_labels(mesh: Lab) -> None:
    """Both reporters count the same connection, mutual TLS."""
    time.sleep(1)
    for node, reporter in (("node1", "source"), ("node2", "destination")):
        text = mesh.fetch(node, 15020, "/metrics")
        series = [
            x
            for x in text.splitlines()
            if x.startswith("istio_tcp_connections_opened_total{")
            and f'reporter="{reporter}"' in x
            and 'source_workload="client"' in x
            and 'destination_workload="server"' in x
            and 'connection_security_policy="mutual_tls"' in x
        ]
        assert series, text[:2000]
        assert float(series[0].rsplit(" ", 1)[1]) >= 1
