"""The mesh's own processes in a lab: what to start, where, and when it is ready."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lab import cgroups, probes, tokens
from lab.errors import LabError
from lab.layout import CP_V4, CP_V6, NETNS, Layout, NodeAddress
from lab.place import Place, etc_files
from lab.process import Process
from mesh.ports import (
    AGENT_HEALTH,
    DEFAULT_CLUSTER_ID,
    ROOT_NAMESPACE,
    XDS_CA_TLS,
    ZTUNNEL_READY,
)

Object = dict[str, Any]

CONTROL_PLANE: Final = "control-plane"
DNS: Final = "dns"
_HOLD_TURN: Final = 0.05  # seconds between two looks whether a component may start
ACCOUNTS: Final = {"ztunnel": "ztunnel", "agent": "ambit-node-agent"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a lab was asked for; STATE/lab.json."""

    name: str
    mesh: bool = True
    redirect: str = "auto"  # auto, ebpf, nftables
    ztunnel_binary: str | None = None  # another ztunnel than ours
    env: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by component

    def dump(self) -> str:
        """Render as JSON."""
        return json.dumps(
            {
                "name": self.name,
                "mesh": self.mesh,
                "redirect": self.redirect,
                "ztunnelBinary": self.ztunnel_binary,
                "env": {part: dict(env) for part, env in self.env.items()},
            }
        )

    @classmethod
    def load(cls, text: str) -> Settings:
        """Read what dump() wrote."""
        raw = json.loads(text)
        return cls(raw["name"], raw["mesh"], raw["redirect"], raw["ztunnelBinary"], raw["env"])


@dataclass(slots=True)
class Component:
    """A process of the mesh, and the question whether it is ready."""

    name: str
    process: Process
    place: Place
    watch: probes.Watch | None = None
    prober: probes.Prober | None = None
    address: str = "127.0.0.1"
    hold: Callable[[], bool] = lambda: True  # may it start yet

    @property
    def ready(self) -> bool:
        """Whether it runs and says that it is ready."""
        return self.process.running and (self.watch is None or self.watch.ok is True)

    def tick(self, now: float, wake: Callable[[], None]) -> bool:
        """Keep it running; returns whether anything changed."""
        if not self.process.running and not self.hold():
            return False
        was = self.process.pid
        changed = self.process.tick(now)
        if self.watch is not None and self.prober is not None:
            if self.process.pid != was:
                self.watch = probes.Watch(self.watch.probe, now)
                changed = True
            if self.process.running:
                changed |= self.watch.tick(now, self.prober, self.address, self.place, wake)
        return changed

    def due(self) -> float | None:
        """When tick() has to look again; None when only an event matters."""
        if not self.process.running and not self.hold():
            return time.monotonic() + _HOLD_TURN
        times = [t for t in (self.process.due,) if t is not None]
        if self.watch is not None and self.process.running and self.watch.idle:
            times.append(self.watch.due)
        return min(times, default=None)


def control_plane(
    layout: Layout, settings: Settings, root: Path, prober: probes.Prober
) -> Component:
    """The control plane and CA."""
    place = Place(root / "_cp" / CONTROL_PLANE, NETNS / layout.control_plane_netns)
    command = [sys.executable, "-m", "control_plane.app"]
    command += ["--objects", str(layout.objects), "--data", str(layout.control_plane)]
    command += ["--listen", CP_V4, "--token-key", str(layout.token_key)]
    for san in (CP_V4, CP_V6, "istiod.istio-system.svc", "istiod.istio-system.svc.cluster.local"):
        command += ["--san", san]
    return _component(
        layout, CONTROL_PLANE, place, command, _env(settings, CONTROL_PLANE), prober,
        {"tcpSocket": {"port": XDS_CA_TLS}}, CP_V4,
    )  # fmt: skip


def dns(layout: Layout, root: Path) -> Component:
    """Cluster DNS: dnsmasq, answering from the file that the manager writes."""
    place = Place(root / "_cp" / DNS, NETNS / layout.control_plane_netns)
    command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root"]
    command += ["--no-resolv", "--no-hosts", f"--addn-hosts={dns_hosts(layout)}", "--pid-file="]
    # Nothing but the cluster's names: others do not exist, at once.
    command += [f"--listen-address={CP_V4}", "--bind-interfaces", "--cache-size=0", "--local=/#/"]
    command += ["--log-facility=-"]
    return _component(layout, DNS, place, command, {}, None, None, CP_V4)


def dns_hosts(layout: Layout) -> Path:
    """The file of names that cluster DNS answers from."""
    return layout.state / "dns-hosts"


def agent(
    layout: Layout,
    settings: Settings,
    node: str,
    address: NodeAddress,
    cgroup: Path,
    prober: probes.Prober,
) -> Component:
    """The node agent."""
    place = _on_node(layout, node, cgroup, "agent")
    command = [sys.executable, "-m", "node_agent.app", "--node", node]
    command += ["--state", str(layout.node(node) / "agent"), "--objects", str(layout.objects)]
    command += ["--runtime", str(layout.runtime(node)), "--zds", str(layout.zds(node))]
    command += ["--cgroup", str(cgroup), "--pins", str(layout.pins / node)]
    command += ["--proxy-cgroup", str(cgroup / "system" / "ztunnel")]
    command += ["--node-address", address.v4, "--node-address", address.v6]
    command += ["--redirect", settings.redirect]
    made = _component(
        layout, f"agent/{node}", place, command, _env(settings, "agent"), prober,
        {"httpGet": {"path": "/readyz", "port": AGENT_HEALTH}}, "127.0.0.1",
    )  # fmt: skip
    # Beside the agent lives the process that holds its descriptors through its restarts.
    made.process.sweep = None
    return made


def ztunnel(
    layout: Layout,
    settings: Settings,
    node: str,
    address: NodeAddress,
    cgroup: Path,
    prober: probes.Prober,
) -> Component:
    """The node's proxy: ours, or the binary that was asked for."""
    place = _on_node(layout, node, cgroup, "ztunnel")
    server = f"https://{CP_V4}:{XDS_CA_TLS}"
    env = {
        "XDS_ADDRESS": server,
        "CA_ADDRESS": server,
        "XDS_ROOT_CA": str(layout.root_cert),
        "CA_ROOT_CA": str(layout.root_cert),
        "AUTH_TOKEN": str(layout.token(node)),
        "INPOD_UDS": str(layout.zds(node)),
        "CLUSTER_ID": DEFAULT_CLUSTER_ID,
        "NODE_NAME": node,
        "POD_NAME": f"ztunnel-{node}",
        "POD_NAMESPACE": ROOT_NAMESPACE,
        "SERVICE_ACCOUNT": ACCOUNTS["ztunnel"],
        "INSTANCE_IP": address.v4,
        "RUST_LOG": "info",
    }
    command = [sys.executable, "-m", "ztunnel.app"]
    if settings.ztunnel_binary:
        command = [settings.ztunnel_binary, "proxy", "ztunnel"]
    made = _component(
        layout, f"ztunnel/{node}", place, command, {**env, **_env(settings, "ztunnel")}, prober,
        {"httpGet": {"path": "/healthz/ready", "port": ZTUNNEL_READY}}, "127.0.0.1",
    )  # fmt: skip
    made.hold = layout.root_cert.exists
    return made


def _on_node(layout: Layout, node: str, cgroup: Path, part: str) -> Place:
    netns = NETNS / layout.node_netns(node)
    return Place(cgroup / "system" / part, netns, etc_files(layout, f"node-{node}"))


def _env(settings: Settings, part: str) -> dict[str, str]:
    return {key: str(value) for key, value in settings.env.get(part, {}).items()}


def _component(
    layout: Layout,
    name: str,
    place: Place,
    command: list[str],
    env: dict[str, str],
    prober: probes.Prober | None,
    probe: Object | None,
    address: str,
) -> Component:
    cgroups.make(place.cgroup)
    process = Process(
        name=name,
        argv=lambda: place.argv(command, env=env, detached=True),
        log=layout.log(name),
        sweep=place.cgroup,
    )
    watch = None
    if probe is not None:
        spec = {"periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 1, **probe}
        watch = probes.Watch(probes.Probe("readiness", spec, {}), 0.0)
    return Component(name, process, place, watch, prober, address)


class Tokens:
    """The token each proxy authenticates with, projected into a file and kept fresh."""

    def __init__(self, layout: Layout) -> None:
        """Make the signing key."""
        tokens.create_key(layout.token_signing_key, layout.token_key)
        self._layout = layout
        self.key = layout.token_signing_key.read_text()
        self._due: dict[str, float] = {}  # by node

    def tick(self, now: float, subjects: Mapping[str, tokens.Subject]) -> None:
        """Write the tokens that are missing or old; `subjects` by node."""
        for node, subject in subjects.items():
            if now >= self._due.get(node, 0.0):
                tokens.write(self._layout.token(node), tokens.sign(self.key, subject, time.time()))
                self._due[node] = now + tokens.LIFETIME * tokens.REFRESH

    def due(self) -> float | None:
        """When the next token is old."""
        return min(self._due.values(), default=None)


def check_binary(path: str | None) -> str | None:
    """Return the absolute path of another ztunnel; raises LabError where there is none."""
    if path is None:
        return None
    found = Path(path).resolve()
    if not found.is_file():
        raise LabError(f"--ztunnel-binary {path}: no such file")
    return str(found)
