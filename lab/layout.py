"""Where everything of a lab is: names, folders, addresses. Pure.

Every lab may use the same addresses; they are separate worlds.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.errors import LabError

LABS: Final = Path("/run/ambit/lab")
NETNS: Final = Path("/run/netns")
BPFFS: Final = Path("/sys/fs/bpf")

CP_V4: Final = "10.99.0.2"
CP_V6: Final = "fd00:10:99::2"
SERVICES_V4: Final = "10.96.0.0/16"
SERVICES_V6: Final = "fd00:10:96::/112"
DNS_VIP: Final = "10.96.0.10"
DNS_NAMESPACE: Final = "kube-system"
MAX_NODES: Final = 99
MAX_PODS: Final = 250  # on a node: its /24, less network, gateway and broadcast

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_MAX_NETNS: Final = 200  # a file name has 255 bytes


def check_name(name: str) -> str:
    """Return a lab's name; raises LabError where it could not be told from another's parts."""
    # ambit-<lab>-p-... would be ambiguous between the labs "a" and "a-p-x".
    if not _NAME.fullmatch(name) or {"cp", "n", "p"} & set(name.split("-")[1:]):
        raise LabError(
            f"lab name {name!r}: use up to 32 lower-case letters, digits and '-', "
            "and no '-cp', '-n' or '-p' in it"
        )
    return name


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """Addresses of node number `index` (from 1) and of its pods."""

    index: int

    @property
    def v4(self) -> str:
        """The node's own address on the fabric."""
        return f"10.99.1.{self.index}"

    @property
    def v6(self) -> str:
        """The node's own IPv6 address on the fabric."""
        return f"fd00:10:99::1:{self.index:x}"

    @property
    def pods_v4(self) -> str:
        """The range of its pods."""
        return f"10.244.{self.index}.0/24"

    @property
    def pods_v6(self) -> str:
        """The IPv6 range of its pods."""
        return f"fd00:10:244:{self.index:x}::/64"

    @property
    def gateway(self) -> str:
        """Its pods' next hop, an address of the node on every pod's link."""
        return f"10.244.{self.index}.1"

    def pod_v4(self, number: int) -> str:
        """Address of the pod with this number (2 and up)."""
        return f"10.244.{self.index}.{number}"

    def pod_v6(self, number: int) -> str:
        """IPv6 address of the pod with this number."""
        return f"fd00:10:244:{self.index:x}::{number:x}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and folders of the lab `name`."""

    name: str

    @property
    def prefix(self) -> str:
        """First part of all its network namespaces' names; the fabric's is this alone."""
        return f"ambit-{self.name}"

    @property
    def control_plane_netns(self) -> str:
        """Control plane and cluster DNS."""
        return f"{self.prefix}-cp"

    def node_netns(self, node: str) -> str:
        """A node's namespace."""
        return f"{self.prefix}-n-{node}"

    def pod_netns(self, namespace: str, pod: str) -> str:
        """A pod's namespace; shortened by a hash where a file name could not hold it."""
        full = f"{self.prefix}-p-{namespace}-{pod}"
        if len(full) <= _MAX_NETNS:
            return full
        digest = hashlib.sha256(full.encode()).hexdigest()[:16]
        return f"{full[: _MAX_NETNS - 17]}-{digest}"

    def owns_netns(self, netns: str) -> bool:
        """Say whether a network namespace of the machine is this lab's."""
        parts = tuple(f"{self.prefix}-{part}-" for part in ("n", "p"))
        return netns in (self.prefix, self.control_plane_netns) or netns.startswith(parts)

    @property
    def state(self) -> Path:
        """Everything the lab keeps."""
        return LABS / self.name

    @property
    def objects(self) -> Path:
        """Root of its FolderStore."""
        return self.state / "objects"

    @property
    def control_plane(self) -> Path:
        """The control plane's data."""
        return self.state / "cp"

    @property
    def root_cert(self) -> Path:
        """The mesh's root certificate, written by the control plane."""
        return self.control_plane / "root-cert.pem"

    @property
    def token_key(self) -> Path:
        """Public half of the key that signs service account tokens."""
        return self.control_plane / "token-key.pem"

    @property
    def token_signing_key(self) -> Path:
        """Private half; tests may sign with it, too."""
        return self.state / "token-signing-key.pem"

    @property
    def logs(self) -> Path:
        """Log files of components and pods."""
        return self.state / "logs"

    @property
    def lock(self) -> Path:
        """Held by the manager as long as it lives."""
        return self.state / "manager.lock"

    @property
    def socket(self) -> Path:
        """Where the manager takes requests."""
        return self.state / "manager.sock"

    @property
    def etc(self) -> Path:
        """Files that stand in for those of /etc in pods and nodes."""
        return self.state / "etc"

    @property
    def pins(self) -> Path:
        """BPF objects pinned for this lab."""
        return BPFFS / "ambit" / self.name

    def pod_files(self, uid: str) -> Path:
        """What a pod's volumes hold."""
        return self.state / "pods" / uid

    def node(self, node: str) -> Path:
        """A node's folder."""
        return self.state / "nodes" / node

    def runtime(self, node: str) -> Path:
        """What the container runtime tells the agent: one JSON file for each sandbox."""
        return self.node(node) / "pods"

    def zds(self, node: str) -> Path:
        """The socket between agent and proxy."""
        return self.node(node) / "zds.sock"

    def token(self, node: str) -> Path:
        """The proxy's projected service account token."""
        return self.node(node) / "ztunnel-token"

    def log(self, what: str) -> Path:
        """Log of a component (control-plane, agent/NODE) or of a pod (NS/POD)."""
        first, slash, rest = what.partition("/")
        if not slash:
            return self.logs / f"{first}.log"
        separator = "-" if first in ("agent", "ztunnel") else "_"
        return self.logs / f"{first}{separator}{rest}.log"
