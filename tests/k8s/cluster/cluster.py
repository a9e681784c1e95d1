"""A whole cluster: up, down, and what tests do to it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.k8s.cluster import binaries, certs, images
from tests.k8s.cluster.control_plane import ControlPlane
from tests.k8s.cluster.errors import ClusterError
from tests.k8s.cluster.layout import Layout
from tests.k8s.cluster.node import Node
from tests.k8s.cluster.processes import Place, run

_ACCOUNT_WAIT = 20.0


class Cluster:
    """One cluster by name; several can stand side by side.

    The first node runs Debian's containerd 1.6, the second containerd 2.3.
    """

    def __init__(self, name: str = "k8s") -> None:
        self.layout = Layout.of(name)
        self.control_plane = ControlPlane(self.layout)
        self.nodes = {
            n.name: Node(self.layout, n, runtime_v2=n.number == 2) for n in self.layout.nodes
        }

    # ---- life --------------------------------------------------------------------------------

    def up(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Start from nothing; what an earlier one of this name left is removed first."""
        started = time.monotonic()

        def tell(what: str) -> None:
            say(f"{time.monotonic() - started:5.1f} s  {what}")

        binaries.build(binaries.CLUSTER, say)
        archive = images.box()
        self.down()
        self.layout.root.mkdir(parents=True)
        certs.make(self.layout)
        self.control_plane.start()
        tell("API server is ready")
        for node in self.nodes.values():
            node.start()
            tell(f"node {node.name}: containerd answers, kubelet started")
        for node in self.nodes.values():
            node.load_image(archive)
        self.wait_ready()
        tell("both nodes are Ready")

    def down(self) -> None:
        """Remove everything of this cluster, whatever state it is in."""
        for node in self.nodes.values():
            node.stop()
        self.control_plane.stop()
        shutil.rmtree(self.layout.root, ignore_errors=True)
        if self.layout.root.exists():
            raise ClusterError(f"{self.layout.root} cannot be removed: what is mounted there?")

    def wait_ready(self, seconds: float = 60) -> None:
        """Wait until every node is Ready and pods can be made."""
        nodes = [f"node/{name}" for name in self.nodes]
        deadline = time.monotonic() + seconds
        for words in (["get", *nodes], ["get", "serviceaccount", "default"]):
            while True:
                try:
                    self.kubectl(*words, timeout=10)
                    break
                except ClusterError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)
        self.kubectl("wait", "--for=condition=Ready", *nodes, f"--timeout={seconds:.0f}s")

    # ---- use ---------------------------------------------------------------------------------

    def kubectl(self, *words: str, data: bytes | None = None, timeout: float = 120) -> str:
        """Run kubectl as cluster admin; raises ClusterError with what it said."""
        return self.control_plane.kubectl(*words, data=data, timeout=timeout)

    def get(self, *words: str) -> Any:
        """`kubectl get ... -o json`, parsed."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects server-side."""
        self.control_plane.apply(*objects)

    def exec(self, namespace: str, pod: str, *command: str, timeout: float = 60) -> str:
        """Run a command in a pod."""
        return self.kubectl("exec", "-n", namespace, pod, "--", *command, timeout=timeout)

    def load_image(self, *archives: Path) -> None:
        """Import archives on every node."""
        for archive in archives:
            for node in self.nodes.values():
                node.load_image(archive)

    def run_beside(self, *command: str, timeout: float = 600) -> str:
        """Run a command in the control plane's network namespace, which reaches every address."""
        place = Place(self.layout.cp_cgroup, self.layout.cp_netns)
        return run(command, place, timeout=timeout)
