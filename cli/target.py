"""Where an operator's view gets its facts: the nodes of a mesh, their admin pages, its objects.

A lab's nodes are network namespaces of this machine; a page is fetched by a thread that enters
the node's namespace, because the admin port listens on the node's loopback only. A cluster's
(cli/cluster/target.py) are reached through its API server.
"""

from __future__ import annotations

import argparse
import http.client
import os
from pathlib import Path
from typing import Any, Final, Protocol

from lab import netns
from lab.layout import LABS, NETNS, Layout, check_name
from mesh.errors import ConfigError, MeshError, NotFound
from mesh.store import FolderStore

_MAX_PAGE: Final = 64 << 20  # a dump of 10,000 workloads is about 10 MiB


class Unreachable(MeshError):
    """A page could not be fetched; the message names the place, the port and the cause."""


class Target(Protocol):
    """A running mesh, wherever it runs."""

    def nodes(self) -> list[str]:
        """Names of the nodes, sorted."""
        ...

    def fetch(self, node: str, port: int, path: str, method: str = "GET") -> bytes:
        """Fetch a page from a node's loopback; raises Unreachable."""
        ...

    def fetch_control_plane(self, port: int, path: str) -> list[bytes]:
        """Fetch a page of every replica of the control plane; raises Unreachable."""
        ...

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """Kubernetes objects of a kind, with their status."""
        ...

    def log_command(self, component: str) -> str:
        """Say how to see the log of control-plane, agent/NODE or ztunnel/NODE."""
        ...


class LabTarget:
    """A lab on this machine; needs root, as the lab did."""

    def __init__(self, name: str = "default") -> None:
        """Find the lab; raises NotFound, LabError for a name that no lab can have."""
        self._layout = Layout(check_name(name))
        self._name = name
        if not self._layout.state.is_dir():
            others = sorted(p.name for p in LABS.iterdir()) if LABS.is_dir() else []
            there = f"there are: {', '.join(others)}" if others else "there is none"
            raise NotFound(f"no lab named {name!r} ({there}); start one with: ambit lab up FILE...")

    def nodes(self) -> list[str]:
        """Names of the nodes, sorted."""
        folder = self._layout.state / "nodes"
        return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []

    def fetch(self, node: str, port: int, path: str, method: str = "GET") -> bytes:
        """Fetch a page from a node's loopback; raises Unreachable."""
        return self._fetch(f"node {node}", self._layout.node_netns(node), port, path, method)

    def fetch_control_plane(self, port: int, path: str) -> list[bytes]:
        """Fetch a page of the control plane, of which a lab has one; raises Unreachable."""
        return [self._fetch("control plane", self._layout.control_plane_netns, port, path, "GET")]

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """Kubernetes objects of a kind, with their status."""
        return FolderStore(self._layout.objects).list(kind)

    def log_command(self, component: str) -> str:
        """Say how to see the log of control-plane, agent/NODE or ztunnel/NODE."""
        suffix = "" if self._name == "default" else f" --name {self._name}"
        return f"ambit lab logs {component}{suffix}"

    def _fetch(self, what: str, place: str, port: int, path: str, method: str) -> bytes:
        try:
            return netns.inside(NETNS / place, lambda: get_page(port, path, method))
        except PermissionError as e:
            raise Unreachable(f"{what}: {e.strerror}: run as root to look into a lab") from e
        except (OSError, http.client.HTTPException) as e:
            raise Unreachable(f"{what}, port {port}: {e}") from e


def add_target_options(parser: argparse.ArgumentParser, lab: str = "--name") -> None:
    """Add the options that say which mesh is meant. `lab`: the one that names a lab."""
    parser.add_argument(
        lab, metavar="NAME", help="a lab on this machine (default: default, if it is there)"
    )
    parser.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="a cluster; default without a lab: KUBECONFIG, ~/.kube/config, the pod's account",
    )
    parser.add_argument("--context", metavar="NAME", help="a context of that file")


def choose_target(options: argparse.Namespace) -> Target:
    """Find the mesh that is meant; raises MeshError where there is none."""
    if is_lab_meant(options.name, "--name", options.kubeconfig, options.context):
        return LabTarget(options.name or "default")
    # The API client takes half a second to import, which a lab need not wait for.
    from cli.cluster.target import KubeTarget

    return KubeTarget.connect(options.kubeconfig, options.context)


def is_lab_meant(lab: str | None, flag: str, kubeconfig: Path | None, context: str | None) -> bool:
    """Say whether a command is about a lab, not a cluster; raises ConfigError when about both.

    `flag`: the option that names the lab.
    """
    is_cluster_named = bool(kubeconfig or context)
    if lab and is_cluster_named:
        raise ConfigError(f"{flag} is a lab, --kubeconfig and --context are a cluster: give one")
    return bool(lab) or not (is_cluster_named or _is_cluster_meant())


def _is_cluster_meant() -> bool:
    """Whether a command that names nothing is about a cluster: there is one, and no lab."""
    if (LABS / "default").is_dir():
        return False
    in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ
    return in_cluster or "KUBECONFIG" in os.environ or (Path.home() / ".kube/config").is_file()


def get_page(port: int, path: str, method: str = "GET", timeout: float = 5.0) -> bytes:
    """Fetch a page from this namespace's loopback; raises OSError, HTTPException, Unreachable."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    return read_page(connection, path, method)


def read_page(connection: http.client.HTTPConnection, path: str, method: str) -> bytes:
    """Ask for a page and close; raises OSError, HTTPException, Unreachable."""
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read(_MAX_PAGE + 1)
    finally:
        connection.close()
    if answer.status not in (200, 202):
        text = body[:200].decode(errors="replace").strip()
        raise Unreachable(f"{path} answered {answer.status}: {text}")
    if len(body) > _MAX_PAGE:
        raise Unreachable(f"{path} is longer than {_MAX_PAGE >> 20} MiB")
    return body
