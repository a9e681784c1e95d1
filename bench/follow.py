"""How long traffic takes to follow a change: from `ambit lab apply` to the first answer made by it.

The mesh is large (by default 1,000 Services with an HTTPRoute each, at 20 waypoints, every one with
an Envoy of its own), and the way is whole: the object's file, the control plane, the waypoint, its
Envoy, and a request through both node proxies. The span begins before `apply` and ends when the
client has the answer; the client asks without a pause (each of several at once: every 2 ms for each
of the others), so an answer's own time is in it. Reading the lab's folder, which the command does
first, is not.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from prometheus_client.parser import text_string_to_metric_families

from bench import usage
from bench.errors import BenchError
from bench.objects import FAR, NEAR
from bench.pods import Pod, stop
from bench.stats import percentile
from bench.world import find_pods, lab_of
from cli.target import LabTarget
from cli.waypoint import shape
from lab import Lab, readiness
from mesh.ports import CONTROL_PLANE_METRICS, LABEL_DATAPLANE_MODE

LAB: Final = "bench-follow"
_GATEWAY: Final = "waypoint"
_CLIENT: Final = "client"
_HEADER: Final = "x-version"
_PORT: Final = 80
_PAUSE: Final = 0.1  # seconds between two changes
_READY: Final = "110"  # seconds that a lab of this size may take
_PUSHES: Final = "pilot_xds_pushes"
_SENT: Final = "ambit_xds_resources"
_GATEWAY_API: Final = "gateway.networking.k8s.io/v1"

Object = dict[str, Any]
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is. Services are shared out among the waypoints."""

    services: int = 1000
    waypoints: int = 20
    samples: int = 100

    def places(self) -> list[tuple[str, str, str]]:
        """List every service: namespace, name, VIP."""
        found = []
        for i in range(self.services):
            number = i % self.waypoints
            found.append((f"w{number}", f"s{i}", f"10.96.{16 + i // 250}.{1 + i % 250}"))
        return found


@dataclass(slots=True)
class Found:
    """What was measured: seconds by kind of change, and what a change of a route costs."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    pushes: dict[str, float] = field(default_factory=dict)  # responses per change, by type
    sent: dict[str, float] = field(default_factory=dict)  # resources in them, per change, by type
    start: list[float] = field(default_factory=list)  # seconds of a waypoint's new pod to ready
    cpu_ms: float = 0.0  # of the control plane, per change
    rss_mib: float = 0.0  # of the control plane


# ---- objects -----------------------------------------------------------------------------------


def route(namespace: str, service: str, version: int) -> Object:
    """Build the HTTPRoute of a service, which puts a version into each answer."""
    change = {"set": [{"name": _HEADER, "value": str(version)}]}
    filters = [{"type": "ResponseHeaderModifier", "responseHeaderModifier": change}]
    return {
        "apiVersion": _GATEWAY_API,
        "kind": "HTTPRoute",
        "metadata": {"name": service, "namespace": namespace},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": service, "port": _PORT}],
            "rules": [{"filters": filters, "backendRefs": [{"name": service, "port": _PORT}]}],
        },
    }


def denial(namespace: str, service: str) -> Object:
    """Build an AuthorizationPolicy that refuses everybody."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": service, "namespace": namespace},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": service}],
            "action": "DENY",
            "rules": [{}],
        },
    }


def encryption(namespace: str, service: str) -> Object:
    """Build a DestinationRule that asks for TLS where the server has none: requests fail."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": service, "namespace": namespace},
        "spec": {"host": service, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}},
    }


def _service(namespace: str, name: str, vip: str) -> Object:
    port = {"name": "http", "port": _PORT, "targetPort": 8080, "appProtocol": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": "echo"}, "clusterIP": vip, "ports": [port]},
    }


def _pod(namespace: str, name: str, node: str, command: list[str], **more: Any) -> Object:
    container = {"name": "app", "image": "none", "command": command, **more}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [container]},
    }


def _namespace(name: str) -> Object:
    labels = {LABEL_DATAPLANE_MODE: "ambient", "istio.io/use-waypoint": _GATEWAY}
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def world(size: Size) -> list[Object]:
    """Build all of it: in each namespace a waypoint, a server, and its share of the services."""
    made: list[Object] = [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}} for node in (NEAR, FAR)
    ]
    client = _namespace(_CLIENT)
    del client["metadata"]["labels"]["istio.io/use-waypoint"]
    made += [client, _pod(_CLIENT, _CLIENT, NEAR, ["sleep", "infinity"])]
    probe = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10}
    echo = [sys.executable, "-m", "lab.apps.echo"]
    for i in range(size.waypoints):
        name = f"w{i}"
        made += [_namespace(name), shape.manifest(_GATEWAY, name)]
        made.append(_pod(name, "echo", FAR, echo, readinessProbe=probe))
    for namespace, name, vip in size.places():
        made += [_service(namespace, name, vip), route(namespace, name, 0)]
    return made


# ---- measuring ---------------------------------------------------------------------------------


class Follower:
    """The process in the client's pod."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def seconds(
        self, watches: list[Object], changes: Sequence[Callable[[], object]]
    ) -> list[float]:
        """Begin to ask, make the changes, and return how long each watch took to see its own."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps(watches) + "\n")
        stdin.flush()
        answers = []
        while "ready" not in (said := self._read()):
            answers.append(said)  # was so before
        begun = {}
        for wanted, change in zip(watches, changes, strict=True):
            begun[wanted["id"]] = time.monotonic()
            change()
        answers += [self._read() for _ in watches[len(answers) :]]
        return [float(answer["at"]) - begun[answer["id"]] for answer in answers]

    def _read(self) -> Object:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        found: Object = json.loads(line) if line else {"error": "the client ended"}
        if "error" in found:
            raise BenchError(f"follow: {found.get('id', 'client')}: {found['error']}")
        return found


class Run:
    """Changes, one after the other."""

    def __init__(self, size: Size, lab: Lab, follower: Follower, log: Log) -> None:
        self._lab = lab
        self._follower = follower
        self._places = size.places()
        self._samples = size.samples
        self._waypoints = size.waypoints
        self._log = log
        self._version = 0
        self.found = Found()

    def all(self) -> Found:
        """Measure every kind of change."""
        pid = self._lab.components()["control-plane"]["pid"]
        stride = max(1, len(self._places) // self._samples)
        chosen = [self._places[i * stride % len(self._places)] for i in range(self._samples)]
        before, cpu = self._counted(), usage.cpu_seconds([pid])[pid]
        self._each("HTTPRoute", chosen, self._reroute)
        spent = usage.cpu_seconds([pid])[pid] - cpu
        self.found.cpu_ms = spent / len(chosen) * 1e3
        after = self._counted()
        for metric, found in ((_PUSHES, self.found.pushes), (_SENT, self.found.sent)):
            for kind, count in after[metric].items():
                if more := count - before[metric].get(kind, 0.0):
                    found[kind] = more / len(chosen)
        some = chosen[: max(1, len(chosen) * 3 // 10)]
        for build, status in ((denial, 403), (encryption, 503)):
            kind = build("", "")["kind"]
            self._each(f"{kind}, applied", some, functools.partial(self._break, build, status))
            self._each(f"{kind}, deleted", some, functools.partial(self._mend, build))
        self._burst()
        status_page = Path(f"/proc/{pid}/smaps_rollup").read_text()
        self.found.rss_mib = usage.memory_of(status_page).rss / 2**20
        self.found.start = [self._start(f"w{i}") for i in range(min(3, self._waypoints))]
        return self.found

    def _each(
        self,
        kind: str,
        places: list[tuple[str, str, str]],
        change: Callable[[str, str, str], float],
    ) -> None:
        taken = self.found.seconds.setdefault(kind, [])
        for place in places:
            taken.append(change(*place))
            time.sleep(_PAUSE)
        self._log(line(kind, taken))

    def _reroute(self, namespace: str, name: str, vip: str) -> float:
        self._version += 1
        changed = route(namespace, name, self._version)
        wanted = watch(name, vip, header=(_HEADER, str(self._version)))
        return self._follower.seconds([wanted], [lambda: self._lab.apply([changed])])[0]

    def _break(
        self, build: Callable[[str, str], Object], status: int, namespace: str, name: str, vip: str
    ) -> float:
        obj = build(namespace, name)
        wanted = watch(name, vip, status)
        return self._follower.seconds([wanted], [lambda: self._lab.apply([obj])])[0]

    def _mend(
        self, build: Callable[[str, str], Object], namespace: str, name: str, vip: str
    ) -> float:
        obj = build(namespace, name)
        return self._follower.seconds([watch(name, vip)], [lambda: self._lab.delete([obj])])[0]

    def _start(self, namespace: str) -> float:
        """Delete a waypoint's pod; returns seconds until the next one is ready."""
        store = self._lab.store

        def pods() -> dict[str, Object]:
            found = [p for p in store.list("Pod") if p["metadata"].get("namespace") == namespace]
            named = {p["metadata"]["name"]: p for p in found}
            return {name: pod for name, pod in named.items() if name.startswith(_GATEWAY)}

        old = set(pods())
        begun = time.monotonic()
        for name in old:
            store.delete("Pod", namespace, name)
        while time.monotonic() < begun + 60:
            for name, pod in pods().items():
                if name not in old and readiness.condition(pod, "Ready").get("status") == "True":
                    return time.monotonic() - begun
            store.watch(0.5)
        raise BenchError(f"the waypoint of {namespace} is not ready a minute after its pod went")

    def _burst(self) -> None:
        """Change one route at every waypoint, one after the other without a pause."""
        kind = f"HTTPRoute, {self._waypoints} in a row"
        taken = self.found.seconds.setdefault(kind, [])
        for begin in range(0, len(self._places), max(self._waypoints, len(self._places) // 5)):
            places = self._places[begin : begin + self._waypoints]
            self._version += 1
            header = (_HEADER, str(self._version))
            changes = [
                functools.partial(self._lab.apply, [route(ns, name, self._version)])
                for ns, name, _ in places
            ]
            watches = [watch(name, vip, header=header) for _, name, vip in places]
            taken += self._follower.seconds(watches, changes)
            time.sleep(1)
        self._log(line(kind, taken))

    def _counted(self) -> dict[str, dict[str, float]]:
        """What the control plane has sent: responses and resources, by type."""
        pages = LabTarget(LAB).fetch_control_plane(CONTROL_PLANE_METRICS, "/metrics")
        found: dict[str, dict[str, float]] = {_PUSHES: {}, _SENT: {}}
        for family in text_string_to_metric_families(pages[0].decode()):
            for sample in family.samples:
                if sample.name in found:
                    found[sample.name][sample.labels["type"]] = sample.value
        return found


def watch(name: str, vip: str, status: int = 200, header: tuple[str, str] | None = None) -> Object:
    """Build what the client waits for (bench.follower)."""
    return {"id": name, "host": vip, "port": _PORT, "status": status, "header": header}


def line(kind: str, seconds: list[float]) -> str:
    """One line of the result, in milliseconds."""
    cells = [percentile(seconds, p) * 1e3 for p in (50, 90, 99)]
    return (
        f"{kind:32}{len(seconds):>6} changes  p50 {cells[0]:>6.0f}  p90 {cells[1]:>6.0f}"
        f"  p99 {cells[2]:>6.0f}  max {max(seconds) * 1e3:>6.0f} ms"
    )


@contextlib.contextmanager
def _client(pod: Pod, scratch: Path) -> Iterator[Follower]:
    process = pod.start([sys.executable, "-m", "bench.follower"], scratch / "follower.log")
    try:
        yield Follower(process)
    finally:
        stop([process])


def run(size: Size, log: Log) -> Found:
    """Bring up the world, measure, take it down; raises BenchError."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ambit-bench-")))
        text = yaml.dump_all(world(size), Dumper=yaml.CSafeDumper, sort_keys=False)
        log(f"bringing up a lab of {size.services} services at {size.waypoints} waypoints")
        begun = time.monotonic()
        stack.enter_context(lab_of(LAB, text, scratch, "--timeout", _READY))
        log(f"ready after {time.monotonic() - begun:.0f} s")
        pods = find_pods(LAB)
        follower = stack.enter_context(_client(pods[_CLIENT, _CLIENT], scratch))
        lab = Lab(LAB)
        lab.store.list("HTTPRoute")  # reads the folder, which is no part of a change
        measured = Run(size, lab, follower, log)
        for namespace, name, vip in size.places()[: size.waypoints]:
            _wait(follower, namespace, name, vip)
        return measured.all()


def _wait(follower: Follower, namespace: str, name: str, vip: str) -> None:
    """Wait until a waypoint answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            follower.seconds([watch(name, vip, header=(_HEADER, "0"))], [lambda: None])
            return
        except BenchError as e:
            if time.monotonic() > deadline:
                raise BenchError(f"no answer from {namespace}/{name}: {e}") from e
            time.sleep(0.5)


def summary(found: Found) -> str:
    """The rest of the result, and the line the row ends with."""
    pushed, sent = (
        ", ".join(f"{t} {n:.2f}" for t, n in sorted(counts.items()))
        for counts in (found.pushes, found.sent)
    )
    p99 = percentile(found.seconds["HTTPRoute"], 99) * 1e3
    starts = ", ".join(f"{seconds:.1f}" for seconds in found.start)
    return (
        f"per change of a route: responses sent: {pushed}; resources in them: {sent};"
        f" control plane {found.cpu_ms:.1f} ms CPU, {found.rss_mib:.0f} MiB resident\n"
        f"a waypoint's pod deleted to its successor ready: {starts} s\n"
        f"follow p99 {p99:.0f} ms"
    )
