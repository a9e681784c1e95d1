"""The steps of enrolment, carried out on the machine: what enrol.py names, done."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mesh.wire import zds
from node_agent import hub as h
from node_agent.enrol import Goal, PodMachine, Step
from node_agent.pods import Sandboxes
from node_agent.proof import prove
from node_agent.redirect import EBPF, NFTABLES, UNKNOWN, EbpfRedirect, NftRedirect, Redirect
from node_agent.sandbox import PORT_TAKEN, Sandbox, StepError, open_netns
from node_agent.source import DesiredPod

_PROOFS_AT_ONCE: Final = 4

Proved = Callable[[PodMachine, Exception | None], None]


@dataclass(frozen=True, slots=True)
class Ways:
    """How pods can be captured here.

    ebpf None: not at all that way, `cause` says why. hooks: kernel hook to why it does not load,
    "" when it does.
    """

    ebpf: EbpfRedirect | None
    nft: NftRedirect
    cause: str = ""
    hooks: Mapping[str, str] = field(default_factory=dict)

    @property
    def preferred(self) -> str:
        """How pods are captured when the proxy leaves us the choice."""
        return EBPF if self.ebpf else NFTABLES

    def way(self, sandbox: Sandbox) -> Redirect:
        """Choose for one pod: sockets can only be steered to a listener that we hold."""
        return self.ebpf if self.ebpf and sandbox.listeners else self.nft

    def others(self, chosen: Redirect) -> Sequence[Redirect]:
        """Give the way that was not chosen."""
        both: list[Redirect] = [self.nft]
        if self.ebpf:
            both.append(self.ebpf)
        return [way for way in both if way is not chosen]

    def release_unknown(self, uid: str) -> None:
        """Take out the hooks' entries of a pod that is no more."""
        if self.ebpf:
            self.ebpf.release(uid, None)


class Steps:
    """Performs one step at a time; proofs run beside."""

    def __init__(
        self,
        sandboxes: Sandboxes,
        ways: Ways,
        hub: h.Hub,
        outputs: deque[h.Output],
        proved: Proved,
    ) -> None:
        """`outputs`: where the hub's outputs go. `proved` is called when a proof has ended."""
        self._sandboxes = sandboxes
        self._ways = ways
        self._hub = hub
        self._outputs = outputs
        self._proved = proved
        self._proofs: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_PROOFS_AT_ONCE)

    def perform(self, machine: PodMachine, step: Step) -> bool:
        """Do a step: True when it is done, False when its end will be told later."""
        pod = machine.pod
        match step:
            case Step.LISTEN:
                self._listen(machine)
            case Step.ANNOUNCE:
                self._announce(pod)
                return False
            case Step.CAPTURE:
                self._capture(pod)
            case Step.PROVE:
                self._prove(machine)
                return False
            case Step.RELEASE:
                self._release(machine)
            case Step.WITHDRAW:
                self._outputs.extend(self._hub.unwant(pod.uid, time.monotonic()))
                return machine.goal is Goal.GONE
            case Step.CLOSE:
                self._close(machine)
        return True

    def descriptors(self, request: zds.Request) -> Sequence[int]:
        """Give what travels beside a request."""
        if not isinstance(request, zds.Add):
            return ()
        sandbox = self._sandbox(request.uid)
        return (sandbox.netns, *(sandbox.listeners[role] for role in request.listeners))

    async def stop(self) -> None:
        """End the proofs that run."""
        tasks = list(self._proofs.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- up -----------------------------------------------------------------------------------

    def _listen(self, machine: PodMachine) -> None:
        pod = machine.pod
        self._cancel_proof(pod.uid)
        known = pod.uid in self._sandboxes
        newest = self._hub.newest()
        held = newest is None or bool(newest.held_listeners)
        try:
            sandbox = self._sandboxes.open(pod, held)
            if not known and machine.may_be_captured:
                sandbox.mode = UNKNOWN
        except StepError as error:
            if error.reason == "NetnsGone":
                # A proxy that serves it already may go on until the runtime says it is gone.
                self._hub.keep(pod.uid)
            elif error.reason == PORT_TAKEN:
                # Both an agent and its holder died, and the listeners could not be taken back from
                # a proxy. It can close them.
                now = time.monotonic()
                self._outputs.extend(self._hub.unwant(pod.uid, now, everyone=True))
            raise

    def _announce(self, pod: DesiredPod) -> None:
        sandbox = self._sandbox(pod.uid)
        workload = h.Workload(
            pod.uid,
            pod.namespace,
            pod.name,
            pod.service_account,
            tuple(sandbox.listeners),
            self._ways.way(sandbox).number,
        )
        self._outputs.extend(self._hub.want(workload, time.monotonic()))

    def _capture(self, pod: DesiredPod) -> None:
        sandbox = self._sandbox(pod.uid)
        way = self._ways.way(sandbox)
        before, sandbox.mode = sandbox.mode, way.mode
        # Written down first: an agent that dies in between must find what to take out.
        self._sandboxes.put(sandbox)
        way.capture(pod, sandbox)
        if before not in ("", way.mode):
            for other in self._ways.others(way):
                other.release(pod.uid, sandbox)
                other.clear(pod.uid, sandbox)

    def _prove(self, machine: PodMachine) -> None:
        uid = machine.pod.uid
        self._cancel_proof(uid)
        self._proofs[uid] = asyncio.get_running_loop().create_task(self._run_proof(machine))

    async def _run_proof(self, machine: PodMachine) -> None:
        error: Exception | None = None
        async with self._slots:
            try:
                sandbox = self._sandbox(machine.pod.uid)
                await prove(machine.pod, sandbox, self._ways.way(sandbox))
            except Exception as caught:  # told to _proved: a pod must never wait for a dead task
                error = caught
        self._proofs.pop(machine.pod.uid, None)
        self._proved(machine, error)

    def _cancel_proof(self, uid: str) -> None:
        task = self._proofs.pop(uid, None)
        if task is not None:
            task.cancel()

    # ---- down ---------------------------------------------------------------------------------

    def _release(self, machine: PodMachine) -> None:
        uid = machine.pod.uid
        self._cancel_proof(uid)
        if self._ways.ebpf:
            self._ways.ebpf.release(uid, None)
        if machine.goal is Goal.GONE:
            return  # rules in its namespace die with it
        sandbox = self._sandboxes.get(uid)
        if sandbox is None:
            # Only its mark is left of it: an earlier agent may have left rules too.
            try:
                found = Sandbox(uid, open_netns(machine.pod))
            except StepError:
                return  # no such namespace, no rules in it
            try:
                self._ways.nft.clear(uid, found)
            finally:
                found.close()
        elif sandbox.mode in (NFTABLES, UNKNOWN):
            self._ways.nft.release(uid, sandbox)

    def _close(self, machine: PodMachine) -> None:
        sandbox = self._sandboxes.get(machine.pod.uid)
        if sandbox and sandbox.mode in (NFTABLES, UNKNOWN) and machine.goal is not Goal.GONE:
            self._ways.nft.clear(machine.pod.uid, sandbox)
        self._sandboxes.close(machine.pod.uid)
        # One that was only kept (see _listen) was never withdrawn.
        self._outputs.extend(self._hub.unwant(machine.pod.uid, time.monotonic()))

    def _sandbox(self, uid: str) -> Sandbox:
        sandbox = self._sandboxes.get(uid)
        if sandbox is None:
            raise StepError("NetnsGone", "its sandbox was closed meanwhile")
        return sandbox
