"""etcd, the API server, its controllers and cluster DNS, in the control plane's namespace."""

from __future__ import annotations

import contextlib
import ssl
import urllib.request
from collections.abc import Iterator

import yaml

from lab import cgroups
from tests.k8s.cluster import binaries, config, network
from tests.k8s.cluster.forward import Forward
from tests.k8s.cluster.layout import Layout
from tests.k8s.cluster.processes import Part, Place, run, wait_until


class ControlPlane:
    """See the module's text."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.place = Place((layout.cp_cgroup,), layout.cp_netns)
        self.etcd = Part("etcd", layout.logs)
        self.apiserver = Part("kube-apiserver", layout.logs)
        self._controllers = Part("kube-controller-manager", layout.logs)
        self._scheduler = Part("kube-scheduler", layout.logs)
        self._dns = Part("coredns", layout.logs)
        self._forward = Forward(layout)

    def start(self) -> None:
        """Start everything, in a network that is there; cluster DNS is declared when it returns."""
        self.etcd.start(self.place, [str(binaries.path("etcd")), *config.etcd(self.layout)])
        self.start_apiserver()
        self._run(self._controllers, config.controller_manager(self.layout))
        self._run(self._scheduler, config.scheduler(self.layout))
        self.apply(*config.dns_objects(self.layout))
        corefile = self.layout.root / "Corefile"
        corefile.write_text(config.corefile(self.layout))
        self._run(self._dns, ["-conf", str(corefile)])

    def start_apiserver(self) -> None:
        """Start the API server and the way to it from this machine, and wait for both."""
        self._run(self.apiserver, config.apiserver(self.layout))
        self._forward.start()
        wait_until("the API server is ready", 60, self.is_ready, self.apiserver, self.etcd)

    def stop_apiserver(self) -> None:
        """Stop the API server alone."""
        self.apiserver.stop()

    @contextlib.contextmanager
    def without_apiserver(self) -> Iterator[None]:
        """Run the block while there is no API server; one is ready again after it."""
        self.stop_apiserver()
        try:
            yield
        finally:
            self.start_apiserver()

    def stop(self) -> None:
        """End all of it."""
        self._forward.stop()
        cgroups.kill(self.layout.cp_cgroup)
        network.remove([self.layout.cp_netns])
        cgroups.remove(self.layout.cp_cgroup)

    def is_ready(self) -> bool:
        """Ask /readyz."""
        pki = self.layout.pki
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(str(pki / "admin.crt"), str(pki / "admin.key"))
        url = f"https://127.0.0.1:{self._forward.port}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=2, context=context) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def apply(self, *objects: dict[str, object]) -> None:
        """Apply objects server-side."""
        text = yaml.safe_dump_all(objects)
        self.kubectl("apply", "--server-side", "-f", "-", data=text.encode())

    def kubectl(self, *words: str, data: bytes | None = None, timeout: float = 120) -> str:
        """Run kubectl as cluster admin."""
        kubectl = str(binaries.path("kubectl"))
        args = [kubectl, f"--kubeconfig={self.layout.kubeconfig}", *words]
        return run(args, data=data, timeout=timeout)

    def _run(self, part: Part, words: list[str]) -> None:
        part.start(self.place, [str(binaries.path(part.name)), *words])
