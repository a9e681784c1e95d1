"""The loop: objects change, the registry follows, proxies and statuses are told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from control_plane import registry
from control_plane.delta import Nack
from control_plane.metrics import Metrics, short_type
from control_plane.registry import Registry
from control_plane.speaking import Speaker
from control_plane.status import StatusSink
from control_plane.waypoints import state
from control_plane.waypoints.deploying import Deployer
from control_plane.waypoints.jwks import JwksFetcher
from control_plane.waypoints.state import Waypoints
from control_plane.xds import Hub
from mesh.findings import Condition
from mesh.manifest import Key
from mesh.xds.delta import Resource
from waypoint.config.security import Jwks
from waypoint.config.status import Status

log = logging.getLogger(__name__)

# One `apply` of many files is one push, and nobody waits long for it.
QUIET: Final = 0.02
LONGEST: Final = 0.05
KINDS: Final = registry.KINDS | state.KINDS
_WATCH: Final = 0.5  # seconds a watch blocks at most, so that shutting down is not held up


class Source(Protocol):
    """Where objects come from (mesh.store.FolderStore, control_plane.kubernetes)."""

    def changes(
        self, known: Mapping[Key, int]
    ) -> tuple[dict[Key, tuple[int, dict[str, Any]]], set[Key]]:
        """Compare with revisions seen before."""
        ...

    def watch(self, timeout: float) -> bool:
        """Block until something changed."""
        ...

    def problems(self) -> list[str]:
        """List documents that cannot be read."""
        ...


class Engine:
    """Owns the registry."""

    def __init__(
        self,
        source: Source,
        registry: Registry,
        waypoints: Waypoints,
        hub: Hub,
        status: StatusSink,
        deployer: Deployer,
        refer: Callable[[set[Key]], None],
        metrics: Metrics,
    ) -> None:
        self.registry = registry
        self.waypoints = waypoints
        self.synced = False
        self._source = source
        self._hub = hub
        self._speaker = Speaker(status)
        self._deployer = deployer
        self._refer = refer
        self._poked = False
        self._reacting: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        hub.answered = self._answered
        self._metrics = metrics
        self._known: dict[Key, int] = {}
        self._said: dict[Key, Condition] = {}
        self._lock = asyncio.Lock()
        self._keys = JwksFetcher(self._take_keys)

    @property
    def problems(self) -> list[str]:
        """What cannot be read, one line each."""
        return self._source.problems()

    async def run(self) -> None:
        """Follow the source, and the keys of token issuers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keys.run())
            group.create_task(self._speaker.run())
            group.create_task(self._follow())

    async def _take_keys(self, jwks: Mapping[str, Jwks]) -> None:
        self.waypoints.rules.take_keys(jwks)
        self._poked = True
        await self.refresh()

    async def _follow(self) -> None:
        while True:
            try:
                await self.refresh()
                while not await asyncio.to_thread(self._source.watch, _WATCH) and not self._poked:
                    pass
                seen = time.monotonic()
                while time.monotonic() - seen < LONGEST:
                    if not await asyncio.to_thread(self._source.watch, QUIET):
                        break
            except OSError as e:
                # A folder unreadable or a disk full: say so, serve what is known, try again.
                log.error("objects: %s; the last state is served", e)
                await asyncio.sleep(1)

    def react(self) -> None:
        """Look again at once: something beside the objects has changed. From the loop."""
        self._poked = True
        if not self._reacting:
            task = asyncio.ensure_future(self.refresh())
            self._reacting.add(task)
            task.add_done_callback(self._reacting.discard)

    def _look_again(self, seen: float) -> None:
        due = self.waypoints.due(seen)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, due - time.monotonic()), self.react)

    def _answered(
        self, waypoint: str, accepted: Sequence[Resource], refused: Sequence[Nack]
    ) -> None:
        """A waypoint has answered: what was held back for it may be told."""
        news = self.waypoints.answered(waypoint, accepted, refused)
        if news or self.waypoints.due(time.monotonic()) is not None:
            self.react()

    def poke(self) -> None:
        """Look again soon: something beside the objects has changed. From any thread."""
        self._poked = True

    async def refresh(self) -> None:
        """Take in whatever changed until now."""
        async with self._lock:
            seen = time.monotonic()
            found, gone = await asyncio.to_thread(self._source.changes, self._known)
            self._metrics.problems.set(len(await asyncio.to_thread(self._source.problems)))
            if not found and not gone and self.synced and not self._poked:
                return
            self._poked = False
            self._known.update({key: revision for key, (revision, _) in found.items()})
            for key in gone:
                del self._known[key]
            changed = {key: obj for key, (_, obj) in found.items() if key.kind in KINDS}
            for key in [*changed, *(k for k in gone if k.kind in KINDS)]:
                self._metrics.triggers.inc(key.kind.lower())
            snapshot = self.registry.update(changed, gone, seen)
            for type_url, resources in snapshot.resources.items():
                self._metrics.resources.labels(short_type(type_url)).set(len(resources))
            guards = self.waypoints.update(changed, gone, self._deployer.troubles(), seen)
            if guards:
                snapshot = self.registry.guard(guards)
            released = self.waypoints.release(seen, self._hub.reached)
            if released:
                snapshot = self.registry.rebind(released)
            self._deployer.want(self.waypoints.gateways)
            self._refer(self.waypoints.rules.references())
            # Waypoints first: who is told to pass one finds it ready for what is sent there.
            self._hub.publish_waypoints(self.waypoints.snapshots, seen)
            self._hub.publish(snapshot, seen)
            self.synced = True
            self._keys.want(self.waypoints.rules.security.jwks_uris())
            self._metrics.refused_resources.set(self.waypoints.refused)
            self._look_again(seen)
            self._speaker.tell(changed, gone, self._news())

    def _news(self) -> dict[Key, Status | None]:
        """Collect what is to be said otherwise than before."""
        said = dict(self.waypoints.statuses.drain())
        now = self.registry.conditions
        for key, condition in now.items():
            if self._said.get(key) is not condition:
                said[key] = Status((condition,))
        for key in self._said:
            if key not in now:
                said.setdefault(key, None)
        self._said = dict(now)
        return said
