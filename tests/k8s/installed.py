"""The mesh in the test cluster: built, loaded, installed and removed as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mesh import __version__
from tests.k8s.cluster import Cluster, ClusterError, binaries

ROOT: Final = Path(__file__).parents[2]
NS: Final = "istio-system"
AMBIENT: Final = {"istio.io__dataplane-mode": "ambient"}
REDIRECTION: Final = "ambient.istio.io/redirection"


def gateway_crds() -> Path:
    """The Gateway API's definitions, of the release that the conformance suite belongs to."""
    module = "sigs.k8s.io/gateway-api"
    return binaries.module_file("conformance", module, "config/crd/standard")


def ambit(cluster: Cluster, *words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run our command line against the cluster."""
    env = {**os.environ, "KUBECONFIG": str(cluster.layout.kubeconfig)}
    command = [sys.executable, "-m", "cli.main", *words]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def load_images(cluster: Cluster) -> None:
    """Build the images (cached by layer) and import them on both nodes."""
    with tempfile.TemporaryDirectory() as folder:
        build = ["build", "--or-newest", "--out", folder]
        command = [sys.executable, "-m", "deploy.images", *build]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        archives = sorted(Path(folder).glob(f"*-{__version__}.tar"))
        assert len(archives) == 3, archives
        cluster.load_image(*archives)


class Mesh:
    """What the tests ask of a cluster with the mesh in it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    # ---- pods --------------------------------------------------------------------------------

    def pods(self, ns: str, **labels: str) -> list[dict[str, Any]]:
        """Pods of a namespace that are not being deleted."""
        chosen = ",".join(f"{k}={v}" for k, v in labels.items())
        found = self.cluster.get("pods", "-n", ns, "-l", chosen)["items"]
        return [p for p in found if "deletionTimestamp" not in p["metadata"]]

    def is_captured(self, pod: dict[str, Any]) -> bool:
        """Both marks: the annotation that Istio's tools read, and our condition."""
        marked = (pod["metadata"].get("annotations") or {}).get(REDIRECTION)
        conditions = pod["status"].get("conditions") or []
        told = [c["status"] for c in conditions if c["type"] == "ambit.io/Captured"]
        return marked == "enabled" and told == ["True"]

    def wait_captured(self, ns: str, seconds: float = 60) -> None:
        """Until every running pod of a namespace is, but those of the host's network."""

        def seen() -> bool:
            running = [
                p
                for p in self.pods(ns)
                if p["status"]["phase"] == "Running" and not p["spec"].get("hostNetwork")
            ]
            return bool(running) and all(map(self.is_captured, running))

        until(f"every pod of {ns} is captured", seen, seconds)

    def wait_ready(self, ns: str, seconds: float = 90) -> None:
        """Until every pod of a namespace that should run is Ready."""
        self.cluster.kubectl(
            "wait",
            "-n",
            ns,
            "--for=condition=Ready",
            "pod",
            "--all",
            f"--timeout={seconds:.0f}s",
            timeout=seconds + 30,
        )

    def agent_pod(self, node: str) -> str:
        """The node agent's pod on a node."""
        return self._on(node, "ambit-node-agent")

    def ztunnel_pod(self, node: str) -> str:
        """The node proxy's pod on a node."""
        return self._on(node, "ztunnel")

    def _on(self, node: str, app: str) -> str:
        found = [p for p in self.pods(NS, app=app) if p["spec"].get("nodeName") == node]
        assert len(found) == 1, [p["metadata"]["name"] for p in found]
        return str(found[0]["metadata"]["name"])

    def wait_components(self, seconds: float = 120) -> None:
        """Until control plane, node agents and node proxies are all there."""
        for what in (
            "deployment/ambit-control-plane",
            "daemonset/ambit-node-agent",
            "daemonset/ztunnel",
        ):
            self.cluster.kubectl("rollout", "status", "-n", NS, what, f"--timeout={seconds:.0f}s")

    # ---- traffic -----------------------------------------------------------------------------

    def curl(self, ns: str, pod: str, url: str, *words: str) -> str:
        """The answer's body; raises ClusterError when there is none."""
        return self.cluster.exec(ns, pod, "curl", "-sS", "-m", "5", *words, url)

    def is_refused(self, ns: str, pod: str, url: str) -> bool:
        """Whether a request gets no answer."""
        try:
            self.curl(ns, pod, url)
        except ClusterError as e:
            return "exit code" in str(e)
        return False

    def access_log(self, since: float) -> list[str]:
        """Access log lines of both nodes' proxies since a time (seconds of the clock)."""
        lines = []
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))
        for pod in self.pods(NS, app="ztunnel"):
            name = pod["metadata"]["name"]
            text = self.cluster.kubectl("logs", "-n", NS, name, f"--since-time={stamp}")
            lines += [line for line in text.splitlines() if "src.addr" in line]
        return lines


class Load:
    """A loop of requests from a pod, each over a new connection, that counts its failures."""

    SCRIPT: Final = (
        "import http.client, json, sys, time\n"
        "host, seconds = sys.argv[1], float(sys.argv[2])\n"
        "done, failed, first = 0, [], time.time()\n"
        "while time.time() - first < seconds:\n"
        "    try:\n"
        "        c = http.client.HTTPConnection(host, 80, timeout=10)\n"
        "        c.request('GET', '/')\n"
        "        assert c.getresponse().status == 200\n"
        "        c.close()\n"
        "        done += 1\n"
        "    except Exception as e:\n"
        "        failed.append(f'{time.time() - first:.2f} s: {e!r}')\n"
        "    time.sleep(0.02)\n"
        "print(json.dumps([done, failed]))\n"
    )

    def __init__(self, cluster: Cluster, ns: str, pod: str, host: str, seconds: float) -> None:
        words = [str(binaries.path("kubectl")), f"--kubeconfig={cluster.layout.kubeconfig}"]
        words += ["exec", "-n", ns, pod, "--", "python3", "-c", self.SCRIPT, host, str(seconds)]
        self._process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._seconds = seconds

    def result(self) -> tuple[int, list[str]]:
        """How many succeeded, and what the others said."""
        out, err = self._process.communicate(timeout=self._seconds + 60)
        assert out, err
        done, failed = json.loads(out)
        return int(done), list(failed)


def until(what: str, seen: Callable[[], Any], seconds: float = 60, pause: float = 0.3) -> Any:
    """Poll until something is true, and return it; what raises ClusterError is not there yet."""
    deadline = time.monotonic() + seconds
    last = ""
    while True:
        try:
            if found := seen():
                return found
        except ClusterError as e:
            last = f" ({e})"
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}{last}"
        time.sleep(pause)
