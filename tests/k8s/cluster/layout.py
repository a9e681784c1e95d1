"""Names, addresses and folders of a cluster. Pure.

Every cluster has its own namespaces, so all have the same addresses:

    <name>-cp    10.88.0.1    fd00:10:88::1     etcd, API server, controllers, CoreDNS; the bridge
    <name>-n1    10.88.0.11   fd00:10:88::11    pods 10.89.1.0/24, fd00:10:89:1::/64
    <name>-n2    10.88.0.12   fd00:10:88::12    pods 10.89.2.0/24, fd00:10:89:2::/64

A cluster of one family alone has those of that family.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.k8s.cluster.errors import ClusterError

NODES: Final = ("n1", "n2")
FAMILIES: Final = ("ipv4", "ipv6")  # the order of all that follow
CP: Final = ("10.88.0.1", "fd00:10:88::1")
NODE_PREFIXES: Final = ("10.88.0.0/24", "fd00:10:88::/64")
POD_CIDRS: Final = ("10.89.0.0/16", "fd00:10:89::/48")
SERVICE_CIDRS: Final = ("10.96.0.0/16", "fd00:10:96::/112")
KUBERNETES_VIPS: Final = ("10.96.0.1", "fd00:10:96::1")
DNS_VIPS: Final = ("10.96.0.10", "fd00:10:96::a")
DOMAIN: Final = "cluster.local"
API_PORT: Final = 6443
ETCD_PORT: Final = 2379
TRUST: Final = "/etc/kubernetes"
CGROUP: Final = Path("/sys/fs/cgroup")
_NODES_OWN: Final = ("/run", "/etc", "/opt", "/var/lib", "/var/log", "/proc", "/sys")


def cache() -> Path:
    """Where binaries and images are kept between runs."""
    folder = Path(os.environ.get("AMBIT_CACHE") or Path.home() / ".cache" / "ambit")
    return _seen_by_nodes(folder, "AMBIT_CACHE") / "k8s"


def clusters() -> Path:
    """The folder of all clusters."""
    folder = Path(os.environ.get("AMBIT_CLUSTERS") or "/var/tmp/ambit-k8s")
    return _seen_by_nodes(folder, "AMBIT_CLUSTERS")


def _seen_by_nodes(folder: Path, variable: str) -> Path:
    for own in _NODES_OWN:
        if folder.resolve().is_relative_to(own):
            raise ClusterError(
                f"{variable}: {folder} is below {own}, of which every node has its own and would "
                "not see it: choose another folder"
            )
    return folder.absolute()


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """One node."""

    cluster: str
    name: str
    number: int
    root: Path
    families: Sequence[str] = FAMILIES

    @property
    def netns(self) -> str:
        return f"{self.cluster}-{self.name}"

    @property
    def addresses(self) -> tuple[str, ...]:
        both = f"10.88.0.{10 + self.number}", f"fd00:10:88::{10 + self.number}"
        return chosen(self.families, both)

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        both = f"10.89.{self.number}.0/24", f"fd00:10:89:{self.number}::/64"
        return chosen(self.families, both)

    @property
    def disk(self) -> Path:
        """What a reboot keeps."""
        return self.root / "disk"

    @property
    def cgroups(self) -> tuple[Path, ...]:
        """Its control groups, one in every hierarchy, cgroup2 first: its processes are below."""
        return tuple(top / f"{self.cluster}-{self.name}" for top in hierarchies())

    @property
    def cgroup(self) -> Path:
        """Its cgroup2."""
        return self.cgroups[0]

    def service_cgroups(self, service: str) -> tuple[Path, ...]:
        """As the node sees them: where systemd would have a service, in cgroup2."""
        v2, *v1 = hierarchies()
        return v2 / "system.slice" / f"{service}.service", *v1


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole cluster."""

    name: str
    root: Path
    families: Sequence[str] = FAMILIES

    @classmethod
    def of(cls, name: str, families: Sequence[str] = FAMILIES) -> Layout:
        """The layout of a cluster; raises ClusterError for a name that cannot be one."""
        if not re.fullmatch(r"[a-z][a-z0-9]{0,7}", name):
            raise ClusterError(f"--name {name}: 1 to 8 lower-case letters and digits are needed")
        return cls(name, clusters() / name, families)

    @property
    def lock(self) -> Path:
        """Held while the cluster is started or removed."""
        return self.root.with_name(f".{self.name}.lock")

    @property
    def cp_netns(self) -> str:
        return f"{self.name}-cp"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def kubeconfig(self) -> Path:
        return self.pki / "admin.kubeconfig"

    @property
    def nodes(self) -> tuple[NodeLayout, ...]:
        return tuple(
            NodeLayout(self.name, n, i, self.root / n, self.families)
            for i, n in enumerate(NODES, start=1)
        )

    @property
    def cp_cgroup(self) -> Path:
        return hierarchies()[0] / f"{self.name}-cp"

    def of_families(self, both: tuple[str, str]) -> tuple[str, ...]:
        """Choose from a pair of an IPv4 and an IPv6 address or network."""
        return chosen(self.families, both)

    @property
    def cp(self) -> str:
        """Where the API server and cluster DNS are: in the first of the families."""
        return self.of_families(CP)[0]

    @property
    def dns_vip(self) -> str:
        return self.of_families(DNS_VIPS)[0]

    @property
    def server(self) -> str:
        return f"https://{f'[{self.cp}]' if ':' in self.cp else self.cp}:{API_PORT}"


def chosen(families: Sequence[str], both: tuple[str, str]) -> tuple[str, ...]:
    """Choose from a pair of an IPv4 and an IPv6 address or network."""
    return tuple(one for family, one in zip(FAMILIES, both, strict=True) if family in families)


def hierarchies(top: Path = CGROUP) -> tuple[Path, ...]:
    """Where control groups are mounted, cgroup2 first; on a pure cgroup2 machine that is all."""
    if (top / "cgroup.controllers").exists():
        return (top,)
    mounts = [p for p in sorted(top.iterdir()) if p.is_dir() and not p.is_symlink()]
    v1 = [p for p in mounts if (p / "tasks").exists()]
    v2 = [p for p in mounts if (p / "cgroup.procs").exists() and p not in v1]
    if not v2:
        raise ClusterError(f"no cgroup2 below {top}: mount -t cgroup2 none {top}/unified")
    return (v2[0], *v1)
