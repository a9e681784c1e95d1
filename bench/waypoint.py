"""What a waypoint costs: the whole chain (ztunnel, waypoint, ztunnel) beside a plain Envoy proxy.

Rows waypoint-*. Contenders: direct (no proxy), envoy (one Envoy in a pod of its own as a plain HTTP
proxy, no TLS, no policy, no telemetry), ambit (a Service bound to a waypoint: two HBONE tunnels,
identities, policy, Istio's metrics). Servers are called by HTTP/1.1; the proxies float over all
CPUs and have two worker threads each.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from bench import envoy
from bench.errors import BenchError
from bench.load import HTTP_PORT, IPERF_PORT, command, read_outcome
from bench.objects import CLIENT, FAR, manifest, nginx_config
from bench.pods import Pod, stop
from bench.rows import WAYPOINT_ROWS, WAYPOINT_SERVER
from bench.world import Way, find_pods, lab_of, wait_for_answers, ztunnels_of
from cli.target import get_page
from cli.waypoint import shape
from lab import cgroups
from lab.netns import inside
from mesh.ports import LABEL_DATAPLANE_MODE

NAMES: Final = ("direct", "ambit", "envoy")
_LAB: Final = "bench-wp"
_VIP: Final = "10.96.77.1"
_GATEWAY: Final = "waypoint"
_PROXY: Final = "proxy"
_PROXY_PORT: Final = 8081
_METRICS: Final = 15020
_SPACES: Final = {"direct": "direct", "ambit": "mesh", "envoy": "plain"}


@dataclass(slots=True)
class ProxiedWay(Way):
    """A contender whose client dials something else than the server."""

    dialled: tuple[str, int] = ("", 0)

    def target(self, server: str) -> tuple[str, int, int]:
        """Host and port that the client dials."""
        return (*self.dialled, IPERF_PORT)


def _more() -> list[dict[str, Any]]:
    """The Service and its waypoint, and the pod of the plain proxy."""
    port = {"name": "http", "port": HTTP_PORT, "targetPort": HTTP_PORT, "appProtocol": "http"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "server",
            "namespace": "mesh",
            "labels": {"istio.io/use-waypoint": _GATEWAY},
        },
        "spec": {"selector": {"app": WAYPOINT_SERVER}, "clusterIP": _VIP, "ports": [port]},
    }
    wait = {"name": "wait", "image": "none", "command": ["sleep", "infinity"]}
    proxy = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": _PROXY,
            "namespace": "plain",
            "labels": {LABEL_DATAPLANE_MODE: "none"},
        },
        "spec": {"nodeName": FAR, "containers": [wait]},
    }
    return [shape.manifest(_GATEWAY, "mesh"), service, proxy]


def proxy_config(server: str) -> str:
    """Configure an Envoy that passes every request on to one server."""
    kind = "type.googleapis.com/envoy.extensions.filters"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "server", "timeout": "0s"}}
    router = {"@type": f"{kind}.http.router.v3.Router"}
    manager = {
        "@type": f"{kind}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        "route_config": {"virtual_hosts": [{"name": "*", "domains": ["*"], "routes": [route]}]},
    }
    listener = {
        "name": "plain",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": _PROXY_PORT}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }
    socket = {"address": server, "port_value": HTTP_PORT}
    endpoint = {"endpoint": {"address": {"socket_address": socket}}}
    cluster = {
        "name": "server",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "server",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}})


@contextlib.contextmanager
def _plain(pods: dict[tuple[str, str], Pod], scratch: Path) -> Iterator[Way]:
    """Run the plain proxy while it is needed."""
    server, where = pods["plain", WAYPOINT_SERVER], pods["plain", _PROXY]
    path = scratch / "plain.json"
    path.write_text(proxy_config(server.address))
    words = [str(envoy.binary()), "-c", str(path), "--concurrency", "2", "--use-dynamic-base-id"]
    process = where.start([*words, "-l", "warning"], scratch / "envoy.log")
    try:
        yield ProxiedWay(
            "envoy",
            pods["plain", CLIENT],
            {WAYPOINT_SERVER: server},
            lambda: {_PROXY: [process.pid]},
            _LAB,
            (where.address, _PROXY_PORT),
        )
    finally:
        stop([process])


def waypoint_pod(pods: dict[tuple[str, str], Pod]) -> Pod:
    """Find the waypoint's pod; raises BenchError."""
    found = [p for (ns, name), p in pods.items() if ns == "mesh" and name.startswith(_GATEWAY)]
    if len(found) != 1:
        raise BenchError(f"{len(found)} waypoint pods are in the lab, not one")
    return found[0]


def _chain(pods: dict[tuple[str, str], Pod]) -> Way:
    client, server = pods["mesh", CLIENT], pods["mesh", WAYPOINT_SERVER]
    waypoint = waypoint_pod(pods)

    def sides() -> dict[str, list[int]]:
        assert waypoint.cgroup is not None
        return {
            **ztunnels_of(client, server),
            _GATEWAY: cgroups.members(waypoint.cgroup),
        }

    return ProxiedWay("ambit", client, {WAYPOINT_SERVER: server}, sides, _LAB, (_VIP, HTTP_PORT))


@contextlib.contextmanager
def build(only: list[str]) -> Iterator[list[Way]]:
    """Bring up what the contenders need; everything is gone afterwards, however it ends."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ambit-bench-")))
        (scratch / "nginx.conf").write_text(nginx_config(scratch))
        text = manifest([_SPACES[n] for n in NAMES], scratch / "nginx.conf")
        text += "---\n" + yaml.safe_dump_all(_more(), sort_keys=False)
        stack.enter_context(lab_of(_LAB, text, scratch))
        pods = find_pods(_LAB)
        ways: list[Way] = []
        for name in only:
            if name == "envoy":
                ways.append(stack.enter_context(_plain(pods, scratch)))
            elif name == "ambit":
                ways.append(_chain(pods))
            else:
                client, server = pods["direct", CLIENT], pods["direct", WAYPOINT_SERVER]
                ways.append(Way(name, client, {WAYPOINT_SERVER: server}, dict, _LAB))
        for way in ways:
            wait_for_answers(way)
        yield ways


def _served(netns: Path) -> float:
    """Requests that the waypoint has counted for Istio's dashboards."""
    page = inside(netns, lambda: get_page(_METRICS, "/metrics")).decode()
    lines = [line for line in page.splitlines() if line.startswith("istio_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def check(ways: Iterable[Way]) -> None:
    """Check that Ambit's requests pass the waypoint: it must have counted each of them."""
    row = WAYPOINT_ROWS["waypoint-rps1"]
    for way in ways:
        if way.name != "ambit":
            continue
        waypoint = waypoint_pod(find_pods(way.lab))
        before = _served(waypoint.netns)
        host, port, iperf = way.target(row.server)
        done = read_outcome(row, way.client.run(command(row, host, port, iperf, 1), timeout=20))
        counted = _served(waypoint.netns) - before
        if counted < done.count:
            raise BenchError(f"{done.count} requests were answered, the waypoint saw {counted:.0f}")
