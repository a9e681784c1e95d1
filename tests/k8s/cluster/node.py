"""A node: namespaces of its own, a disk that a reboot keeps, containerd, kubelet, kube-proxy."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Final

from lab import cgroups
from tests.k8s.cluster import binaries, config, network
from tests.k8s.cluster.errors import ClusterError
from tests.k8s.cluster.layout import CGROUP, V1, Layout, NodeLayout, is_hybrid
from tests.k8s.cluster.processes import Part, Place, run, wait_until

_INIT: Final = Path(__file__).parent / "node_init.sh"
_PLUGINS: Final = Path("/usr/lib/cni")


class Node:
    """See the module's text."""

    def __init__(self, layout: Layout, node: NodeLayout, runtime_v2: bool) -> None:
        self.layout = layout
        self.node = node
        self.name = node.name
        self._v2 = runtime_v2
        self._init = Part("init", node.root / "log")
        self.containerd = Part("containerd", node.root / "log")
        self.kubelet = Part("kubelet", node.root / "log")
        self.kube_proxy = Part("kube-proxy", node.root / "log")

    @property
    def place(self) -> Place:
        """Where commands of this node run."""
        pid = self._init.pid
        if not pid:
            raise ClusterError(f"node {self.name} is down")
        return Place(self.node.cgroup, self.node.netns, pid)

    @property
    def containerd_bin(self) -> Path:
        """The folder of its containerd's programs."""
        return binaries.folder() if self._v2 else Path("/usr/bin")

    # ---- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot: namespaces and mounts, then the processes. Does not wait for Ready."""
        self._write_files()
        network.add_node(self.layout, self.node)
        self._make_cgroups()
        self._boot()
        self.start_containerd()
        self._load_pause()
        self.start_kubelet()
        self.start_kube_proxy()

    def stop(self) -> None:
        """Cut the power: every process, the namespaces, all that is not on disk."""
        for path in self._all_cgroups():
            cgroups.kill(path)
        network.remove([self.node.netns])
        for path in self._all_cgroups():
            cgroups.remove(path)

    def reboot(self) -> None:
        """Power off and on."""
        self.stop()
        self.start()

    def start_containerd(self) -> None:
        """Start containerd, and wait until it answers."""
        file = self.node.root / "containerd.toml"
        binary = self.containerd_bin / "containerd"
        path = f"{self.containerd_bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.containerd.start(self.place, [str(binary), "-c", str(file)], {"PATH": path})
        wait_until(f"containerd of {self.name} answers", 20, self._answers, self.containerd)

    def start_kubelet(self) -> None:
        """Start the kubelet."""
        words = [str(binaries.path("kubelet")), *config.kubelet_args(self.node)]
        self.kubelet.start(self.place, words)

    def start_kube_proxy(self) -> None:
        """Start kube-proxy."""
        words = [str(binaries.path("kube-proxy")), f"--config={self.node.root}/kube-proxy.yaml"]
        self.kube_proxy.start(self.place, [*words, "--v=2"])

    def restart_containerd(self) -> None:
        """As systemd would after a crash: pods run on under their shims."""
        self.containerd.stop(signal.SIGKILL)
        self.start_containerd()

    # ---- use ---------------------------------------------------------------------------------

    def run(self, *command: str, timeout: float = 60) -> str:
        """Run a command on the node, as root, in its namespaces."""
        return run(command, self.place, timeout=timeout)

    def ctr(self, *words: str, timeout: float = 120) -> str:
        """Run ctr in the namespace of the kubelet's containers."""
        ctr = str(self.containerd_bin / "ctr")
        return self.run(
            ctr, "-a", config.CONTAINERD_SOCKET, "-n", "k8s.io", *words, timeout=timeout
        )

    def load_image(self, archive: Path) -> None:
        """Import a docker or OCI archive."""
        self.ctr("images", "import", "--platform", "linux/amd64", str(archive))

    # ---- parts -------------------------------------------------------------------------------

    def _answers(self) -> bool:
        try:
            self.ctr("version", timeout=5)
        except ClusterError:
            return False
        return True

    def _load_pause(self) -> None:
        if config.PAUSE not in self.ctr("images", "ls", "-q"):
            from tests.k8s.cluster import images

            self.load_image(images.pause())

    def _write_files(self) -> None:
        node = self.node
        for folder in ("var-lib", "var-log", "opt/cni/bin", "etc", "etc-work", "fake"):
            (node.disk / folder).mkdir(parents=True, exist_ok=True)
        etc = node.disk / "etc"
        (etc / "cni/net.d").mkdir(parents=True, exist_ok=True)
        conflist = etc / "cni/net.d/10-pods.conflist"
        if not conflist.exists():
            conflist.write_text(config.cni(node))
        for plugin in _PLUGINS.iterdir():
            target = node.disk / "opt/cni/bin" / plugin.name
            if not target.exists():
                shutil.copy2(plugin, target)
        (node.root / "containerd.toml").write_text(config.containerd(self._v2))
        (node.root / "kubelet.yaml").write_text(config.kubelet(node))
        (node.root / "kube-proxy.yaml").write_text(config.kube_proxy(node))

    def _make_cgroups(self) -> None:
        for path in self._all_cgroups():
            cgroups.make(path)
            if path.parent.name == "cpuset":
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (path / file).write_text((path.parent / file).read_text())

    def _all_cgroups(self) -> list[Path]:
        """cgroup2 first: every process of the node is in it."""
        if not is_hybrid():
            return [self.node.cgroup]
        name = f"{self.node.cluster}-{self.node.name}"
        return [self.node.cgroup, *(CGROUP / each / name for each in V1)]

    def _boot(self) -> None:
        """A process that holds the node's mount and UTS namespaces, and made what is in them."""
        place = Place(self.node.cgroup, self.node.netns)
        words = ["unshare", "--mount", "--uts", "--propagation", "private", "--"]
        script = ["/bin/bash", str(_INIT), self.name, str(self.node.disk), str(self.node.cgroup)]
        ready = self.node.root / "booted"
        ready.unlink(missing_ok=True)
        self._init.start(place, [*words, *script, str(ready)])
        wait_until(f"node {self.name} boots", 10, ready.exists, self._init)
