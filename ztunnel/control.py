"""The control process between its sources and its workers.

xDS updates, certificates and ZDS requests come in; each local pod becomes served when its workload,
its policies and its certificate are all known, and its worker is told of every later change. A
worker that was started again is told everything again. Nothing here reads a socket: the shells
call in, and messages go out through the pool.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any, Final, Protocol

from mesh.ca.held import Held
from mesh.ca.store import CertStore
from mesh.model.convert import ADDRESS_TYPE
from mesh.wire import zds
from mesh.xds.delta import Update
from ztunnel import ipc
from ztunnel.pods import LocalPod, close_fds, from_add
from ztunnel.route import Router
from ztunnel.state import Effects, State
from ztunnel.telemetry import Telemetry

log = logging.getLogger(__name__)

ADD_DEADLINE: Final = 4.5  # seconds; the agent gives up after zds.ACK_DEADLINE


class Pool(Protocol):
    """What is needed of the workers."""

    def __len__(self) -> int: ...

    def shard(self, uid: str) -> int:
        """Give the worker that serves a pod."""

    def alive(self) -> list[int]:
        """Give the workers that run."""

    def send(self, index: int, message: object, fds: Iterable[int] = ()) -> None:
        """Send to one."""

    def broadcast(self, message: object) -> None:
        """Send to all."""


class Demand(Protocol):
    """On-demand xDS; absent in wildcard mode."""

    def need(self, name: str) -> asyncio.Future[None]:
        """Ask for a resource; the future is done when the control plane has answered."""

    def settled(self, names: set[str]) -> None:
        """These names were answered or have come."""


class Control:
    """See the module's text. `wake` is called when a certificate is needed."""

    def __init__(self, trust_domain: str, network: str, certs: CertStore) -> None:
        self.state = State()
        self.router = Router(self.state, network)
        self.certs = certs
        self.pods: dict[str, LocalPod] = {}
        self.synced = False  # workloads and policies have come once
        self.trust_domain = trust_domain
        self.network = network
        self.telemetry: Telemetry | None = None
        self.demand: Demand | None = None
        self.started = 0  # pods, ever
        self.stopped = 0
        self.restarts = 0  # of workers
        self._pool: Pool | None = None
        self._certs_at: dict[int, set[str]] = {}

    def attach(self, pool: Pool, telemetry: Telemetry) -> None:
        """Say where messages go."""
        self._pool, self.telemetry = pool, telemetry

    @property
    def pool(self) -> Pool:
        """The workers."""
        assert self._pool is not None
        return self._pool

    # ---- ZDS ---------------------------------------------------------------------------------

    async def add(self, add: zds.Add, fds: list[int], wake: Any) -> str:
        """Serve a pod; returns "" when it is or will be served, else why not. Takes the fds."""
        old = self.pods.pop(add.uid, None)
        pod = from_add(add, fds, self.trust_domain)
        if old is not None:  # said again, by a restarted agent or with other listeners
            pod.at_worker = old.at_worker
            if old.service_account == pod.service_account:
                pod.workload = old.workload
            if old.identity != pod.identity:
                self.certs.release(old.identity, old.uid)
            old.close()
        self.pods[pod.uid] = pod
        if self.telemetry:
            self.telemetry.tcp.pod_back(pod.uid)
        self._find_workload(pod)
        self.certs.acquire(pod.identity, pod.uid, time.time())
        wake()
        pod.waiter = asyncio.get_running_loop().create_future()
        self._advance(pod)
        try:
            async with asyncio.timeout(ADD_DEADLINE):
                await pod.waiter
        except TimeoutError:
            error = self._missing(pod)
        except asyncio.CancelledError:
            if self.pods.get(pod.uid) is pod:
                raise
            return "it was replaced or removed meanwhile"
        else:
            return ""
        if self.pods.get(pod.uid) is pod:
            self.remove(pod.uid)
        return error

    def remove(self, uid: str) -> bool:
        """Stop serving a pod; False when it was not known."""
        pod = self.pods.pop(uid, None)
        if pod is None:
            return False
        if pod.at_worker:
            self.stopped += 1
            self.pool.send(self.pool.shard(uid), ipc.PodDel(uid))
            log.info("pod %s/%s is no longer served", pod.namespace, pod.name)
        self.certs.release(pod.identity, uid)
        index = self.pool.shard(uid)
        if not any(
            p.identity == pod.identity and self.pool.shard(p.uid) == index
            for p in self.pods.values()
        ):
            self._certs_at.get(index, set()).discard(pod.identity)  # the worker drops it too
        pod.close()
        if self.telemetry:
            self.telemetry.tcp.pod_gone(uid, time.monotonic())
        return True

    def _missing(self, pod: LocalPod) -> str:
        """Name what kept a pod from being served."""
        who = f"pod {pod.namespace}/{pod.name}"
        if not self.synced:
            return f"{who}: the control plane has not answered yet (XDS_ADDRESS, /config_dump)"
        identity = self.certs.identities.get(pod.identity)
        reason = identity.error if identity and identity.error else "the CA has not answered yet"
        why = f"no certificate for {pod.identity}: {reason}"
        if pod.workload is None:
            why = (
                f"with service account {pod.service_account}: the control plane has not sent it"
                f" as a workload, and {why}"
            )
        return f"{who}: {why}"

    # ---- pods --------------------------------------------------------------------------------

    def _find_workload(self, pod: LocalPod) -> bool:
        """Look a pod up; True when something about it changed."""
        found = self.state.workload_named(pod.namespace, pod.name, pod.service_account)
        if found is None or found == pod.workload:
            return False
        before, pod.workload = pod.identity, found
        if before != pod.identity and self.pods.get(pod.uid) is pod:
            self.certs.release(before, pod.uid)
            self.certs.acquire(pod.identity, pod.uid, time.time())
        return True

    def _advance(self, pod: LocalPod) -> None:
        """Start serving a pod if everything it needs is there.

        A pod that is about to start has no address yet, and so is no workload to the control plane
        before its first process runs. It is promised: its listeners are here, and connections wait
        in them until the workload comes, with its policies.
        """
        if pod.serving or not self.synced:
            return
        identity = self.certs.identities.get(pod.identity)
        if identity is None or identity.state(time.time()) != "Available":
            return
        if pod.workload is not None:
            self.started += not pod.at_worker
            pod.serving = pod.at_worker = True
            self._tell(pod)
            log.info("pod %s/%s is served as %s", pod.namespace, pod.name, pod.identity)
        if pod.waiter is not None and not pod.waiter.done():
            pod.waiter.set_result(None)

    def _tell(self, pod: LocalPod) -> None:
        """Send a pod to its worker: certificate, listeners, policies."""
        assert pod.workload is not None
        index = self.pool.shard(pod.uid)
        identity = self.certs.identities.get(pod.identity)
        sent = self._certs_at.setdefault(index, set())
        if identity and identity.held and pod.identity not in sent:
            self.pool.send(index, identity.held.certificate)
            sent.add(pod.identity)
        pod.policies = self._policies_of(pod)
        self.pool.send(index, pod.message(pod.policies), pod.fds)

    def _policies_of(self, pod: LocalPod) -> tuple[Any, ...]:
        listed = pod.workload.authorization_policies if pod.workload else ()
        return self.state.policies_of(pod.namespace, listed)

    def _refresh_policies(self, pod: LocalPod) -> None:
        policies = self._policies_of(pod)
        if pod.serving and policies != pod.policies:
            pod.policies = policies
            self.pool.send(self.pool.shard(pod.uid), ipc.Policies(pod.uid, policies))

    # ---- xDS ---------------------------------------------------------------------------------

    def update(self, update: Update, synced: bool) -> None:
        """Apply what the control plane said."""
        effects = Effects()
        if update.type_url == ADDRESS_TYPE:
            for name, resource in update.changed:
                self.state.set_address(name, resource, effects)
            for name in update.removed:
                self.state.remove_address(name, effects)
        else:
            for _, policy in update.changed:
                self.state.set_policy(policy, effects)
            for name in update.removed:
                self.state.remove_policy(name, effects)
        self.synced = self.synced or synced
        self._follow(effects)
        if self.demand is not None:
            self.demand.settled(effects.touched | update.answered)

    def _follow(self, effects: Effects) -> None:
        """Bring pods and workers up to date with a change."""
        for pod in list(self.pods.values()):
            changed = bool(effects.workloads) and self._find_workload(pod)
            if not pod.serving:
                self._advance(pod)
            elif changed:
                self._tell(pod)
            elif self._concerned(pod, effects):
                self._refresh_policies(pod)
        if self.router.uses.stale(effects):
            self.router.uses.clear()
            self.pool.broadcast(ipc.Forget())

    def _concerned(self, pod: LocalPod, effects: Effects) -> bool:
        if not effects.policies:
            return False
        if effects.everywhere or pod.namespace in effects.namespaces:
            return True
        listed = pod.workload.authorization_policies if pod.workload else ()
        return not effects.policies.isdisjoint(listed)

    def service_of(self, uid: str, port: int) -> ipc.ServiceRef | None:
        """Name the service that a local pod's port belongs to."""
        pod = self.pods.get(uid)
        if pod is None or pod.workload is None:
            return None
        service = self.state.service_behind(pod.workload, port)
        return (
            ipc.ServiceRef(service.name, service.namespace, service.hostname) if service else None
        )

    # ---- certificates ------------------------------------------------------------------------

    def certificate(self, held: Held) -> None:
        """Pass a new certificate on to the workers whose pods have that identity."""
        name = held.certificate.identity
        users = [p for p in self.pods.values() if p.identity == name]
        serving = {self.pool.shard(p.uid) for p in users if p.serving}
        for index, sent in self._certs_at.items():
            if index not in serving:
                sent.discard(name)  # what it has is old
        for index in serving:
            self._certs_at.setdefault(index, set()).add(name)
            self.pool.send(index, held.certificate)
        for pod in users:
            self._advance(pod)

    # ---- workers -----------------------------------------------------------------------------

    def worker_started(self, index: int) -> None:
        """Tell a fresh worker of all its pods."""
        self._certs_at.pop(index, None)
        for pod in self.pods.values():
            if pod.serving and self.pool.shard(pod.uid) == index:
                self._tell(pod)

    def worker_lost(self, index: int) -> None:
        """Count what went with a worker."""
        self.restarts += 1
        self._certs_at.pop(index, None)
        lost = self.telemetry.worker_lost(index, time.monotonic()) if self.telemetry else 0
        log.error("%d connections were lost with worker %d; it is started again", lost, index)

    def close(self) -> None:
        """Give all descriptors back."""
        for pod in self.pods.values():
            close_fds(pod.fds)
            pod.fds = []
