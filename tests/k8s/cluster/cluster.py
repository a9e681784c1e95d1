"""A whole cluster: up, down, and what tests do to it."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.k8s.cluster import binaries, certs, images, network
from tests.k8s.cluster.control_plane import ControlPlane
from tests.k8s.cluster.errors import ClusterError
from tests.k8s.cluster.layout import FAMILIES, Layout
from tests.k8s.cluster.locks import exclusive
from tests.k8s.cluster.node import Node
from tests.k8s.cluster.processes import run


class Cluster:
    """One cluster by name; several can stand side by side.

    The first node runs the machine's containerd 1.x (Debian's 1.6), the second containerd 2.3.
    families: of addresses; by default those that it was started with, else both.
    """

    def __init__(self, name: str = "k8s", families: Sequence[str] = ()) -> None:
        self.layout = Layout.of(name, families or _families(name))
        self.control_plane = ControlPlane(self.layout)
        self.nodes = {n.name: Node(self.layout, n) for n in self.layout.nodes}

    # ---- life --------------------------------------------------------------------------------

    def up(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Start from nothing; what an earlier one of this name left is removed first."""
        binaries.build(binaries.CLUSTER, say)
        archives = [images.pause(), images.box()]
        with exclusive(self.layout.lock, say):
            self._down()
            self._up(archives, say)

    def down(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Remove everything of this cluster, whatever state it is in."""
        with exclusive(self.layout.lock, say):
            self._down()
        with contextlib.suppress(OSError):
            self.layout.root.parent.rmdir()  # only where no other cluster is

    def _up(self, archives: Sequence[Path], say: Callable[[str], None]) -> None:
        started = time.monotonic()

        def tell(what: str) -> None:
            say(f"{time.monotonic() - started:5.1f} s  {what}")

        self.layout.root.mkdir(parents=True)
        _families_file(self.layout).write_text(" ".join(self.layout.families))
        certs.make(self.layout)
        network.make(self.layout)
        with ThreadPoolExecutor() as pool:  # nodes boot while the API server starts
            boots = [pool.submit(node.boot, archives) for node in self.nodes.values()]
            self.control_plane.start()
            tell("the API server is ready")
            for boot in boots:
                boot.result()
        tell("the nodes have booted and have their images")
        for node in self.nodes.values():
            node.join()
        self.wait_ready()
        tell("both nodes are Ready")

    def _down(self) -> None:
        for node in self.nodes.values():
            node.stop()
        self.control_plane.stop()
        shutil.rmtree(self.layout.root, ignore_errors=True)
        if left := self.leftovers():
            raise ClusterError(f"of cluster {self.layout.name} is left: {', '.join(left)}")

    def leftovers(self) -> list[str]:
        """What of it is on this machine: folders, namespaces, control groups, mounts."""
        layout = self.layout
        names = [layout.cp_netns, *(n.netns for n in layout.nodes)]
        groups = [layout.cp_cgroup, *(g for n in layout.nodes for g in n.cgroups)]
        files = [layout.root, *(Path("/run/netns", n) for n in names), *groups]
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        below = [m for m in mounts if Path(m).is_relative_to(layout.root)]
        return [*(str(f) for f in files if f.exists()), *below]

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
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(n.load_image, *archives) for n in self.nodes.values()]:
                done.result()

    def run_beside(self, *command: str, timeout: float = 600) -> str:
        """Run a command in the control plane's network namespace, which reaches every address."""
        return run(command, self.control_plane.place, timeout=timeout)


def _families_file(layout: Layout) -> Path:
    return layout.root / "families"


def _families(name: str) -> Sequence[str]:
    """Read which families a cluster that is up has; both, if there is none."""
    try:
        return _families_file(Layout.of(name)).read_text().split() or FAMILIES
    except OSError:
        return FAMILIES
