"""A node: namespaces of its own, a disk that a reboot keeps, containerd, kubelet, kube-proxy."""

from __future__ import annotations

import contextlib
import functools
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from lab import cgroups
from tests.k8s.cluster import binaries, config, network
from tests.k8s.cluster.errors import ClusterError
from tests.k8s.cluster.layout import Layout, NodeLayout
from tests.k8s.cluster.processes import Part, Place, parent, run, wait_until

_INIT: Final = Path(__file__).parent / "node_init.sh"
_PLUGINS: Final = Path("/usr/lib/cni")
_SYSTEM: Final = Path("/usr/bin")


class Node:
    """See the module's text."""

    def __init__(self, layout: Layout, node: NodeLayout) -> None:
        self.layout = layout
        self.node = node
        self.name = node.name
        self._init = Part("init", node.root / "log")
        self.containerd = Part("containerd", node.root / "log")
        self.kubelet = Part("kubelet", node.root / "log")
        self.kube_proxy = Part("kube-proxy", node.root / "log")

    def place(self, service: str = "shell") -> Place:
        """Where a service of this node runs, or a command given on it."""
        pid = self._init.pid
        if not pid:
            raise ClusterError(f"node {self.name} of cluster {self.layout.name} is down")
        own = self.node.service_cgroups(service)
        return Place((self.layout.cp_cgroup,), self.node.netns, pid, own)

    @property
    def containerd_bin(self) -> Path:
        """The folder of its containerd's programs."""
        return binaries.folder() if self._v2 else _SYSTEM

    @functools.cached_property
    def _v2(self) -> bool:
        """Whether it has the containerd 2 that was built; the first node has the machine's 1.x."""
        return self.node.number > 1 or not _has_containerd_1()

    # ---- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Power on. Does not wait for Ready."""
        self.boot()
        self.join()

    def boot(self, archives: Sequence[Path] = ()) -> None:
        """Namespaces, mounts, containerd, and images that it has not yet."""
        self._write_files()
        network.add_node(self.layout, self.node)
        self._make_cgroups()
        self._start_init()
        self.start_containerd()
        self.load_image(*archives)

    def join(self) -> None:
        """Start what makes it a node of the cluster."""
        self.start_kubelet()
        self.start_kube_proxy()

    def stop(self) -> None:
        """Cut the power: the wire, every process, the namespaces, all that is not on disk."""
        network.unplug(self.layout, self.node)  # first: nobody is told that connections end
        for path in self.node.cgroups:
            cgroups.kill(path)
        network.remove([self.node.netns])
        for path in self.node.cgroups:
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
        self.containerd.start(
            self.place("containerd"), [str(binary), "-c", str(file)], {"PATH": path}
        )
        wait_until(f"containerd of {self.name} answers", 20, self._answers, self.containerd)

    def start_kubelet(self) -> None:
        """Start the kubelet."""
        words = [str(binaries.path("kubelet")), *config.kubelet_args(self.node)]
        self.kubelet.start(self.place("kubelet"), words)

    def start_kube_proxy(self) -> None:
        """Start kube-proxy."""
        words = [str(binaries.path("kube-proxy")), f"--config={self.node.root}/kube-proxy.yaml"]
        self.kube_proxy.start(self.place("kube-proxy"), [*words, "--v=2"])

    def restart_containerd(self) -> None:
        """As systemd would after a crash: pods run on under their shims."""
        self.containerd.stop(signal.SIGKILL)
        self.start_containerd()

    def restart_kubelet(self) -> None:
        """As systemd would after a crash."""
        self.kubelet.stop(signal.SIGKILL)
        self.start_kubelet()

    # ---- use ---------------------------------------------------------------------------------

    def run(self, *command: str, timeout: float = 60) -> str:
        """Run a command on the node, as root, in its namespaces."""
        return run(command, self.place(), timeout=timeout)

    def ctr(self, *words: str, timeout: float = 120) -> str:
        """Run ctr in the namespace of the kubelet's containers."""
        ctr = str(self.containerd_bin / "ctr")
        return self.run(
            ctr, "-a", config.CONTAINERD_SOCKET, "-n", "k8s.io", *words, timeout=timeout
        )

    def load_image(self, *archives: Path) -> None:
        """Import docker or OCI archives."""
        for archive in archives:
            self.ctr("images", "import", "--platform", "linux/amd64", str(archive.resolve()))

    @contextlib.contextmanager
    def capture(self, *expression: str, interface: str = "eth0") -> Iterator[Path]:
        """Record packets while the block runs (pcap-filter(7)); the file is whole after it."""
        file = self.node.root / f"{interface}.pcap"
        file.unlink(missing_ok=True)
        tcpdump = Part("tcpdump", self.node.root / "log")
        tcpdump.log.unlink(missing_ok=True)
        # -Z root: it would write as a user who may not; -U: what it read is in the file at once.
        words = ["tcpdump", "-Z", "root", "-U", "--immediate-mode", "-n", "-i", interface]
        tcpdump.start(self.place("tcpdump"), [*words, "-w", str(file), *expression])
        try:
            wait_until("tcpdump listens", 10, lambda: "listening on" in tcpdump.tail(), tcpdump)
            yield file
        finally:
            tcpdump.stop(signal.SIGINT)

    # ---- parts -------------------------------------------------------------------------------

    def _answers(self) -> bool:
        try:
            self.ctr("version", timeout=5)
        except ClusterError:
            return False
        return True

    def _write_files(self) -> None:
        node = self.node
        for folder in ("var-lib", "var-log", "opt/cni/bin", "fake"):
            (node.disk / folder).mkdir(parents=True, exist_ok=True)
        etc = node.disk / "etc"
        if not etc.exists():  # a copy: an overlay over files that change behind it has no meaning
            run(["cp", "-a", "/etc", str(etc)])
            shutil.rmtree(etc / "cni", ignore_errors=True)
        (etc / "cni/net.d").mkdir(parents=True, exist_ok=True)
        conflist = etc / "cni/net.d/10-pods.conflist"
        if not conflist.exists():
            conflist.write_text(config.cni(node))
        for plugin in _PLUGINS.iterdir():
            target = node.disk / "opt/cni/bin" / plugin.name
            if not target.exists():
                shutil.copy2(plugin, target)
        (node.root / "containerd.toml").write_text(config.containerd(self._v2))
        (node.root / "kubelet.yaml").write_text(config.kubelet(self.layout))
        (node.root / "kube-proxy.yaml").write_text(config.kube_proxy(node))

    def _make_cgroups(self) -> None:
        """Control groups that can do what a machine's own roots can."""
        for path in self.node.cgroups:
            cgroups.make(path)
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (path / file).exists() and (path.parent / "tasks").exists():
                    (path / file).write_text((path.parent / file).read_text())
        if len(self.node.cgroups) == 1:  # there they come from above, one level at a time
            root = self.node.cgroup.parent
            for controller in (root / "cgroup.controllers").read_text().split():
                (root / "cgroup.subtree_control").write_text(f"+{controller}")

    def _start_init(self) -> None:
        """PID 1 of the node: makes what is in its namespaces, and holds them."""
        place = Place(self.node.cgroups, self.node.netns)
        words = ["unshare", "--mount", "--uts", "--pid", "--cgroup", "--fork",
                 "--propagation", "private", "--"]  # fmt: skip
        script = ["/bin/bash", str(_INIT), self.name, str(self.node.disk), str(self.node.cgroup)]
        ready = self.node.root / "booted"
        ready.unlink(missing_ok=True)
        pid = self._init.start(place, [*words, *script, str(ready)], forks=True)
        wait_until(f"node {self.name} boots", 20, ready.exists, self._init)
        # Whoever waits for it outside: seen in there as pid 0, and groups with children want none.
        (self.layout.cp_cgroup / "cgroup.procs").write_text(parent(pid))


def _has_containerd_1() -> bool:
    try:
        told = run([str(_SYSTEM / "containerd"), "--version"])
    except (ClusterError, FileNotFoundError):
        return False
    return told.split()[2].removeprefix("v").startswith("1.")  # "containerd PACKAGE VERSION ..."
