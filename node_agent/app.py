"""ambit-node-agent: wires the parts together, starts and stops them."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from bpf import features
from bpf.datapath import Datapath
from bpf.sources import HOOKS
from mesh.errors import ConfigError, MeshError, Unsupported
from node_agent.agent import Agent
from node_agent.cleanup import clean
from node_agent.config import AUTO, Config, parse
from node_agent.folder_source import FolderSource
from node_agent.keeper import Keeper, private_folder
from node_agent.metrics import Metrics
from node_agent.pods import Sandboxes
from node_agent.redirect import NFTABLES, EbpfRedirect, NftRedirect
from node_agent.status import describe
from node_agent.steps import Ways
from node_agent.web import Page, PageServer, verdict

log = logging.getLogger("node_agent")

_STALE: Final = 10.0  # seconds without a turn of the loop: not alive
_DESCRIBE_TIMEOUT: Final = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; 0 after a graceful end, 1 with a message when it cannot work."""
    config = parse(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if config.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        with _Lock(private_folder(config.state)):
            if config.cleanup:
                clean(config)
            else:
                asyncio.run(_run(config))
    except (MeshError, OSError) as error:
        log.error("%s", error)
        return 1
    return 0


async def _run(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics()
    keeper = Keeper(config.state / "holder.sock")
    keeper.ensure()
    ways = _ways(config)
    source = FolderSource(config.objects, config.runtime)
    sandboxes = Sandboxes(keeper, config.cgroup)
    agent = Agent(source, sandboxes, ways, config.zds, config.release_grace, metrics)
    _serve(config, agent, metrics, loop)
    metrics.set_mode(ways.preferred, {hook: not cause for hook, cause in ways.hooks.items()})
    agent.start()
    log.info("node %s: managing its pods, capture by %s", config.node, ways.preferred)
    await stop.wait()
    log.info("stopping; what is captured stays captured")
    await agent.stop()
    keeper.forget()
    if ways.ebpf:
        ways.ebpf.datapath.close()


def _ways(config: Config) -> Ways:
    """Find out how pods can be captured on this machine."""
    nft = NftRedirect(config.node_addresses)
    if config.redirect == NFTABLES:
        Datapath.remove(config.pins)  # an earlier agent may have captured that way
        return Ways(None, nft, "chosen by --redirect nftables")
    try:
        datapath = Datapath.open(config.pins, config.cgroup, config.proxy_cgroup)
    except Unsupported as error:
        if config.redirect != AUTO:
            raise
        log.warning("falling back to nftables inside each pod (--redirect auto): %s", error)
        Datapath.remove(config.pins)
        return Ways(None, nft, str(error), _hooks())
    hooks = {hook.name: "" for hook in HOOKS}
    return Ways(EbpfRedirect(datapath, config.node_addresses), nft, "", hooks)


def _hooks() -> dict[str, str]:
    """Find out which hooks would load, and why the others do not."""
    try:
        return {feature.hook: feature.cause for feature in features.probe()}
    except Unsupported as error:
        return {hook.name: str(error) for hook in HOOKS}


def _serve(config: Config, agent: Agent, metrics: Metrics, loop: asyncio.AbstractEventLoop) -> None:
    """Open the health and metrics ports; they end with the process."""

    async def collect() -> dict[str, Any]:
        return describe(config.node, agent)

    def status() -> Page:
        asked = asyncio.run_coroutine_threadsafe(collect(), loop)
        return Page(json.dumps(asked.result(_DESCRIBE_TIMEOUT)).encode(), "application/json")

    PageServer(
        config.health,
        {
            "/healthz": lambda: verdict(time.monotonic() - agent.heartbeat < _STALE),
            "/readyz": lambda: verdict(agent.ready),
            "/status": status,
        },
    )
    PageServer(
        config.metrics,
        {"/metrics": lambda: Page(generate_latest(metrics.registry), CONTENT_TYPE_LATEST)},
    )


class _Lock:
    """Held while an agent manages a node: two would undo each other's work."""

    def __init__(self, state: Path) -> None:
        self._path = state / "agent.lock"
        self._fd = -1

    def __enter__(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise ConfigError(
                f"{self._path}: another node agent (pid {owner or '?'}) manages this node; stop "
                "it first"
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


if __name__ == "__main__":
    sys.exit(main())
