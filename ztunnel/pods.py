"""A pod of this node as the control process keeps it: what was said of it, and its descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh.model import Authorization, SpiffeId, Workload
from mesh.wire import zds
from ztunnel.ipc import Peer, PodAdd
from ztunnel.route import peer_of


@dataclass(slots=True)
class LocalPod:
    """One pod. fds: its network namespace, then a listener for each of `roles`; owned."""

    uid: str
    name: str
    namespace: str
    service_account: str
    trust_domain: str
    fds: list[int]
    roles: tuple[int, ...]
    redirect: int
    workload: Workload | None = None  # the last known; kept when the control plane forgets it
    policies: tuple[Authorization, ...] | None = None  # as last sent; None: not started
    serving: bool = False  # a worker has it as it is here
    at_worker: bool = False  # a worker has it, maybe as it was before it was added again
    waiter: asyncio.Future[None] | None = field(default=None, repr=False)

    @property
    def identity(self) -> str:
        """Its SPIFFE ID: from the control plane, else from what the node agent said."""
        if self.workload is not None:
            return str(self.workload.identity)
        return str(SpiffeId(self.trust_domain, self.namespace, self.service_account))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its addresses, as far as known."""
        return self.workload.addresses if self.workload else ()

    def message(self, policies: tuple[Authorization, ...]) -> PodAdd:
        """Word it for a worker; sent with `fds`."""
        peer = peer_of(self.workload) if self.workload else Peer(pod=self.name)
        return PodAdd(self.uid, peer, self.addresses, self.roles, self.redirect, policies=policies)

    def close(self) -> None:
        """Give the descriptors back."""
        close_fds(self.fds)
        self.fds = []
        if self.waiter is not None and not self.waiter.done():
            self.waiter.cancel()


def close_fds(fds: Iterable[int]) -> None:
    """Close descriptors; one that is closed already is fine."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def from_add(add: zds.Add, fds: list[int], trust_domain: str) -> LocalPod:
    """Make the pod of a ZDS add; the descriptors become its own."""
    return LocalPod(
        add.uid,
        add.name,
        add.namespace,
        add.service_account,
        trust_domain,
        fds,
        add.listeners,
        add.redirect or zds.REDIRECT_NFTABLES,
    )
