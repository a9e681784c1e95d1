"""`Lab`: a lab brought up, used and taken down from Python; the commands are thin over it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from lab import cgroups, cleanup, host, netns, objects, readiness, workloads
from lab.components import Settings, check_binary
from lab.errors import LabError
from lab.layout import NETNS, Layout, check_name
from lab.page import get_page
from lab.place import PROJECT, Place, etc_files, pod_place
from mesh.errors import NotFound
from mesh.store import FolderStore

Object = dict[str, Any]
Sources = Iterable[Path | str | Object]
Progress = Callable[[str], None]

_NODES: Final = ("node1", "node2")  # where the objects name none
_TURN: Final = 0.25  # seconds between two looks at what is missing
_ENDING: Final = 5.0  # seconds a lab may take to end, or to begin to answer
_TAIL: Final = 15  # lines of a log shown with a failure


class Lab:
    """The lab `name`.

    As a context manager it is taken down at the end, and ends with this process however that
    ends. Otherwise it goes on by itself once up() has succeeded.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        env: Mapping[str, Mapping[str, str]] | None = None,
        ztunnel_binary: str | None = None,
        redirect: str = "auto",
        mesh: bool = True,
    ) -> None:
        """Describe it; nothing happens yet.

        `env`: further environment by component (ztunnel, agent, control-plane).
        """
        self.layout = Layout(check_name(name))
        binary = check_binary(ztunnel_binary)
        self._settings = Settings(name, mesh, redirect, binary, env or {})
        self._opened: FolderStore | None = None
        self._scoped = False  # used as a context manager
        self._leash: int | None = None  # write end of a pipe: the lab ends when it closes
        self._built = False  # by this object: another's lab is not ours to take down at the end

    def __enter__(self) -> Lab:
        self._scoped = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._built:
            self.down()

    @property
    def name(self) -> str:
        """The lab's name."""
        return self.layout.name

    @property
    def state(self) -> Path:
        """Everything it keeps."""
        return self.layout.state

    @property
    def store(self) -> FolderStore:
        """Its objects; raises NotFound where there is no such lab."""
        if not self.layout.objects.is_dir():
            raise NotFound(f"no lab named {self.name!r}; see: ambit lab list, ambit lab up FILE...")
        if self._opened is None:
            self._opened = FolderStore(self.layout.objects)
        return self._opened

    # ---- life --------------------------------------------------------------------------------

    def up(
        self,
        sources: Sources,
        timeout: float = 60,
        *,
        replace: bool = False,
        progress: Progress = lambda line: None,
    ) -> None:
        """Build it and wait until all is ready and proved; LabError (and no lab) otherwise."""
        host.check()
        wanted = objects.read(sources)
        self._make_way(replace)
        host.prepare()
        self._built = True
        try:
            self._start(wanted)
            self.wait_ready(timeout, progress=progress)
        except BaseException:
            self.down()
            raise
        if not self._scoped and self._leash is not None:
            os.write(self._leash, b"g")  # go on alone
            self._drop_leash()

    def _drop_leash(self) -> None:
        if self._leash is not None:
            os.close(self._leash)
            self._leash = None

    def down(self) -> None:
        """Remove it and all it left, live or dead."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        cleanup.clean(self.layout)
        self._drop_leash()

    @property
    def live(self) -> bool:
        """Whether its manager runs."""
        return cleanup.is_live(self.layout)

    def _make_way(self, replace: bool) -> None:
        if self.live and not replace and not self._ending():
            raise LabError(
                f"lab {self.name!r} is up; take it down (ambit lab down --name {self.name}), "
                "replace it (--replace) or choose another --name"
            )
        self.down()

    def _ending(self) -> bool:
        """Say whether a lab that counts as live is about to be gone; one that is starting is not.

        A manager that ends answers no more, and its guard holds the lock until all is killed.
        """
        deadline = time.monotonic() + _ENDING
        while self.live and time.monotonic() < deadline:
            if "error" not in self._request({"do": "components"}):
                return False
            time.sleep(0.02)
        return not self.live

    def _start(self, wanted: list[Object]) -> None:
        layout = self.layout
        for folder in (layout.objects, layout.control_plane, layout.logs, layout.etc):
            folder.mkdir(parents=True)
        fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        leash, self._leash = os.pipe()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (layout.state / "lab.json").write_text(self._settings.dump())
            if not any(o["kind"] == "Node" for o in wanted):
                wanted = [*(_node(name) for name in _NODES), *wanted]
            for obj in wanted:
                objects.apply(self.store, obj)
            command = [sys.executable, "-m", "lab.manager", self.name]
            command += ["--lock-fd", str(fd), "--leash-fd", str(leash)]
            subprocess.run(command, pass_fds=[fd, leash], cwd=PROJECT, check=True)
        except (BlockingIOError, subprocess.CalledProcessError) as e:
            raise LabError(f"lab {self.name!r}: its manager could not be started: {e}") from e
        finally:
            os.close(fd)
            os.close(leash)

    def wait_ready(self, timeout: float = 60, *, progress: Progress = lambda line: None) -> None:
        """Wait until every pod is ready, and captured if it is to be; LabError says what is not."""
        deadline = time.monotonic() + timeout
        reported: set[str] = set()
        while True:
            everything = self.store.list()
            missing = readiness.waiting(everything, self._mesh())
            _report(everything, missing, reported, progress)
            if not missing and self.live and self._settle():
                return
            if not self.live:
                raise LabError(f"lab {self.name!r} has died\n{self._tail('manager')}")
            hopeless = [m for m in missing if m.hopeless]
            if hopeless or time.monotonic() > deadline:
                raise LabError(self._explain(hopeless or missing, timeout, bool(hopeless)))
            self.store.watch(_TURN)

    def _mesh(self) -> bool:
        with contextlib.suppress(OSError):
            return Settings.load((self.state / "lab.json").read_text()).mesh
        return self._settings.mesh

    def _settle(self) -> bool:
        """Have the manager bring names and rules in line with what was just seen."""
        return "error" not in self._request({"do": "settle"})

    def _explain(self, missing: list[readiness.Waiting], timeout: float, hopeless: bool) -> str:
        head = "" if hopeless else f"not ready within {timeout:.0f} s:\n"
        lines = [f"{m.what}: {m.why}" for m in missing[:10]]
        if len(missing) > 10:
            lines.append(f"and {len(missing) - 10} more")
        logs = [m.log for m in missing if m.log]
        tail = f"\n{self._tail(logs[0])}" if logs else ""
        return head + "\n".join(lines) + tail

    def _tail(self, what: str) -> str:
        path = self.layout.log(what)
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()[-_TAIL:]
            if lines:
                return f"last lines of the log of {what}:\n  " + "\n  ".join(lines)
        return f"the log of {what} is empty"

    # ---- objects -----------------------------------------------------------------------------

    def apply(self, sources: Sources) -> list[str]:
        """Create or change objects; says for each what happened."""
        store = self.store
        return [f"{label(o)} {objects.apply(store, o)}" for o in objects.read(sources)]

    def delete(self, sources: Sources) -> list[str]:
        """Delete objects named in files or given; says for each what happened."""
        lines = []
        for obj in objects.read(sources):
            meta = obj["metadata"]
            gone = self.store.delete(obj["kind"], meta.get("namespace"), meta["name"])
            lines.append(f"{label(obj)} {'deleted' if gone else 'was not there'}")
        return lines

    def get(self, kind: str, namespace: str | None, name: str) -> Object:
        """Return an object with its status; raises NotFound."""
        found = self.store.get(kind, namespace or None, name)
        if found is None:
            have = [label(o) for o in self.store.list(kind)]
            there = f"there are: {', '.join(have[:20])}" if have else f"there is no {kind}"
            raise NotFound(f"no {kind} {namespace + '/' if namespace else ''}{name} ({there})")
        return found

    def pods(self) -> list[Object]:
        """Return the pods with their status, the mesh's and the cluster's own left out."""
        return [p for p in self.store.list("Pod") if not workloads.is_static(p)]

    def label(
        self, kind: str, namespace: str | None, name: str, labels: Mapping[str, str | None]
    ) -> None:
        """Set labels of an object; None removes one."""
        self.get(kind, namespace, name)
        obj = self.store.as_written(kind, namespace or None, name) or {}
        present = {**(obj["metadata"].get("labels") or {}), **labels}
        obj["metadata"]["labels"] = {k: v for k, v in present.items() if v is not None}
        self.store.apply(obj)

    def scale(self, namespace: str | None, name: str, replicas: int) -> None:
        """Change how many pods a Deployment has."""
        self.get("Deployment", namespace, name)
        obj = self.store.as_written("Deployment", namespace or None, name) or {}
        obj["spec"]["replicas"] = replicas
        self.store.apply(obj)

    # ---- pods and nodes ----------------------------------------------------------------------

    def pod(self, who: str) -> Object:
        """Find NS/POD, or a ready pod of the Deployment NS/NAME; raises NotFound."""
        namespace, slash, name = who.partition("/")
        if not slash:
            namespace, name = "default", who
        everything = [p for p in self.pods() if workloads.namespace_of(p) == namespace]
        for pod in everything:
            if pod["metadata"]["name"] == name:
                return pod
        own = [p for p in everything if workloads.owner(p) == name]
        ready = [p for p in own if readiness.condition(p, "Ready").get("status") == "True"]
        if own:
            return (ready or own)[0]
        have = ", ".join(sorted(p["metadata"]["name"] for p in everything)) or "none"
        raise NotFound(f"no pod {namespace}/{name}; pods in {namespace}: {have}")

    def place(self, who: str) -> Place:
        """Say where the processes of NS/POD run; raises LabError while it has no sandbox."""
        pod = self.pod(who)
        status, root = pod.get("status") or {}, host.cgroup_root() / "ambit" / self.name
        if not status.get("podIP") or not status.get("hostIP"):
            why = readiness.condition(pod, "PodScheduled").get("message", "not started yet")
            raise LabError(f"pod {who} has no sandbox: {why}")
        place = pod_place(self.layout, root, pod, status["hostIP"], status["podIP"])
        if not place.cgroup.is_dir():
            raise LabError(f"pod {who} is gone or not started yet; see: ambit lab get pods -A")
        return place

    def node_place(self, node: str) -> Place:
        """Say where tools that look at a node run; raises NotFound."""
        path = NETNS / self.layout.node_netns(node)
        if not path.exists():
            have = ", ".join(o["metadata"]["name"] for o in self.store.list("Node"))
            raise NotFound(f"no node {node!r} in lab {self.name!r}; there are: {have}")
        group = cgroups.make(host.cgroup_root() / "ambit" / self.name / "_cp" / "tools")
        return Place(group, path, etc_files(self.layout, f"node-{node}"))

    def exec(
        self,
        who: str,
        argv: Sequence[str],
        input: str | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a pod; its exit code is not judged."""
        stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(
            self.place(who).argv(argv),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **stdin,
        )
        return subprocess.CompletedProcess([who, *argv], done.returncode, done.stdout, done.stderr)

    def popen(self, who: str, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command in a pod, with pipes."""
        return subprocess.Popen(
            self.place(who).argv(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def capture_argv(self, node: str, argv: Sequence[str]) -> list[str]:
        """Build the command that runs tcpdump on a node."""
        return self.node_place(node).argv(["tcpdump", "-l", "--immediate-mode", *argv])

    def capture(self, node: str, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start tcpdump on a node; it listens when this returns. Raises LabError when it ends."""
        process = subprocess.Popen(
            self.capture_argv(node, argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        said = b""
        deadline = time.monotonic() + 10
        while b"listening on" not in said:
            # Past the file's buffer: what that holds back, select does not see.
            fd = process.stderr.fileno()
            ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(fd, 4096) if ready else b""
            if not chunk:
                process.kill()
                process.wait()
                raise LabError(f"tcpdump on {node} does not start: {said.decode().strip()}")
            said += chunk
        return process

    def logs(self, what: str) -> str:
        """Return the log of a component or of NS/POD."""
        return self.log_file(what).read_text(errors="replace")

    def log_file(self, what: str) -> Path:
        """Find the log of a component or of NS/POD; raises NotFound."""
        path = self.layout.log(what)
        if not path.exists() and "/" in what:
            with contextlib.suppress(NotFound):
                meta = self.pod(what)["metadata"]
                path = self.layout.log(f"{meta.get('namespace', 'default')}/{meta['name']}")
        if not path.exists():
            have = sorted(p.stem for p in self.layout.logs.glob("*.log"))
            raise NotFound(f"no log of {what}; there are: {', '.join(have) or 'none'}")
        return path

    def fetch(self, node: str, port: int, path: str) -> str:
        """Fetch a page from a node's loopback."""
        where = self.node_place(node).netns
        assert where is not None
        return netns.inside(where, lambda: get_page(port, path)).decode(errors="replace")

    # ---- components --------------------------------------------------------------------------

    def components(self) -> dict[str, Any]:
        """Return {name: {"pid", "ready", "restarts"}} of the mesh's processes."""
        return self._asked({"do": "components"})

    def restart(self, component: str, kill: bool = False) -> int:
        """End a component (SIGTERM, or SIGKILL) and return the pid of its successor."""
        return int(self._asked({"do": "restart", "component": component, "kill": kill})["pid"])

    def _asked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._request(request)
        if "error" in answer:
            raise LabError(str(answer["error"]))
        return answer

    def _request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(90)
            try:
                sock.connect(str(self.layout.socket))
                sock.sendall(json.dumps(request).encode())
                answer = sock.makefile("rb").readline()
                return dict(json.loads(answer))
            except (OSError, ValueError) as e:
                return {"error": f"the manager of lab {self.name!r} does not answer: {e}"}


def label(obj: Object) -> str:
    """Name an object as kubectl does: kind/name."""
    namespace = obj["metadata"].get("namespace")
    return f"{obj['kind'].lower()}/{namespace + '/' if namespace else ''}{obj['metadata']['name']}"


def _node(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def _report(
    everything: list[Object],
    missing: list[readiness.Waiting],
    reported: set[str],
    progress: Progress,
) -> None:
    """Say which pods have become ready since the last time."""
    waiting_for = {m.what for m in missing}
    for pod in everything:
        if pod["kind"] != "Pod" or workloads.is_static(pod):
            continue
        what = f"pod {workloads.namespace_of(pod)}/{pod['metadata']['name']}"
        if what not in waiting_for and what not in reported:
            reported.add(what)
            proved = ", captured and proved" if readiness.enrolled(pod) else ""
            progress(f"{what} ready on {pod['spec'].get('nodeName')}{proved}")
