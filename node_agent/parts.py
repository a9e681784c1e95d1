"""What the agent of a lab and that of a cluster are both put together from."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from bpf import features
from bpf.datapath import Datapath
from bpf.sources import HOOKS
from mesh.errors import ConfigError, Unsupported
from node_agent.config import AUTO, Config
from node_agent.metrics import Metrics
from node_agent.redirect import NFTABLES, EbpfRedirect, NftRedirect
from node_agent.steps import Ways
from node_agent.web import Page, Pages, PageServer, verdict

log = logging.getLogger(__name__)

_DESCRIBE_TIMEOUT: Final = 2.0
_TURN: Final = 0.05  # seconds between looks at a lock or a port that a former agent has


def open_ways(config: Config, cgroup: Path) -> Ways:
    """Find out how pods can be captured on this machine."""
    nft = NftRedirect(config.node_addresses)
    if config.redirect == NFTABLES:
        Datapath.remove(config.pins)  # an earlier agent may have captured that way
        return Ways(None, nft, "chosen by --redirect nftables")
    try:
        datapath = Datapath.open(config.pins, cgroup, config.proxy_cgroup)
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


class Health:
    """What the health pages say. Threads read it."""

    def __init__(self) -> None:
        self.alive: Callable[[], bool] = lambda: True
        self.ready: Callable[[], bool] = lambda: False
        self.describe: Callable[[], Awaitable[dict[str, Any]]] | None = None


def serve_pages(
    config: Config, health: Health, metrics: Metrics, loop: asyncio.AbstractEventLoop
) -> None:
    """Open the health and metrics ports; they end with the process."""

    async def collect() -> dict[str, Any]:
        return await health.describe() if health.describe else {"node": config.node}

    def status() -> Page:
        asked = asyncio.run_coroutine_threadsafe(collect(), loop)
        return Page(json.dumps(asked.result(_DESCRIBE_TIMEOUT)).encode(), "application/json")

    PageServer(
        config.health,
        {
            "/healthz": lambda: verdict(health.alive()),
            "/readyz": lambda: verdict(health.ready()),
            "/status": status,
        },
    )
    pages: Pages = {
        "/metrics": lambda: Page(generate_latest(metrics.registry), CONTENT_TYPE_LATEST)
    }
    PageServer(config.metrics, pages)


async def serve_pages_within(
    seconds: float, config: Config, health: Health, metrics: Metrics
) -> None:
    """Open them as soon as an agent that has just ended lets go of the ports."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            serve_pages(config, health, metrics, asyncio.get_running_loop())
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            await asyncio.sleep(_TURN)
        else:
            return


class Lock:
    """Held while an agent manages a node: two would undo each other's work."""

    def __init__(self, state: Path) -> None:
        self._path = state / "agent.lock"
        self._fd = -1

    def __enter__(self) -> None:
        if not self.take():
            raise ConfigError(
                f"{self._path}: another node agent (pid {self.owner() or '?'}) manages this node; "
                "stop it first"
            )

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def take(self) -> bool:
        """Take it if nobody has it."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        return True

    def owner(self) -> str:
        """Say which process has it, as far as is known."""
        try:
            return self._path.read_text().strip()[:32]
        except OSError:
            return ""

    async def wait(self, stop: asyncio.Event) -> bool:
        """Take it once its owner has gone; False when told to stop before."""
        while not stop.is_set():
            if self.take():
                return True
            await asyncio.sleep(_TURN)
        return False
