"""The labs a run needs, brought up and taken down, and the contenders that live in them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import envoy
from bench.errors import BenchError
from bench.load import HTTP_PORT, IPERF_PORT
from bench.objects import CLIENT, FAR, NEAR, manifest, nginx_config
from bench.pods import Pod, stop
from bench.rows import SERVERS
from cli.target import LabTarget
from lab import cgroups
from lab.layout import LABS

ZTUNNEL_VARIABLE: Final = "AMBIT_BENCH_ZTUNNEL"
_LAB: Final = "bench"
_OTHER_LAB: Final = "bench-zt"
_LAB_SECONDS: Final = 120.0  # far more than a lab takes, far less than a hung CI job


@dataclass(slots=True)
class Way:
    """A contender: the client pod, the server pods by name, and the proxies it is charged for."""

    name: str
    client: Pod
    servers: dict[str, Pod]
    sides: Callable[[], dict[str, list[int]]]  # proxy processes by node or pod
    lab: str

    def target(self, server: str) -> tuple[str, int, int]:
        """Host, HTTP port and iperf3 port that the client dials to reach a server."""
        return self.servers[server].address, HTTP_PORT, IPERF_PORT

    def proxies(self) -> list[int]:
        """Processes whose CPU time and memory this way costs."""
        return [pid for pids in self.sides().values() for pid in pids]


@dataclass(slots=True)
class EnvoyWay(Way):
    """The sidecar pair: the client dials its own sidecar on loopback."""

    order: list[str] = field(default_factory=list)

    def target(self, server: str) -> tuple[str, int, int]:
        """Host, HTTP port and iperf3 port that the client dials to reach a server."""
        index = self.order.index(server)
        return (
            "127.0.0.1",
            envoy.local_port(HTTP_PORT, index),
            envoy.local_port(IPERF_PORT, index),
        )


def _ambit(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=_LAB_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"ambit {' '.join(arguments)}: {(done.stderr or done.stdout)[-800:]}")


def find_pods(lab: str) -> dict[tuple[str, str], Pod]:
    """Read what the lab's container runtime knows, by (namespace, name)."""
    found = {}
    for path in sorted((LABS / lab / "nodes").glob("*/pods/*.json")):
        pod: dict[str, Any] = json.loads(path.read_text())
        key = (pod["namespace"], pod["name"])
        address = next(a for a in pod["addresses"] if ":" not in a)
        found[key] = Pod("/".join(key), address, Path(pod["netns"]), Path(pod["cgroup"]))
    return found


def ztunnels_of(client: Pod, far_server: Pod) -> dict[str, list[int]]:
    """Processes of the two nodes' proxies; the control process and all relay workers of each."""
    found = {}
    for node, pod in ((NEAR, client), (FAR, far_server)):
        assert pod.cgroup is not None
        folder = pod.cgroup.parents[1]  # NODE/pods/UID
        found[node] = cgroups.members(folder / "system" / "ztunnel")
    return found


def _way(name: str, lab: str, namespace: str, pods: dict[tuple[str, str], Pod]) -> Way:
    client = pods[namespace, CLIENT]
    servers = {server: pods[namespace, server] for server in SERVERS.values()}
    if namespace == "mesh":
        return Way(
            name, client, servers, lambda: ztunnels_of(client, servers[SERVERS["across"]]), lab
        )
    return Way(name, client, servers, dict, lab)


@contextlib.contextmanager
def _envoy_pair(pods: dict[tuple[str, str], Pod], scratch: Path) -> Iterator[EnvoyWay]:
    """Start a sidecar in each pod of the namespace `envoy`, and stop them."""
    plain = _way("envoy", _LAB, "envoy", pods)
    identities = envoy.make_identities(scratch, ["client", "server"])
    addresses = [pod.address for pod in plain.servers.values()]
    configs = {plain.client: envoy.client_config(identities["client"], addresses)}
    configs |= {pod: envoy.server_config(identities["server"]) for pod in plain.servers.values()}
    started: dict[Pod, subprocess.Popen[str]] = {}
    try:
        for pod, config in configs.items():
            path = scratch / f"{pod.name.replace('/', '-')}.json"
            path.write_text(config)
            # Two worker threads: what Istio's sidecar has by default, and our proxies too.
            command = [str(envoy.binary()), "-c", str(path), "--concurrency", "2"]
            command += ["--use-dynamic-base-id", "-l", "warning"]
            started[pod] = pod.start(command, scratch / "envoy.log")

        def sides() -> dict[str, list[int]]:
            # One server at a time carries traffic; an idle sidecar costs no CPU time.
            pods = {CLIENT: plain.client, **plain.servers}
            return {name: [started[pod].pid] for name, pod in pods.items()}

        yield EnvoyWay("envoy", plain.client, plain.servers, sides, _LAB, list(plain.servers))
    finally:
        stop(list(started.values()))


@contextlib.contextmanager
def lab_of(name: str, text: str, scratch: Path, *options: str) -> Iterator[None]:
    """Bring up a lab of these manifests, and take it down; raises BenchError."""
    path = scratch / f"{name}.yaml"
    path.write_text(text)
    try:
        _ambit("lab", "up", str(path), "--name", name, "--replace", "--quiet", *options)
        yield
    finally:
        with contextlib.suppress(BenchError):
            _ambit("lab", "down", "--name", name)


@contextlib.contextmanager
def build(only: list[str]) -> Iterator[list[Way]]:
    """Bring up what the named contenders need; everything is gone afterwards, however it ends."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ambit-bench-")))
        (scratch / "nginx.conf").write_text(nginx_config(scratch))
        namespaces = [{"ambit": "mesh"}.get(n, n) for n in only if n != "ztunnel"]
        ways: list[Way] = []
        if namespaces:
            options = [] if "ambit" in only else ["--no-mesh"]
            text = manifest(namespaces, scratch / "nginx.conf")
            stack.enter_context(lab_of(_LAB, text, scratch, *options))
            pods = find_pods(_LAB)
            for name in only:
                if name == "envoy":
                    ways.append(stack.enter_context(_envoy_pair(pods, scratch)))
                elif name != "ztunnel":
                    ways.append(_way(name, _LAB, {"ambit": "mesh"}.get(name, name), pods))
        if "ztunnel" in only:
            binary = os.environ[ZTUNNEL_VARIABLE]
            text = manifest(["mesh"], scratch / "nginx.conf")
            stack.enter_context(lab_of(_OTHER_LAB, text, scratch, "--ztunnel-binary", binary))
            ways.append(_way("ztunnel", _OTHER_LAB, "mesh", find_pods(_OTHER_LAB)))
        for way in ways:
            wait_for_answers(way)
        yield ways


def wait_for_answers(way: Way, seconds: float = 20.0) -> None:
    """Wait until the client is answered by every server; raises BenchError."""
    deadline = time.monotonic() + seconds
    for server in way.servers:
        host, http_port, _ = way.target(server)
        url = f"http://{host}:{http_port}/"
        command = way.client.argv(["curl", "-s", "-o", "/dev/null", "-m", "2", url])
        while subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise BenchError(f"{way.name}: no answer from {server} at {url}")
            time.sleep(0.2)


def target_of(way: Way) -> LabTarget:
    """Where the way's node pages are."""
    return LabTarget(way.lab)
