"""All sandboxes the agent has open, and their copies in the descriptor holder."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mesh.errors import MeshError
from node_agent.keeper import HolderLost, Keeper, Kept
from node_agent.reclaim import Reclaimer
from node_agent.sandbox import (
    PORT_TAKEN,
    Sandbox,
    StepError,
    listen,
    open_netns,
    same_netns,
)
from node_agent.source import DesiredPod

log = logging.getLogger(__name__)


class Sandboxes:
    """uid to Sandbox. What is here is also in the holder, unless the holder was just lost."""

    def __init__(self, keeper: Keeper, cgroup: Path, reclaimer: Reclaimer | None = None) -> None:
        """`cgroup`: the node's; a pod outside of it would not meet the hooks."""
        self.reclaimer = reclaimer or Reclaimer()
        self._keeper = keeper
        self._cgroup = cgroup.resolve()
        self._open: dict[str, Sandbox] = {}

    def get(self, uid: str) -> Sandbox | None:
        """Give a pod's sandbox, if it is open."""
        return self._open.get(uid)

    def __iter__(self) -> Iterator[Sandbox]:
        return iter(list(self._open.values()))

    def __contains__(self, uid: str) -> bool:
        return uid in self._open

    def adopt(self, pods: Mapping[str, DesiredPod], expected: Callable[[str], bool]) -> None:
        """Take over what an earlier agent left in the holder; what no pod owns is dropped.

        expected: says of a uid that is not in `pods` whether it may come to be.
        """
        try:
            entries = self._keeper.take()
        except HolderLost as error:
            log.warning("%s; what it held is lost, pods are enrolled anew", error)
            with contextlib.suppress(HolderLost):
                self._keeper.replace()
            return
        for uid, kept in entries.items():
            sandbox = _unpack(uid, kept)
            pod = pods.get(uid)
            right = same_netns(pod, sandbox.netns) if pod and sandbox else expected(uid)
            if sandbox is not None and right:
                self._open[uid] = sandbox
                continue
            if sandbox is not None:
                sandbox.close()
            self._keeper.drop(uid)

    def open(self, pod: DesiredPod, held_listeners: bool) -> Sandbox:
        """Open a pod's namespace, checked, and its listeners if they are ours to hold.

        What is open already and still right is kept. StepError says what is wrong.
        """
        self._check_cgroup(pod)
        sandbox = self._open.get(pod.uid)
        if sandbox is not None and not same_netns(pod, sandbox.netns):
            self.close(pod.uid)
            sandbox = None
        if sandbox is None:
            sandbox = Sandbox(pod.uid, open_netns(pod))
            try:
                self._check_owner(pod, sandbox)
            except StepError:
                sandbox.close()
                raise
            self._open[pod.uid] = sandbox
        if not held_listeners:
            sandbox.close_listeners()
        elif not sandbox.listeners:
            try:
                sandbox.listeners = self._listeners(pod, sandbox)
            except (MeshError, OSError):
                self.close(pod.uid)
                raise
        self.put(sandbox)
        return sandbox

    def put(self, sandbox: Sandbox) -> None:
        """Have the holder keep copies, and know how the pod is captured."""
        with contextlib.suppress(HolderLost):  # mend() follows within a second
            self._put(sandbox)

    def close(self, uid: str) -> None:
        """Close a pod's descriptors, here and in the holder."""
        sandbox = self._open.pop(uid, None)
        if sandbox is not None:
            sandbox.close()
        with contextlib.suppress(HolderLost):
            self._keeper.drop(uid)

    def mend(self) -> None:
        """If the holder is lost, give everything to another; HolderLost if there is none."""
        if self._keeper.alive():
            return
        self._keeper.replace()
        for sandbox in self:
            self._put(sandbox)
        log.warning("the descriptor holder was lost; another keeps everything now")

    def moved(self, pods: Mapping[str, DesiredPod]) -> list[str]:
        """Name the pods whose path means another namespace now: the runtime made a new sandbox."""
        return [
            sandbox.uid
            for sandbox in self
            if sandbox.uid in pods and not same_netns(pods[sandbox.uid], sandbox.netns)
        ]

    def detach(self) -> None:
        """Close our copies only: the holder goes on holding."""
        for sandbox in self:
            sandbox.close()
        self._open.clear()

    def _listeners(self, pod: DesiredPod, sandbox: Sandbox) -> dict[int, int]:
        try:
            return listen(sandbox.netns)
        except StepError as error:
            found = self.reclaimer.reclaim(sandbox.netns) if error.reason == PORT_TAKEN else {}
            if not found:
                raise
        log.info("pod %s: its listeners are taken back from the proxy", pod.title)
        return found

    def _put(self, sandbox: Sandbox) -> None:
        roles = ",".join(str(role) for role in sandbox.listeners)
        self._keeper.put(sandbox.uid, f"{sandbox.mode} {roles}", sandbox.fds)

    def _check_cgroup(self, pod: DesiredPod) -> None:
        if not pod.cgroup:
            return
        path = Path(pod.cgroup)
        if not path.is_dir():
            raise StepError("CgroupGone", f"cgroup {pod.cgroup} does not exist")
        if not path.resolve().is_relative_to(self._cgroup):
            raise StepError(
                "WrongCgroup",
                f"cgroup {pod.cgroup} is not below the node's {self._cgroup}: its processes would "
                "not meet the hooks",
            )

    def _check_owner(self, pod: DesiredPod, sandbox: Sandbox) -> None:
        inode = sandbox.inode
        for other in self:
            if other.uid != pod.uid and other.inode == inode:
                raise StepError(
                    "WrongNetns", f"netns {pod.netns} is already that of pod {other.uid}"
                )


def _unpack(uid: str, kept: Kept) -> Sandbox | None:
    """Read what `put` wrote; None (all closed) when it does not fit together."""
    mode, _, text = kept.label.partition(" ")
    roles = [int(role) for role in text.split(",") if role.isdigit()]
    if len(kept.fds) != len(roles) + 1:
        for fd in kept.fds:
            os.close(fd)
        return None
    return Sandbox(uid, kept.fds[0], dict(zip(roles, kept.fds[1:], strict=True)), mode)
