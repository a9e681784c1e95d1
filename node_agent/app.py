"""ambit-node-agent: wires the parts together, starts and stops them."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from mesh.errors import MeshError
from node_agent.agent import Agent
from node_agent.cleanup import clean
from node_agent.config import Cluster, Config, Folders, parse
from node_agent.folder_source import FolderSource
from node_agent.keeper import Keeper, private_folder, run_holder
from node_agent.metrics import Metrics
from node_agent.parts import Health, Lock, open_ways, serve_pages
from node_agent.pods import Sandboxes
from node_agent.status import describe

log = logging.getLogger("node_agent")

STALE: Final = 10.0  # seconds without a turn of the loop: not alive


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; 0 after a graceful end, 1 with a message when it cannot work."""
    config = parse(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if config.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("asyncio", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if config.holder:
            run_holder(config.state)
        _run(config)
    except (MeshError, OSError) as error:
        log.error("%s", error)
        return 1
    return 0


def _run(config: Config) -> None:
    lock = Lock(private_folder(config.state))
    if isinstance(config.source, Cluster):
        # What speaks to a cluster costs memory and time to import; a lab's agent needs none of it.
        from node_agent import cluster_app, cluster_cleanup

        if config.cleanup:
            with lock:
                cluster_cleanup.clean(config, config.source)
        else:
            asyncio.run(cluster_app.run(config, config.source, lock))
        return
    with lock:
        if config.cleanup:
            clean(config, config.source)
        else:
            asyncio.run(_manage(config, config.source))


async def _manage(config: Config, folders: Folders) -> None:
    stop = stopping()
    metrics = Metrics()
    keeper = Keeper(config.state / "holder.sock")
    keeper.ensure()
    assert config.cgroup is not None  # parse() has seen to it
    ways = open_ways(config, config.cgroup)
    source = FolderSource(folders.objects, folders.runtime)
    sandboxes = Sandboxes(keeper, config.cgroup)
    agent = Agent(source, sandboxes, ways, config.zds, config.release_grace, metrics)
    serve_pages(config, health_of(config, agent), metrics, asyncio.get_running_loop())
    metrics.set_mode(ways.preferred, {hook: not cause for hook, cause in ways.hooks.items()})
    agent.start()
    log.info("node %s: managing its pods, capture by %s", config.node, ways.preferred)
    await stop.wait()
    log.info("stopping; what is captured stays captured")
    await agent.stop()
    keeper.forget()
    if ways.ebpf:
        ways.ebpf.datapath.close()


def stopping() -> asyncio.Event:
    """Give an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def health_of(config: Config, agent: Agent) -> Health:
    """Have the health pages tell of an agent."""

    async def collect() -> dict[str, Any]:
        return describe(config.node, agent)

    health = Health()
    health.alive = lambda: time.monotonic() - agent.heartbeat < STALE
    health.ready = lambda: agent.ready
    health.describe = collect
    return health


if __name__ == "__main__":
    sys.exit(main())
