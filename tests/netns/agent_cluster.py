"""A node of a cluster in a network namespace: agent with --kubernetes, the real CNI plugin."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_api import MiniApi, MiniRuntime, certificate, new_uid
from agent_rig import NODE4, ROOT, Pod, Rig, run, until

from mesh import netns as mesh_netns
from mesh.ports import ANNOTATION_REDIRECTION, LABEL_DATAPLANE_MODE
from node_agent.source import CONDITION

PORT = 6443
CONFLIST = b'{"cniVersion": "1.0.0",\n "name": "pods", "plugins": [{"type": "ptp"}]}\n'


def build_plugin(folder: Path) -> Path:
    """Compile the CNI plugin; Go's own cache makes it quick."""
    path = folder / "ambit-cni"
    done = subprocess.run(
        [str(ROOT / "deploy/cni/build.sh"), str(path)], capture_output=True, text=True
    )
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"the CNI plugin does not build here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    return path


class ClusterRig(Rig):
    """Pods are made as kubelet and a runtime do: object, sandbox, plugin, then processes."""

    def __init__(self, folder: Path, plugin: Path) -> None:
        super().__init__(folder)
        self.plugin = plugin
        self.cri = folder / "cri.sock"
        self.state = folder / "run"
        self.lasting = folder / "lasting"
        self.bin, self.conf = folder / "bin", folder / "net.d"
        self.sandboxes: dict[str, str] = {}  # pod uid: sandbox id
        self.slots: set[int] = set()
        self.holders: list[subprocess.Popen[str]] = []

    def build(self) -> None:
        super().build()
        for folder in (self.bin, self.conf):
            folder.mkdir()
        (self.conf / "10-pods.conflist").write_bytes(CONFLIST)
        pem = certificate(self.folder, NODE4)
        self.api = MiniApi(pem)
        self.api.start(self._listen())
        self.kubeconfig = self.folder / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(self._kubeconfig(pem)))
        self.cri_server = MiniRuntime(self.cri)
        self.label_namespace("ambient")
        self.api.put("daemonsets", _named("ambit-node-agent", "istio-system"))

    def destroy(self) -> None:
        super().destroy()
        self.api.stop()
        self.cri_server.stop()

    def _listen(self) -> socket.socket:
        """Listen in the node's namespace: the agent and the plugin are there."""
        fd = os.open(f"/run/netns/{self.node}", os.O_RDONLY)
        try:
            return mesh_netns.inside(fd, lambda: socket.create_server((NODE4, PORT)))
        finally:
            os.close(fd)

    def _kubeconfig(self, pem: Path) -> dict[str, Any]:
        cluster = {
            "server": f"https://{NODE4}:{PORT}",
            "certificate-authority-data": base64.b64encode(pem.read_bytes()).decode(),
        }
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }

    # ---- processes -----------------------------------------------------------------------------

    def agent_command(self, *more: str) -> list[str]:
        return [
            *(sys.executable, "-m", "node_agent.app", "--kubernetes", "--node", "n1"),
            *("--kubeconfig", str(self.kubeconfig), "--cri", str(self.cri)),
            *("--pins", str(self.pins), "--cgroup", str(self.cgroup), "--zds", str(self.zds)),
            *("--state", str(self.state), "--lasting", str(self.lasting)),
            *("--started", str(self.folder / "started")),
            *("--cni-binary", str(self.plugin), "--cni-bin-dir", str(self.bin)),
            *("--cni-conf-dir", str(self.conf), "--release-grace", "0.5"),
            *more,
        ]

    def start_holder(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "node_agent.app", "--holder", "--state", str(self.state)]
        known = len(list(self.state.glob("holder-*.sock")))
        holder = self.spawn(self.node, self.cgroup / "system/agent", *command)
        until(lambda: len(list(self.state.glob("holder-*.sock"))) > known, "a holder")
        self.holders.append(holder)
        return holder

    def manages(self, times: int = 1) -> None:
        """Until an agent manages the node, for the n-th time, and has its plugin in place."""
        until(
            lambda: self.log().count("managing its pods") == times and self.is_installed(),
            f"managed for the {times}. time",
            30,
            lambda: self.log()[-3000:],
        )

    def is_installed(self) -> bool:
        return b"ambit-cni" in (self.conf / "10-pods.conflist").read_bytes()

    # ---- pods ----------------------------------------------------------------------------------

    def label_namespace(self, mode: str) -> None:
        self.api.put("namespaces", _named("mesh", labels=_labels(mode)))

    def create(self, name: str, label: str = "") -> Pod:
        """The object as the scheduler leaves it, and a network namespace with addresses."""
        self._count += 1
        slot = min(set(range(10, 90)) - self.slots)  # addresses are used again, as IPAM does
        self.slots.add(slot)
        ipv4, ipv6 = f"10.77.0.{slot}", f"fd77::{slot:x}"
        netns = f"{self.tag}-p{self._count}"
        pod = Pod(new_uid(), name, netns, self.cgroup / "pods", ipv4, ipv6)
        obj = _named(name, "mesh", pod.uid, _labels(label))
        probe = {"httpGet": {"port": 8081}}
        obj["spec"] = {"nodeName": "n1", "containers": [{"livenessProbe": probe}]}
        self.api.put("pods", obj | {"status": {"phase": "Pending"}})
        self.make_sandbox(pod)
        return pod

    def make_sandbox(self, pod: Pod) -> str:
        self._attach(pod.netns, pod.ipv4, pod.ipv6)
        # A bridge's neighbours learn a new pod's hardware address from what a CNI announces.
        run("ip", "-n", self.node, "neigh", "flush", "dev", "br0")
        self.sandboxes[pod.uid] = os.urandom(32).hex()
        return self.sandboxes[pod.uid]

    def make_new_netns(self, pod: Pod) -> None:
        """Replace a pod's sandbox behind everybody's back."""
        self._unplug(pod)
        self.make_sandbox(pod)

    def cni(self, command: str, pod: Pod) -> subprocess.CompletedProcess[str]:
        """Run the plugin as the runtime does."""
        entry = json.loads((self.conf / "10-pods.conflist").read_bytes())["plugins"][-1]
        result = {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": f"/run/netns/{pod.netns}"}],
            "ips": [
                {"address": f"{pod.ipv4}/24", "interface": 0},
                {"address": f"{pod.ipv6}/64", "interface": 0},
            ],
        }
        conf = entry | {"cniVersion": "1.0.0", "name": "pods", "prevResult": result}
        args = {
            "K8S_POD_NAMESPACE": "mesh",
            "K8S_POD_NAME": pod.name,
            "K8S_POD_UID": pod.uid,
        }
        env = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.sandboxes[pod.uid],
            "CNI_NETNS": f"/run/netns/{pod.netns}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.bin),
            "CNI_ARGS": "IgnoreUnknown=1;" + ";".join(f"{k}={v}" for k, v in args.items()),
        }
        words = ["nsenter", f"--net=/run/netns/{self.node}", str(self.bin / "ambit-cni")]
        return subprocess.run(
            words, input=json.dumps(conf), env=env, capture_output=True, text=True, timeout=60
        )

    def start_pod(self, name: str, label: str = "") -> Pod:
        """Up to where its first process could run."""
        pod = self.create(name, label)
        done = self.cni("ADD", pod)
        assert done.returncode == 0, done.stdout + self.log()[-3000:]
        self.run_pod(pod)
        return pod

    def run_pod(self, pod: Pod) -> None:
        self.cri_server.ready[self.sandboxes[pod.uid]] = (
            pod.uid,
            [pod.ipv4, pod.ipv6],
            pod.netns,
        )
        addresses = [{"ip": pod.ipv4}, {"ip": pod.ipv6}]
        self.api.change(
            ("pods", "mesh", pod.name), status={"phase": "Running", "podIPs": addresses}
        )

    def stop_sandbox(self, pod: Pod) -> None:
        """As the runtime does: DEL, then the namespace goes."""
        done = self.cni("DEL", pod)
        assert done.returncode == 0, done.stdout
        self.cri_server.ready.pop(self.sandboxes[pod.uid], None)
        self._unplug(pod)

    def _unplug(self, pod: Pod) -> None:
        """Take the wire out, as the CNI before ours does: no address stays in the namespace."""
        run("ip", "-n", pod.netns, "link", "del", "eth0")
        run("ip", "netns", "del", pod.netns)
        self._netns.remove(pod.netns)

    def remove(self, pod: Pod) -> None:
        self.stop_sandbox(pod)
        self.api.delete(("pods", "mesh", pod.name))
        self.slots.discard(int(pod.ipv4.rpartition(".")[2]))

    # ---- looking -------------------------------------------------------------------------------

    def mark(self, pod: Pod) -> str:
        found = self.api.get(("pods", "mesh", pod.name)).get("metadata", {})
        return str((found.get("annotations") or {}).get(ANNOTATION_REDIRECTION, ""))

    def condition(self, pod: Pod) -> dict[str, str]:
        found = self.api.get(("pods", "mesh", pod.name)).get("status", {})
        return next((c for c in found.get("conditions", []) if c["type"] == CONDITION), {})

    def descriptors(self, process: subprocess.Popen[str]) -> int:
        return len(os.listdir(f"/proc/{process.pid}/fd"))


def _labels(mode: str) -> dict[str, str]:
    return {LABEL_DATAPLANE_MODE: mode} if mode else {}


def _named(
    name: str, namespace: str = "", uid: str = "", labels: dict[str, str] | None = None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "uid": uid or new_uid(), "labels": labels or {}}
    return {"metadata": metadata | ({"namespace": namespace} if namespace else {})}


@contextlib.contextmanager
def cluster_rig(folder: Path, plugin: Path) -> Iterator[ClusterRig]:
    made = ClusterRig(folder, plugin)
    try:
        made.build()
        yield made
    finally:
        for holder in made.holders:
            with contextlib.suppress(ProcessLookupError):
                holder.send_signal(signal.SIGKILL)
        made.destroy()
