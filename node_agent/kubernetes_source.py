"""Pods of a cluster's node: objects from the API server, sandboxes from plugin and runtime.

All of it is put together on the loop's thread, in pods(). The threads that watch the API server and
ask the runtime only leave what they found and say that there is something.

A pod whose sandbox is being made is known from the plugin before its object says anything of an
address, and perhaps before the watch has shown it: it then stands on the object that was fetched
for the plugin's request, until the watch has caught up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from node_agent.kube_cache import KubeCache
from node_agent.pod_object import PodObject
from node_agent.pod_status import Events, StatusWriter
from node_agent.runtime_watch import RuntimeWatch
from node_agent.sandbox_table import Known, SandboxTable
from node_agent.source import DesiredPod, PodStatus

log = logging.getLogger(__name__)

CATCH_UP: Final = 60.0  # seconds the watch has to show what was fetched
_SYNC_TURN: Final = 0.05


@dataclass(slots=True)
class _Early:
    """A pod that the plugin brought: what was fetched of it stands until the watch has shown it.

    until: when both count no more, the fetched object and that it is wanted.
    """

    pod: PodObject
    until: float
    shown: bool = False


class KubernetesSource:
    """PodSource of a cluster."""

    def __init__(
        self,
        cache: KubeCache,
        runtime: RuntimeWatch,
        writer: StatusWriter,
        events: Events,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The parts are started and closed by the caller; `clock` is the one of `runtime`."""
        self._cache = cache
        self._runtime = runtime
        self._writer = writer
        self._events = events
        self._clock = clock
        self._table = SandboxTable()
        self._early: dict[str, _Early] = {}
        self._problems: Mapping[str, str] = {}
        self._wish = 0
        self._changed: Callable[[], None] = lambda: None

    async def synced(self) -> None:
        """Return when everything is known: objects listed, and the sandboxes they need found."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(news.set)

        self._changed = tell
        while not self._cache.synced or not self._wish or self._runtime.answered < self._wish:
            if self._cache.synced:
                self.pods()
            # Not every step on the way is news: look now and then.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), _SYNC_TURN)
            news.clear()

    # ---- PodSource -----------------------------------------------------------------------------

    def pods(self) -> dict[str, DesiredPod]:
        """Give every pod that has a known sandbox, or should have one."""
        now = self._clock()
        look = self._runtime.take()
        if look is not None:
            self._table.take(look, now)
            self._problems = look.problems
        objects = self._objects(now)
        self._table.retain(objects)
        found: dict[str, DesiredPod] = {}
        needs: dict[str, str] = {}
        for uid, pod in objects.items():
            if pod.host_network:
                continue
            wants = self._wants(pod)
            known = self._table.get(uid)
            if (wants or pod.marked) and not pod.finished:
                needs[uid] = known.sandbox if known else ""
            desired = self._desired(pod, known, wants)
            if desired is not None:
                found[uid] = desired
        self._wish = self._runtime.want(needs)
        self._writer.heal(objects.values())
        return found

    def expects(self, uid: str) -> bool:
        """Whether a pod is to be captured; the runtime lists no sandbox that it still makes."""
        pod = self._object(uid)
        return pod is not None and not pod.finished and self._wants(pod)

    def report(self, pod: DesiredPod, status: PodStatus | None) -> None:
        """Have a status written, and told of. Of a pod that leaves, nothing is taken back."""
        found = self._object(pod.uid)
        if found is None or (status is None and found.leaving):
            self._writer.forget(pod.uid)
            return
        self._writer.report(found, status)
        self._events.report(found, status)

    def start(self, changed: Callable[[], None]) -> None:
        """Call `changed` from now on."""
        self._changed = changed

    def close(self) -> None:
        """Stop calling, and let go of every namespace."""
        self._changed = lambda: None
        self._table.close()

    def changed(self) -> None:
        """Hear from the parts, from any thread."""
        with contextlib.suppress(RuntimeError):  # a loop that has ended
            self._changed()

    # ---- for the plugin ------------------------------------------------------------------------

    def bring(self, pod: PodObject, sandbox: str, netns: int, addresses: tuple[str, ...]) -> str:
        """Take in a sandbox that is being made for a pod of the mesh; gives its namespace's path.

        The descriptor is taken over. pods() has it from now on, whatever the watch knows.
        """
        now = self._clock()
        self._early[pod.uid] = _Early(pod, now + CATCH_UP)
        return self._table.add(pod.uid, sandbox, netns, addresses, now).path

    def drop(self, sandbox: str) -> None:
        """Let a sandbox go that is being removed."""
        for known in self._table:
            if known.sandbox == sandbox:
                self._early.pop(known.uid, None)
        self._table.drop(sandbox, self._clock())

    # ---- inside --------------------------------------------------------------------------------

    def _objects(self, now: float) -> dict[str, PodObject]:
        objects = {pod.uid: pod for pod in self._cache.pods()}
        for uid, early in list(self._early.items()):
            early.shown = early.shown or uid in objects
            if now >= early.until or (early.shown and uid not in objects):
                del self._early[uid]
            else:
                objects.setdefault(uid, early.pod)
        return objects

    def _object(self, uid: str) -> PodObject | None:
        early = self._early.get(uid)
        return self._cache.pod(uid) or (early.pod if early and not early.shown else None)

    def _wants(self, pod: PodObject) -> bool:
        if pod.uid in self._early and not pod.finished:
            return True  # asked of the API server itself, when the plugin brought it
        return pod.wants(self._cache.namespace(pod.namespace))

    def _desired(self, pod: PodObject, known: Known | None, wants: bool) -> DesiredPod | None:
        problem = "" if known else self._problems.get(pod.uid, "")
        if known is None and not (problem and wants):
            return None
        return DesiredPod(
            uid=pod.uid,
            namespace=pod.namespace,
            name=pod.name,
            service_account=pod.service_account,
            addresses=(known.addresses if known else ()) or pod.addresses,
            netns=known.path if known else "",
            cgroup="",
            probe_ports=pod.probe_ports,
            wants=wants,
            marked=pod.marked,
            problem=problem,
        )
