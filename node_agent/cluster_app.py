"""The agent of a cluster's node: what is around node_agent/agent.py there.

Order. What only reads (API server, container runtime) starts at once, so that a standby agent of
an upgrade has everything in hand when the one before it lets go of the lock. Then, as the only one:
the hooks, the pods, the proxies' socket, the plugin's socket, and last the plugin's entry on the
node, because from then on pods wait for an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from bpf.datapath import Datapath
from mesh.enrolment import EXCLUDED_NAMESPACES
from mesh.errors import MeshError
from mesh.kube.api import Api
from node_agent import app, cgroups
from node_agent.agent import Agent
from node_agent.cni_conf import Entry
from node_agent.cni_install import ConfWatch, Installer, Places
from node_agent.cni_server import CniServer
from node_agent.cni_token import TokenKeeper
from node_agent.config import Cluster, Config
from node_agent.cri import Runtime
from node_agent.enquiry import Enquiry
from node_agent.keeper import SharedKeeper
from node_agent.kube_cache import KubeCache
from node_agent.kubernetes_source import KubernetesSource
from node_agent.metrics import Metrics
from node_agent.outbox import Outbox
from node_agent.parts import Health, Lock, open_ways, serve_pages_within
from node_agent.pod_status import Events, StatusWriter
from node_agent.pods import Sandboxes
from node_agent.redirect import NFTABLES
from node_agent.runtime_watch import RuntimeWatch
from node_agent.status import describe
from node_agent.steps import Ways

log = logging.getLogger("node_agent")

DAEMON_SET: Final = "ambit-node-agent"
CNI_SOCKET: Final = "cni.sock"  # in the state folder
_PORTS_WITHIN: Final = 30.0  # seconds for the agent before this one to let go of its ports
_HOLDER_WITHIN: Final = 10.0  # seconds for the holder's container to come up beside this one
_POD_LOGS: Final = "/var/log/pods"


class _Readers:
    """What only reads and writes statuses: safe beside another agent."""

    def __init__(self, config: Config, cluster: Cluster, metrics: Metrics) -> None:
        self.api = Api.load(cluster.kubeconfig)
        self.runtime = Runtime(cluster.cri)
        self.outbox = Outbox()
        self.cache = KubeCache(self.api, config.node, metrics, lambda: self.source.changed())
        self.watch = RuntimeWatch(self.runtime, lambda: self.source.changed())
        writer = StatusWriter(self.api, self.outbox)
        events = Events(self.api, self.outbox, config.node)
        self.source = KubernetesSource(self.cache, self.watch, writer, events)
        self.enquiry = Enquiry(self.api, self.cache)

    def start(self) -> None:
        self.outbox.start()
        self.cache.start()
        self.watch.start()

    def close(self) -> None:
        self.cache.close()
        self.watch.close()
        self.outbox.close()
        self.enquiry.close()


async def run(config: Config, cluster: Cluster, lock: Lock) -> None:
    """Manage the node from when the lock is free until SIGTERM."""
    stop = app.stopping()
    metrics = Metrics()
    readers = _Readers(config, cluster, metrics)
    readers.start()
    cluster.started.unlink(missing_ok=True)
    try:
        if not (lock.take() or await _stand_by(config, cluster, readers, lock, stop)):
            return
        try:
            health = Health()
            health.describe = lambda: _waiting(config, readers)
            await serve_pages_within(_PORTS_WITHIN, config, health, metrics)
            cluster.started.touch()
            # Also after standing by: what came since then must be known too.
            if await _either(asyncio.ensure_future(readers.source.synced()), stop):
                await _manage(_Node(config, cluster, readers, metrics, health), stop)
        finally:
            lock.__exit__()
    finally:
        readers.close()


async def _stand_by(
    config: Config, cluster: Cluster, readers: _Readers, lock: Lock, stop: asyncio.Event
) -> bool:
    """Wait for the agent before this one to end, with everything in hand to take over from it."""
    log.info("standing by: agent %s manages this node", lock.owner() or "?")

    async def prepare() -> None:
        await readers.source.synced()
        if config.redirect != NFTABLES:
            try:
                await asyncio.to_thread(Datapath.prepare, config.pins)
            except (MeshError, OSError) as error:
                log.warning("the hooks cannot be prepared: %s", error)
        cluster.started.touch()
        log.info("ready to take over")

    preparing = asyncio.ensure_future(prepare())
    try:
        return await lock.wait(stop)
    finally:
        preparing.cancel()


@dataclass(frozen=True, slots=True)
class _Node:
    config: Config
    cluster: Cluster
    readers: _Readers
    metrics: Metrics
    health: Health


async def _manage(node: _Node, stop: asyncio.Event) -> None:
    config, readers = node.config, node.readers
    cgroup = config.cgroup or cgroups.root()
    cgroups.folder_of(cgroup, os.getpid())  # the proof is made from this process's cgroup
    keeper = SharedKeeper(config.state)
    await _find_holder(keeper, stop)
    ways = open_ways(config, cgroup)
    sandboxes = Sandboxes(keeper, cgroup)

    def welcome(pid: int) -> None:
        if ways.ebpf:
            ways.ebpf.datapath.exempt(cgroups.isolate(cgroup, pid))

    agent = Agent(
        readers.source,
        sandboxes,
        ways,
        config.zds,
        config.release_grace,
        node.metrics,
        welcome if config.proxy_cgroup is None else None,
    )
    path = config.state / CNI_SOCKET
    server = CniServer(
        path, readers.enquiry, readers.source, agent, node.metrics, readers.watch.poke
    )
    node.metrics.set_mode(ways.preferred, {hook: not cause for hook, cause in ways.hooks.items()})
    agent.start()
    server.open()
    plugin = _Plugin(node, path)
    plugin.start()
    _report_health(node, agent, plugin)
    log.info("node %s: managing its pods, capture by %s", config.node, ways.preferred)
    await stop.wait()
    log.info("stopping; what is captured stays captured, the CNI plugin stays on the node")
    plugin.close()
    await server.close()
    await agent.stop()
    keeper.forget()
    _close(ways)


class _Plugin:
    """The plugin on the node: binary, entry, and what it needs to ask the API server."""

    def __init__(self, node: _Node, socket: Path) -> None:
        cluster = node.cluster
        kubeconfig = cluster.lasting / "cni" / "kubeconfig"
        self.installed = False
        self._gauge = node.metrics.cni_installed
        entry = Entry(
            socket=str(socket),
            kubeconfig=str(kubeconfig),
            namespace=cluster.namespace,
            daemon_set=DAEMON_SET,
            exempt=tuple(sorted(EXCLUDED_NAMESPACES | {cluster.namespace})),
            pod_logs=_pod_logs(node.readers.runtime),
            log_file=str(cluster.lasting / "cni" / "plugin.log"),
        )
        self.token = TokenKeeper(node.readers.api, cluster.namespace, kubeconfig)
        installer = Installer(places(cluster), entry)
        self._watch = ConfWatch(installer, cluster.cni_conf_dir, self._told)

    def start(self) -> None:
        self.token.start()
        self._watch.start()

    def close(self) -> None:
        self._watch.close()
        self.token.close()

    def _told(self, installed: bool) -> None:
        self.installed = installed
        self._gauge.set(installed)


def places(cluster: Cluster) -> Places:
    """Say where the plugin's parts are."""
    return Places(
        binary=cluster.cni_binary,
        bin_dir=cluster.cni_bin_dir,
        conf_dir=cluster.cni_conf_dir,
        originals=cluster.lasting / "cni" / "originals",
    )


def _report_health(node: _Node, agent: Agent, plugin: _Plugin) -> None:
    readers = node.readers

    async def collect() -> dict[str, Any]:
        return describe(node.config.node, agent) | {
            "cni": {"installed": plugin.installed, "token": plugin.token.problem},
            "api": readers.cache.problem,
            "runtime": readers.watch.problem,
        }

    node.health.alive = lambda: time.monotonic() - agent.heartbeat < app.STALE
    node.health.ready = lambda: agent.ready
    node.health.describe = collect


async def _waiting(config: Config, readers: _Readers) -> dict[str, Any]:
    return {
        "node": config.node,
        "waiting": "for the API server and the container runtime to have told everything",
        "api": readers.cache.problem,
        "runtime": readers.watch.problem,
    }


async def _either(work: asyncio.Future[None], stop: asyncio.Event) -> bool:
    """Wait for work or for the end; whether the work is done."""
    stopped = asyncio.ensure_future(stop.wait())
    either: set[asyncio.Future[Any]] = {work, stopped}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if work.done():
        work.result()
    return work.done()


async def _find_holder(keeper: SharedKeeper, stop: asyncio.Event) -> None:
    """Wait a little for the holder; without it nothing is worse until this agent ends."""
    deadline = time.monotonic() + _HOLDER_WITHIN
    while not keeper.find() and not stop.is_set():
        if time.monotonic() > deadline:
            log.error(
                "no descriptor holder: run `ambit-node-agent --holder` in a second container of "
                "this pod; until then listeners end with this agent"
            )
            return
        await asyncio.sleep(0.1)


def _pod_logs(runtime: Runtime) -> str:
    """Find out where kubelet keeps the logs of this node's pods."""
    with contextlib.suppress(MeshError):
        for name in runtime.ready():
            facts = runtime.facts(name.sandbox)
            if facts is not None and facts.logs.startswith("/"):
                return str(PurePosixPath(facts.logs).parent)
    return _POD_LOGS


def _close(ways: Ways) -> None:
    if ways.ebpf:
        ways.ebpf.datapath.close()
