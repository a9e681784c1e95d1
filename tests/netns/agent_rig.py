"""One node with pods and a world outside, for the node agent's tests. Everything is removed."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.ports import ANNOTATION_REDIRECTION, LABEL_DATAPLANE_MODE
from mesh.store import FolderStore
from node_agent.source import CONDITION

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NODE4, NODE6 = "10.77.0.1", "fd77::1"
WORLD4, WORLD6 = "10.77.0.99", "fd77::99"
AWAY4, AWAY6 = "203.0.113.9", "2001:db8:9::9"  # routed to nowhere: only a proxy answers for them


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def until(condition: Callable[[], Any], what: str, seconds: float = 10.0, more: Any = None) -> Any:
    """Wait for a condition; `more()` is added to the complaint."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}\n{more() if more else ''}")
        time.sleep(0.02)
    return value


def cgroup_root() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise AssertionError("no cgroup2 mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


@dataclass
class Pod:
    uid: str
    name: str
    netns: str
    cgroup: Path
    ipv4: str
    ipv6: str


class Rig:
    """`namespace` mesh is labelled ambient; pods take their label from it unless told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.tag = f"ambit-a-{uuid.uuid4().hex[:6]}"
        self.folder = folder
        self.node = f"{self.tag}-n"
        self.cgroup = cgroup_root() / self.tag
        self.pins = Path("/sys/fs/bpf") / self.tag
        self.zds = folder / "zds.sock"
        self.runtime = folder / "pods"
        self.store = FolderStore(folder / "objects")
        self.agent: subprocess.Popen[str] | None = None
        self._processes: list[subprocess.Popen[str]] = []
        self._count = 0
        self._links = 0
        self._netns: list[str] = []

    # ---- building -----------------------------------------------------------------------------

    def build(self) -> None:
        self.runtime.mkdir()
        for part in ("pods", "system/agent", "system/ztunnel", "world"):
            (self.cgroup / part).mkdir(parents=True)
        self._add_netns(self.node)
        run("ip", "-n", self.node, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.node, "link", "set", "br0", "up")
        run("ip", "-n", self.node, "addr", "add", f"{NODE4}/24", "dev", "br0")
        run("ip", "-n", self.node, "addr", "add", f"{NODE6}/64", "dev", "br0", "nodad")
        self._attach(f"{self.tag}-w", WORLD4, WORLD6)
        self.store.apply(self.namespace("ambient"))

    def namespace(self, mode: str) -> dict[str, Any]:
        labels = {LABEL_DATAPLANE_MODE: mode} if mode else {}
        return {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": "mesh", "labels": labels},
        }

    def pod(self, name: str, label: str = "", netns_of: Pod | None = None) -> Pod:
        """Start a pod's sandbox; `netns_of`: claim another pod's namespace for it."""
        self._count += 1
        uid = str(uuid.uuid4())
        ipv4, ipv6 = f"10.77.0.{10 + self._count}", f"fd77::{10 + self._count:x}"
        netns = f"{self.tag}-p{self._count}"
        if netns_of is None:
            self._attach(netns, ipv4, ipv6)
        else:
            netns = netns_of.netns
        pod = Pod(uid, name, netns, self.cgroup / "pods" / uid, ipv4, ipv6)
        pod.cgroup.mkdir()
        self.label(pod, label)
        text = json.dumps(
            {
                "uid": uid,
                "namespace": "mesh",
                "name": name,
                "service_account": "default",
                "netns": f"/run/netns/{netns}",
                "cgroup": str(pod.cgroup),
                "addresses": [ipv4, ipv6],
                "probe_ports": [8081],
            }
        )
        (self.runtime / f".{uid}").write_text(text)
        (self.runtime / f".{uid}").rename(self.runtime / f"{uid}.json")
        return pod

    def label(self, pod: Pod, mode: str) -> None:
        labels = {LABEL_DATAPLANE_MODE: mode} if mode else {}
        self.store.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": pod.name,
                    "namespace": "mesh",
                    "uid": pod.uid,
                    "labels": labels,
                },
                "spec": {"serviceAccountName": "default", "containers": []},
            }
        )

    def remove(self, pod: Pod) -> None:
        """The runtime removes a pod: processes, namespace, then its own record."""
        for process in list(self._processes):
            if process.args and str(pod.cgroup) in str(process.args):
                self.kill(process)
        run("ip", "netns", "del", pod.netns)
        self._netns.remove(pod.netns)
        (self.runtime / f"{pod.uid}.json").unlink()
        self.store.delete("Pod", "mesh", pod.name)

    def _add_netns(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._netns.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def _attach(self, name: str, ipv4: str, ipv6: str) -> None:
        self._add_netns(name)
        self._links += 1
        port = f"v{self._links}"
        run(
            *("ip", "link", "add", "eth0", "netns", name, "type", "veth"),
            *("peer", "name", port, "netns", self.node),
        )
        run("ip", "-n", self.node, "link", "set", port, "master", "br0", "up")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "addr", "add", f"{ipv4}/24", "dev", "eth0")
        run("ip", "-n", name, "addr", "add", f"{ipv6}/64", "dev", "eth0", "nodad")
        run("ip", "-n", name, "route", "add", "default", "via", NODE4)
        run("ip", "-n", name, "route", "add", "default", "via", NODE6)

    # ---- processes ----------------------------------------------------------------------------

    def spawn(self, netns: str, cgroup: Path, *command: str) -> subprocess.Popen[str]:
        """Run something in a namespace and cgroup; its stdout is a pipe."""
        script = f'echo 0 > "{cgroup}/cgroup.procs" && exec "$0" "$@"'
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{netns}", "sh", "-c", script, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self._processes.append(process)
        return process

    def agent_command(self, *more: str) -> list[str]:
        return [
            *(sys.executable, "-m", "node_agent.app", "--node", "n1"),
            *("--objects", str(self.folder / "objects"), "--runtime", str(self.runtime)),
            *("--pins", str(self.pins), "--cgroup", str(self.cgroup)),
            *("--proxy-cgroup", str(self.cgroup / "system/ztunnel"), "--zds", str(self.zds)),
            *("--release-grace", "0.5"),
            *more,
        ]

    def start_agent(self, *more: str) -> subprocess.Popen[str]:
        command = self.agent_command(*more)
        self.agent = self.spawn(self.node, self.cgroup / "system/agent", *command)
        return self.agent

    def start_proxy(self, *more: str) -> subprocess.Popen[str]:
        command = (sys.executable, str(HERE / "agent_standin.py"), str(self.zds), *more)
        return self.spawn(self.node, self.cgroup / "system/ztunnel", *command)

    def in_pod(self, pod: Pod, *arguments: str) -> subprocess.Popen[str]:
        command = (sys.executable, "-I", "-S", str(HERE / "agent_inpod.py"), *arguments)
        process = self.spawn(pod.netns, pod.cgroup, *command)
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        return process

    def in_world(self, *arguments: str) -> subprocess.Popen[str]:
        command = (sys.executable, "-I", "-S", str(HERE / "agent_inpod.py"), *arguments)
        process = self.spawn(f"{self.tag}-w", self.cgroup / "world", *command)
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        return process

    def outcomes(self, process: subprocess.Popen[str]) -> dict[str, int]:
        """End a connect loop and give what it counted."""
        out, _ = process.communicate("", timeout=20)
        self._processes.remove(process)
        counted = ast.literal_eval(out)
        assert isinstance(counted, dict)
        return counted

    def ask(self, where: Pod | str, address: str, port: int) -> str:
        """Connect once from a pod ("world" and "node" too) and give the line that comes back."""
        code = (
            "import socket,sys;"
            "s=socket.create_connection((sys.argv[1],int(sys.argv[2])),timeout=3);"
            "print(s.getpeername()[0],s.recv(200).decode().strip())"
        )
        places = {"world": (f"{self.tag}-w", "world"), "node": (self.node, "world")}
        if isinstance(where, Pod):
            netns, cgroup = where.netns, where.cgroup
        else:
            netns, cgroup = places[where][0], self.cgroup / places[where][1]
        command = (sys.executable, "-I", "-S", "-c", code, address, str(port))
        process = self.spawn(netns, cgroup, *command)
        out, _ = process.communicate(timeout=15)
        self._processes.remove(process)
        return out.strip()

    def kill(self, process: subprocess.Popen[str], number: int = signal.SIGKILL) -> int:
        if process.poll() is None:
            process.send_signal(number)
        code = process.wait(10)
        if process in self._processes:
            self._processes.remove(process)
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        return code

    # ---- looking ------------------------------------------------------------------------------

    def mark(self, pod: Pod) -> str:
        """Give the redirection annotation of a pod's merged object."""
        found = self.store.get("Pod", "mesh", pod.name) or {}
        annotations = (found.get("metadata") or {}).get("annotations") or {}
        return str(annotations.get(ANNOTATION_REDIRECTION, ""))

    def condition(self, pod: Pod) -> dict[str, str]:
        found = self.store.get("Pod", "mesh", pod.name) or {}
        conditions = (found.get("status") or {}).get("conditions") or []
        return next((c for c in conditions if c["type"] == CONDITION), {})

    def enrolled(self, *pods: Pod) -> None:
        for pod in pods:
            until(
                lambda pod=pod: self.mark(pod) == "enabled",
                f"{pod.name} enabled",
                20,
                lambda pod=pod: f"it says {self.condition(pod)}\n{self.log()[-3000:]}",
            )

    def fetch(self, port: int, path: str) -> str:
        """GET a page of the agent, from within the node's namespace."""
        code = (
            "import sys,urllib.request;"
            "print(urllib.request.urlopen(sys.argv[1],timeout=3).read().decode())"
        )
        return run(
            *("nsenter", f"--net=/run/netns/{self.node}"),
            *(sys.executable, "-c", code, f"http://127.0.0.1:{port}{path}"),
        )

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def holder_pids(self) -> list[int]:
        """Give the pids of descriptor holders in the agent's cgroup."""
        found = []
        for text in (self.cgroup / "system/agent/cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                if "holder.py" in Path(f"/proc/{text}/cmdline").read_text():
                    found.append(int(text))
        return found

    def destroy(self) -> None:
        for process in list(self._processes):
            self.kill(process)
        for procs in self.cgroup.rglob("cgroup.procs"):
            for pid in procs.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for name in self._netns:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        shutil.rmtree(self.pins, ignore_errors=True)
        folders = sorted((p for p in self.cgroup.rglob("*") if p.is_dir()), reverse=True)
        for folder in [*folders, self.cgroup]:
            with contextlib.suppress(OSError):
                until(lambda folder=folder: _rmdir(folder), f"rmdir {folder}", 5)


def _rmdir(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def rig(folder: Path) -> Iterator[Rig]:
    made = Rig(folder)
    try:
        made.build()
        yield made
    finally:
        made.destroy()
