"""One pod on its node: sandbox, enrolment, containers, probes, status, end.

Driven by tick() from the manager's one thread; nothing here waits.
"""

from __future__ import annotations

import datetime
import enum
import json
import logging
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lab import cgroups, netns, network, probes, services
from lab.errors import LabError
from lab.layout import DNS_VIP, NETNS, Layout, NodeAddress
from lab.place import Place, etc_files, pod_place, write_etc
from lab.process import Process
from lab.volumes import Volumes
from lab.workloads import namespace_of
from mesh.ports import ANNOTATION_REDIRECTION
from mesh.store import FolderStore

log = logging.getLogger(__name__)

Object = dict[str, Any]

MANAGER: Final = "kubelet"
_GRACE: Final = 30.0  # seconds between SIGTERM and SIGKILL, Kubernetes' default
_NAG: Final = 5.0  # seconds between two log lines about a pod that waits for the mesh
# Without a readiness probe a container is ready once it has lived this long (seconds): what ends
# at once was never ready.
_STEADY: Final = 0.3


class Phase(enum.Enum):
    """Where a pod is in its life."""

    NEW = "new"
    CAPTURE = "waiting for the mesh"
    INIT = "running its init containers"
    RUN = "running"
    DONE = "done"  # containers ran to their end and are not started again
    STOP = "stopping"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Node:
    """A node as its pods need it."""

    name: str
    address: NodeAddress
    cgroup: Path
    prober: probes.Prober


@dataclass(slots=True)
class Kubelet:
    """What all pods of a lab share."""

    layout: Layout
    store: FolderStore
    volumes: Volumes
    wants: Callable[[Object], bool]  # does the mesh want this pod captured
    wake: Callable[[], None]


@dataclass(slots=True)
class PodRunner:
    """One pod's life. `number` is its place in its node's address range."""

    kubelet: Kubelet
    node: Node
    pod: Object
    number: int
    phase: Phase = Phase.NEW
    why: str = ""  # it is not ready
    started: str = ""
    processes: list[Process] = field(default_factory=list)
    watches: list[tuple[Process, probes.Watch]] = field(default_factory=list)
    inits: list[Process] = field(default_factory=list)
    _now: float = 0.0  # of the last tick
    _said_ready: bool = False  # by the last report
    _deadline: float = 0.0  # of the phase STOP
    _nag: float = 0.0

    @property
    def uid(self) -> str:
        """The pod's uid."""
        return str(self.pod["metadata"]["uid"])

    @property
    def key(self) -> str:
        """NS/NAME."""
        return f"{namespace_of(self.pod)}/{self.pod['metadata']['name']}"

    @property
    def host_network(self) -> bool:
        """Whether it lives in its node's namespace."""
        return bool(self.pod["spec"].get("hostNetwork"))

    @property
    def netns(self) -> str:
        """Its network namespace's name."""
        layout = self.kubelet.layout
        if self.host_network:
            return layout.node_netns(self.node.name)
        return layout.pod_netns(namespace_of(self.pod), self.pod["metadata"]["name"])

    @property
    def cgroup(self) -> Path:
        """Its control group."""
        return self.node.cgroup / "pods" / self.uid

    @property
    def addresses(self) -> list[str]:
        """Its addresses, IPv4 first."""
        address = self.node.address
        if self.host_network:
            return [address.v4, address.v6]
        return [address.pod_v4(self.number), address.pod_v6(self.number)]

    def place(self) -> Place:
        """Where its processes run."""
        layout, root = self.kubelet.layout, self.node.cgroup.parent
        return pod_place(layout, root, self.pod, self.node.address.v4, self.addresses[0])

    # ---- life --------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what can be done now."""
        self._now = now
        if self.phase is Phase.NEW:
            self._make_sandbox()
        if self.phase is Phase.CAPTURE and self._captured(now):
            self.inits = [self._process(c, init=True) for c in self._inits()]
            self.phase, self.why = Phase.INIT, ""
        if self.phase is Phase.INIT and self._initialised(now):
            self._start(now)
        if self.phase is Phase.RUN:
            self._tend(now)
        elif self.phase is Phase.STOP:
            self._end(now)

    def due(self) -> float | None:
        """When the next tick has something to do, None when only an event does."""
        if self.phase is Phase.STOP:
            return self._deadline
        if self.phase is Phase.INIT:
            # Those after the first unfinished one wait for it.
            unfinished = [p.due for p in self.inits if not p.ended]
            return unfinished[0] if unfinished else None
        times = [p.due for p in self.processes if p.due is not None]
        times += [t for p in self.processes if (t := p.started_at + _STEADY) > self._now]
        times += [w.due for p, w in self.watches if p.running and w.idle]
        return min(times, default=None)

    def stop(self, now: float) -> None:
        """Begin its end."""
        if self.phase in (Phase.STOP, Phase.GONE):
            return
        grace = self.pod["spec"].get("terminationGracePeriodSeconds")
        self._deadline = now + (_GRACE if grace is None else float(grace))
        self.phase = Phase.STOP
        for process in self._all():
            process.stop(signal.SIGTERM)

    def _all(self) -> list[Process]:
        return [*self.inits, *self.processes]

    def update(self, pod: Object) -> None:
        """Take note of the object's present form (labels, annotations)."""
        self.pod = pod

    def _make_sandbox(self) -> None:
        layout, meta = self.kubelet.layout, self.pod["metadata"]
        if not self.host_network:
            network.make_pod(layout, self.node.name, self.node.address, self.netns, self.number)
        cgroups.make(self.cgroup)
        spec = self.pod["spec"]
        write_etc(
            etc_files(layout, self.uid),
            services.resolv_conf(namespace_of(self.pod), DNS_VIP),
            services.hosts(meta["name"], self.addresses, spec.get("hostAliases") or ()),
        )
        self.kubelet.volumes.project(self.pod, self._now)
        self.started = _now()
        self.phase, self.why = Phase.CAPTURE, "waiting for the mesh to capture it"
        self.report()
        if not self.host_network:
            self._write_runtime_file()

    def _write_runtime_file(self) -> None:
        """Tell the agent, as a container runtime tells a CNI plugin."""
        ports = {w.port() for c in self._containers() for w in probes.of_container(c)}
        path = self.kubelet.layout.runtime(self.node.name) / f"{self.uid}.json"
        content = {
            "uid": self.uid,
            "namespace": namespace_of(self.pod),
            "name": self.pod["metadata"]["name"],
            "service_account": self.pod["spec"].get("serviceAccountName") or "default",
            "netns": str(NETNS / self.netns),
            "cgroup": str(self.cgroup),
            "addresses": self.addresses,
            "probe_ports": sorted(p for p in ports if p is not None),
        }
        tmp = path.with_name(f".{path.name}")
        tmp.write_text(json.dumps(content))
        tmp.rename(path)

    def _captured(self, now: float) -> bool:
        """Say whether its first process may run: nobody's traffic goes past the mesh."""
        if not self.kubelet.wants(self.pod):
            return True
        annotations = self.pod["metadata"].get("annotations") or {}
        if annotations.get(ANNOTATION_REDIRECTION) == "enabled":
            return True
        if now >= self._nag:
            if self._nag:
                log.warning(
                    "pod %s: %s (see the log of agent/%s)", self.key, self.why, self.node.name
                )
            self._nag = now + _NAG
        return False

    def _containers(self) -> list[Object]:
        return list(self.pod["spec"].get("containers") or [])

    def _inits(self) -> list[Object]:
        return list(self.pod["spec"].get("initContainers") or [])

    def _process(self, container: Object, init: bool = False) -> Process:
        policy = self.pod["spec"].get("restartPolicy", "Always")
        if init and policy == "Always":
            policy = "OnFailure"  # it has to succeed, once
        return Process(
            name=f"{self.key} {container.get('name', '')}".rstrip(),
            argv=lambda: self._argv(container),
            log=self.kubelet.layout.log(self.key),
            sweep=cgroups.make(self._container_cgroup(container)),
            restart=_RESTART.get(policy, _RESTART["Always"]),
        )

    def _initialised(self, now: float) -> bool:
        """Run the init containers, one after the other; True when all have succeeded."""
        for process in self.inits:
            if process.tick(now):
                self.why = f"{process.name}: init container, "
                self.why += "running" if process.running else f"exit code {process.exit_code}"
                self.report()
            if not process.ended:
                return False
            if process.exit_code:
                self.phase = Phase.DONE
                self.report()
                return False
        return True

    def _start(self, now: float) -> None:
        for container in self._containers():
            process = self._process(container)
            self.processes.append(process)
            for probe in probes.of_container(container):
                self.watches.append((process, probes.Watch(probe, now + probe.delay)))
        self.phase, self.why = Phase.RUN, "starting"

    def _container_cgroup(self, container: Object) -> Path:
        return self.cgroup / f"c-{container.get('name', 'app')}"

    def _argv(self, container: Object) -> list[str]:
        place = self.place()
        env = dict(place.env)
        for entry in container.get("env") or []:
            env[entry["name"]] = _expand(_value(entry, self.pod, self), env)
        command = [*(container.get("command") or []), *(container.get("args") or [])]
        inner = Place(self._container_cgroup(container), place.netns, place.mounts, place.env)
        return inner.argv(
            [_expand(word, env) for word in command],
            env=env,
            cwd=container.get("workingDir"),
            detached=True,
        )

    def _tend(self, now: float) -> None:
        changed = False
        for process in self.processes:
            was = process.running
            if process.tick(now):
                changed = True
                if process.running and not was:
                    self._reset_probes(process, now)
        for process, watch in self.watches:
            if process.running:
                place = self.place()
                address = self.addresses[0]
                changed |= watch.tick(now, self.node.prober, address, place, self.kubelet.wake)
                if watch.ok is False and watch.probe.kind == "liveness":
                    log.warning("%s: liveness probe failed: %s", process.name, watch.message)
                    watch.ok = None
                    process.bounce(kill=False)
        if self.processes and all(p.ended for p in self.processes):
            self.phase = Phase.DONE
            changed = True
        if changed or self.ready() != self._said_ready:
            self.report()

    def _reset_probes(self, process: Process, now: float) -> None:
        for i, (owner, watch) in enumerate(self.watches):
            if owner is process:
                fresh = probes.Watch(watch.probe, now + watch.probe.delay)
                self.watches[i] = (owner, fresh)

    def _end(self, now: float) -> None:
        for process in self._all():
            process.tick(now)
        if any(p.running for p in self._all()):
            if now < self._deadline:
                return
            for process in self._all():
                process.stop(signal.SIGKILL)
            cgroups.kill(self.cgroup)
            for process in self._all():
                process.tick(now)
        layout = self.kubelet.layout
        (layout.runtime(self.node.name) / f"{self.uid}.json").unlink(missing_ok=True)
        cgroups.remove(self.cgroup)
        if not self.host_network:
            netns.delete([self.netns])
        shutil.rmtree(layout.etc / self.uid, ignore_errors=True)
        self.kubelet.volumes.remove(self.pod)
        self.phase = Phase.GONE

    # ---- status ------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Say whether it serves; `why` says what is missing."""
        if self.phase is not Phase.RUN:
            self.why = self.why or self.phase.value
            return False
        for process in self.processes:
            if not process.running:
                self.why = f"{process.name}: exit code {process.exit_code}"
                return False
            if self._now - process.started_at < _STEADY and not self._probed(process):
                self.why = f"{process.name}: just started"
                return False
        for process, watch in self.watches:
            if watch.probe.kind == "readiness" and not watch.ok:
                self.why = f"{process.name}: readiness probe: {watch.message}"
                return False
        self.why = ""
        return True

    def _probed(self, process: Process) -> bool:
        """Say whether a readiness probe tells when it is ready."""
        return any(p is process and w.probe.kind == "readiness" for p, w in self.watches)

    def _phase(self) -> str:
        if self.phase is Phase.DONE:
            return "Failed" if any(p.exit_code for p in self._all()) else "Succeeded"
        return "Running" if self.phase in (Phase.RUN, Phase.STOP) else "Pending"

    def report(self) -> None:
        """Write the status, as field manager `kubelet`."""
        ready = self._said_ready = self.ready()
        node, meta = self.node.address, self.pod["metadata"]
        condition: Object = {"type": "Ready", "status": "True" if ready else "False"}
        if not ready:
            condition |= {"reason": "ContainersNotReady", "message": self.why}
        status = {
            "phase": self._phase(),
            "podIP": self.addresses[0],
            "podIPs": [{"ip": a} for a in self.addresses],
            "hostIP": node.v4,
            "hostIPs": [{"ip": node.v4}, {"ip": node.v6}],
            "startTime": self.started,
            "conditions": [{"type": "PodScheduled", "status": "True"}, condition],
            "containerStatuses": [
                {
                    "name": str(c.get("name", "")),
                    "ready": ready,
                    "restartCount": p.restarts,
                    "state": _state(p),
                }
                for c, p in zip(self._containers(), self.processes, strict=False)
            ],
        }
        self.kubelet.store.patch(
            "Pod", namespace_of(self.pod), meta["name"], MANAGER, {"status": status}
        )


_RESTART: Final[dict[str, Callable[[int], bool]]] = {
    "Always": lambda code: True,
    "OnFailure": lambda code: code != 0,
    "Never": lambda code: False,
}


def _state(process: Process) -> Object:
    if process.running:
        return {"running": {}}
    if process.exit_code is None:
        return {"waiting": {"reason": "ContainerCreating"}}
    return {"terminated": {"exitCode": process.exit_code}}


def _expand(word: str, env: dict[str, str]) -> str:
    """Replace $(NAME) as Kubernetes does; unknown names stay."""
    for name, text in env.items():
        word = word.replace(f"$({name})", text)
    return word


def _value(entry: Object, pod: Object, runner: PodRunner) -> str:
    """Read one env entry; the downward API's common fields."""
    path = ((entry.get("valueFrom") or {}).get("fieldRef") or {}).get("fieldPath")
    if path is None:
        return str(entry.get("value") or "")
    known: dict[str, str] = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": namespace_of(pod),
        "metadata.uid": runner.uid,
        "spec.nodeName": runner.node.name,
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName") or "default",
        "status.podIP": runner.addresses[0],
        "status.hostIP": runner.node.address.v4,
    }
    if path not in known:
        raise LabError(f"Pod {runner.key}: env {entry['name']}: fieldPath {path} is not known here")
    return known[path]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
