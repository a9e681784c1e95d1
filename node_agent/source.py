"""What the agent knows of pods and what it says about them; where from is someone else's file.

The lab's implementation is node_agent/folder_source.py; a cluster's lists and watches the API
server and asks the container runtime (node_agent/kubernetes_source.py). The agent sees no
difference.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

ENABLED: Final = "enabled"
PENDING: Final = "pending"
CONDITION: Final = "ambit.io/Captured"


@dataclass(frozen=True, slots=True)
class DesiredPod:
    """A pod of this node that has a sandbox, and what is wanted of it.

    addresses: canonical text, every family; netns and cgroup: paths on this machine. cgroup "":
    where its processes are does not matter, as the hooks are at the root of all cgroups.
    wants: capture it (None: nobody says, leave it as it is). marked: what its redirection
    annotation says now ("" none), as left by this or an earlier agent. problem: why its namespace
    cannot be found, where it should be known.
    """

    uid: str
    namespace: str
    name: str
    service_account: str
    addresses: tuple[str, ...]
    netns: str
    cgroup: str
    probe_ports: tuple[int, ...]
    wants: bool | None
    marked: str = ""
    problem: str = ""

    @property
    def title(self) -> str:
        """How logs and messages call it."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class PodStatus:
    """What is written back: the redirection annotation and the condition ambit.io/Captured.

    reason is one CamelCase word for programs, message a sentence for people.
    """

    redirection: str  # ENABLED | PENDING
    reason: str
    message: str


class PodSource(Protocol):
    """Where pods come from and statuses go to."""

    def pods(self) -> dict[str, DesiredPod]:
        """Give every pod of this node that has a sandbox, by uid."""

    def expects(self, uid: str) -> bool:
        """Say whether a pod that pods() does not have is to be captured once it has a sandbox."""

    def report(self, pod: DesiredPod, status: PodStatus | None) -> None:
        """Write a pod's status, None removes it; a pod object that is gone is no error."""

    def start(self, changed: Callable[[], None]) -> None:
        """Call `changed`, from any thread, whenever pods() may have a new answer."""

    def close(self) -> None:
        """Stop calling."""


def condition(status: PodStatus, was: str, since: str) -> dict[str, str]:
    """Give the condition of a Pod's status. `was`: its value now, "" none; `since`: since when."""
    value = "True" if status.redirection == ENABLED else "False"
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": CONDITION,
        "status": value,
        "reason": status.reason,
        "message": status.message,
        "lastTransitionTime": since if since and was == value else now,
    }
