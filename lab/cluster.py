"""The lab's moving state: nodes, pods, components; brought in line with the objects by tick()."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from lab import (
    cgroups,
    components,
    gateways,
    host,
    netns,
    network,
    objects,
    own,
    services,
    shapes,
    tokens,
    workloads,
)
from lab.components import Component, Settings, Tokens
from lab.errors import LabError
from lab.kubelet import MANAGER, Kubelet, Node, Phase, PodRunner
from lab.layout import (
    CP_V4,
    CP_V6,
    DNS_NAMESPACE,
    DNS_VIP,
    MAX_NODES,
    MAX_PODS,
    NETNS,
    Layout,
    NodeAddress,
)
from lab.place import etc_files, write_etc
from lab.probes import Prober
from lab.volumes import Volumes
from lab.workloads import is_static, is_terminal, namespace_of
from mesh.enrolment import wants
from mesh.errors import MeshError
from mesh.manifest import CLUSTER_SCOPED
from mesh.ports import ROOT_NAMESPACE
from mesh.store import FolderStore

log = logging.getLogger(__name__)

Object = dict[str, Any]

# Kinds whose objects the cluster gives an identity; others belong to whoever reads them.
_OWN: Final = ("Namespace", "Node", "ServiceAccount", "Pod", "Deployment", "Service")
_COPIED: Final = "lab.ambit.io/copied"  # annotation: there is a copy in a file of the user's own
_SAME_LOG: Final = 10.0  # seconds between two equal complaints


class Cluster:
    """Everything the manager runs. One thread."""

    def __init__(self, layout: Layout, settings: Settings, wake: Callable[[], None]) -> None:
        """Make the fabric and start what every lab has."""
        self.layout = layout
        self.settings = settings
        self.store = FolderStore(layout.objects)
        self._wake = wake
        self._cgroup = cgroups.make(host.cgroup_root() / "ambit" / layout.name)
        self._nodes: dict[str, Node] = {}
        self._pods: dict[str, PodRunner] = {}  # by uid
        self.components: dict[str, Component] = {}
        self._namespaces: set[str] = set()  # seen
        self._numbers: dict[str, int] = {}  # last pod number given out, by node
        self._rules: dict[str, str] = {}  # loaded in a node
        self._names: str | None = None
        self._dice = random.Random()
        self._complaints: dict[str, float] = {}
        self._by_key: dict[tuple[str, str, str], Object] = {}
        self._tokens = Tokens(layout)
        self._volumes = Volumes(layout, self._tokens.key, self._uid)
        self._kubelet = Kubelet(layout, self.store, self._volumes, self._wants, wake)
        network.make_fabric(layout)
        self._prober = Prober(NETNS / layout.control_plane_netns)
        self._start_shared()

    def _start_shared(self) -> None:
        components.dns_hosts(self.layout).write_text("")
        self._add(components.dns(self.layout, self._cgroup))
        self.store.apply(own.dns_service())
        self.store.apply(own.static_pod(DNS_NAMESPACE, "cluster-dns", "", "default"))
        self._say_static(DNS_NAMESPACE, "cluster-dns", [CP_V4, CP_V6], True)
        if self.settings.mesh:
            self._add(
                components.control_plane(self.layout, self.settings, self._cgroup, self._prober)
            )

    def _add(self, component: Component) -> None:
        self.components[component.name] = component

    # ---- one turn ----------------------------------------------------------------------------

    def tick(self, changed: bool) -> None:
        """Do what can be done now; `changed`: the objects may have."""
        now = time.monotonic()
        self._tick_components(now)
        if changed:
            self._reconcile(now)
        self._tick_pods(now)
        if changed:
            self._publish()

    def due(self) -> float:
        """When the next turn is needed at the latest (monotonic)."""
        times = [time.monotonic() + 5.0]
        times += [t for c in self.components.values() if (t := c.due()) is not None]
        times += [t for p in self._pods.values() if (t := p.due()) is not None]
        times += [t for k in (self._tokens, self._volumes) if (t := k.due()) is not None]
        return min(times)

    def _reconcile(self, now: float) -> None:
        self._collect(self.store.list())
        for obj in workloads.implied(self.store.list()):
            self.store.apply(obj)
        for obj in self._sound():
            if obj["kind"] in _OWN and "uid" not in obj["metadata"]:
                self._rewrite(obj)
        if self.settings.mesh:
            self._make_waypoints()
        everything = self._sound()
        self._complete_services([o for o in everything if o["kind"] == "Service"])
        for kind, bring_in_line in (
            ("Node", self._ensure_node),
            ("Deployment", self._roll),
        ):
            for obj in [o for o in everything if o["kind"] == kind]:
                with self._spared(f"{kind} {obj['metadata']['name']}"):
                    bring_in_line(obj, everything)
        everything = self._sound()
        self._by_key = {_key(o): o for o in everything}
        self._adopt_pods([o for o in everything if o["kind"] == "Pod"], now)
        self._namespaces |= self._alive(everything)

    def _sound(self) -> list[Object]:
        """List the objects that can be worked with; of others it is said why not."""
        found = []
        for obj in self.store.list():
            if wrong := shapes.problem(obj):
                meta = obj["metadata"]
                where = f"{obj['kind']} {meta.get('namespace', '')}/{meta['name']}"
                self._complain(f"{where} is left alone: {wrong}")
            else:
                found.append(obj)
        return found

    def _make_waypoints(self) -> None:
        """Make what Gateways stand for, as the control plane does in a cluster."""
        env = self.settings.env.get(gateways.COMPONENT, {})
        plan = gateways.plan(self._sound(), gateways.runtime(self.layout, env))
        for problem in plan.problems:
            self._complain(problem)
        for obj in plan.delete:
            self.store.delete(obj["kind"], namespace_of(obj), obj["metadata"]["name"])
        for obj in plan.apply:
            with self._spared(f"{obj['kind']} {obj['metadata']['name']}"):
                objects.apply(self.store, obj)

    @staticmethod
    def _alive(everything: list[Object]) -> set[str]:
        return {o["metadata"]["name"] for o in everything if o["kind"] == "Namespace"}

    def _collect(self, everything: list[Object]) -> None:
        """Delete what a deleted owner leaves behind: a namespace's objects, a Deployment's pods."""
        gone = self._namespaces - self._alive(everything)
        doomed = [
            o
            for o in everything
            if o["kind"] not in CLUSTER_SCOPED and o["metadata"].get("namespace") in gone
        ]
        orphans = workloads.orphans(everything)
        for obj in [*doomed, *orphans, *filter(self._file_gone, everything)]:
            self.store.delete(obj["kind"], namespace_of(obj), obj["metadata"]["name"])
        self._namespaces -= gone

    def _rewrite(self, obj: Object, **spec: Any) -> None:
        """Write what the cluster fills in: identity, and fields of spec.

        Of an object in a file of the user's own this makes a second, later copy, which goes when
        the user's does.
        """
        kind, meta = obj["kind"], obj["metadata"]
        args = (kind, meta.get("namespace"), meta["name"])
        new = self.store.as_written(*args)
        if new is None:
            return
        if any(not f.startswith(f"{kind}.") for f in self.store.files_of(*args)):
            new["metadata"].setdefault("annotations", {})[_COPIED] = "true"
        if spec:
            new["spec"] = {**(new.get("spec") or {}), **spec}
        self.store.apply(new)

    def _file_gone(self, obj: Object) -> bool:
        """Say whether only our copy is left of an object from a user's own file."""
        kind, meta = obj["kind"], obj["metadata"]
        if _COPIED not in (meta.get("annotations") or {}):
            return False
        files = self.store.files_of(kind, meta.get("namespace"), meta["name"])
        return all(f.startswith(f"{kind}.") for f in files)

    @contextlib.contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        """Log what goes wrong with one object: it must not end everybody's lab."""
        try:
            yield
        except (MeshError, OSError) as e:
            self._complain(f"{what}: {e}")

    def _complain(self, what: str) -> None:
        now = time.monotonic()
        if now - self._complaints.get(what, -_SAME_LOG) >= _SAME_LOG:
            self._complaints[what] = now
            log.error("%s", what)

    # ---- nodes -------------------------------------------------------------------------------

    def _ensure_node(self, obj: Object, everything: list[Object]) -> None:
        name = obj["metadata"]["name"]
        if name in self._nodes:
            return
        if len(self._nodes) >= MAX_NODES:
            self._complain(f"Node {name}: a lab holds {MAX_NODES} nodes; this one is ignored")
            return
        layout, address = self.layout, NodeAddress(len(self._nodes) + 1)
        network.make_node(layout, name, address)
        cgroup = cgroups.make(self._cgroup / name)
        layout.runtime(name).mkdir(parents=True, exist_ok=True)
        (layout.node(name) / "agent").mkdir(mode=0o700, exist_ok=True)
        files = etc_files(layout, f"node-{name}")
        resolv = services.resolv_conf(ROOT_NAMESPACE, DNS_VIP)
        write_etc(files, resolv, services.hosts(name, [address.v4, address.v6]))
        node = Node(name, address, cgroup, Prober(NETNS / layout.node_netns(name)))
        self._nodes[name] = node
        network.connect_nodes(layout, {n.name: n.address for n in self._nodes.values()})
        self.store.patch("Node", None, name, MANAGER, own.node_status(name, address))
        if self.settings.mesh:
            self._start_node(node)
        log.info("node %s: %s, pods %s", name, address.v4, address.pods_v4)

    def _start_node(self, node: Node) -> None:
        args = (self.layout, self.settings, node.name, node.address, node.cgroup, node.prober)
        for part, account in components.ACCOUNTS.items():
            self.store.apply(own.make("ServiceAccount", ROOT_NAMESPACE, account))
            pod = f"{account}-{node.name}"
            self.store.apply(own.static_pod(ROOT_NAMESPACE, pod, node.name, account))
            self._say_static(ROOT_NAMESPACE, pod, [node.address.v4, node.address.v6], False)
            self._add(components.ztunnel(*args) if part == "ztunnel" else components.agent(*args))
        self._tick_tokens(time.monotonic())

    def _tick_tokens(self, now: float) -> None:
        subjects = {}
        for node in self._nodes:
            name = f"{components.ACCOUNTS['ztunnel']}-{node}"
            subjects[node] = tokens.Subject(
                namespace=ROOT_NAMESPACE,
                service_account=components.ACCOUNTS["ztunnel"],
                service_account_uid=self._uid(
                    "ServiceAccount", ROOT_NAMESPACE, components.ACCOUNTS["ztunnel"]
                ),
                pod=name,
                pod_uid=self._uid("Pod", ROOT_NAMESPACE, name),
                node=node,
                node_uid=self._uid("Node", None, node),
            )
        self._tokens.tick(now, subjects)

    def _uid(self, kind: str, namespace: str | None, name: str) -> str:
        return str((self.store.get(kind, namespace, name) or {}).get("metadata", {}).get("uid"))

    # ---- components --------------------------------------------------------------------------

    def _tick_components(self, now: float) -> None:
        if (due := self._tokens.due()) is not None and now >= due:
            self._tick_tokens(now)
        self._volumes.tick(now, (r.pod for r in self._pods.values()))
        for name, component in self.components.items():
            if component.tick(now, self._wake):
                self.say_component(name)

    def say_component(self, name: str) -> None:
        """Write a component's readiness to the Pod object that stands for it."""
        part, _, node = name.partition("/")
        if part in components.ACCOUNTS and node in self._nodes:
            address, component = self._nodes[node].address, self.components[name]
            pod = f"{components.ACCOUNTS[part]}-{node}"
            why = component.watch.message if component.watch else ""
            restarts = component.process.restarts
            self._say_static(
                ROOT_NAMESPACE, pod, [address.v4, address.v6], component.ready, why, restarts
            )

    def _say_static(
        self,
        namespace: str,
        name: str,
        addresses: list[str],
        ready: bool,
        why: str = "starting",
        restarts: int = 0,
    ) -> None:
        status = own.static_status(addresses, ready, why, restarts)
        self.store.patch("Pod", namespace, name, MANAGER, {"status": status})

    # ---- controllers -------------------------------------------------------------------------

    def _complete_services(self, found: list[Object]) -> None:
        taken = {address for service in found for address in services.addresses(service)}
        for service in found:
            with self._spared(f"Service {service['metadata']['name']}"):
                new = services.with_addresses(service, taken)
                if new is not None:
                    filled = ("clusterIP", "clusterIPs", "ipFamilies")
                    self._rewrite(service, **{key: new["spec"][key] for key in filled})
                    service["spec"] = new["spec"]
                    taken.update(services.addresses(new))

    def _roll(self, deployment: Object, everything: list[Object]) -> None:
        name, namespace = deployment["metadata"]["name"], namespace_of(deployment)
        own = [
            o
            for o in everything
            if o["kind"] == "Pod" and namespace_of(o) == namespace and workloads.owner(o) == name
        ]
        plan = workloads.plan(deployment, own, self._dice)
        for pod in plan.create:
            self.store.apply(pod)
        for pod in plan.delete:
            self.store.delete("Pod", namespace, pod["metadata"]["name"])
        self.store.patch("Deployment", namespace, name, MANAGER, {"status": plan.status})

    def _wants(self, pod: Object) -> bool:
        namespace = self._by_key.get(("Namespace", "", namespace_of(pod)))
        return self.settings.mesh and wants(pod, namespace)

    # ---- pods --------------------------------------------------------------------------------

    def _adopt_pods(self, pods: list[Object], now: float) -> None:
        """Start runners for new pods, end those of deleted ones.

        A pod without a uid was written by hand while this turn ran. The next turn, which that
        file has asked for, gives it one; until then a pod of that name runs as it did.
        """
        present = {p["metadata"]["uid"]: p for p in pods if _identified(p) and not is_static(p)}
        just_written = {_pod_key(p) for p in pods if not _identified(p)}
        for uid, runner in self._pods.items():
            if uid in present:
                if not present[uid]["spec"].get("nodeName"):  # edited by hand
                    present[uid]["spec"]["nodeName"] = runner.node.name
                    self._rewrite(present[uid], nodeName=runner.node.name)
                runner.update(present[uid])
            elif runner.key not in just_written:
                runner.stop(now)
        names = {(r.key, r.node.name) for r in self._pods.values()}
        busy = {key for key, _ in names}
        load = Counter(r.node.name for r in self._pods.values())
        machines = {n: self._by_key[("Node", "", n)] for n in self._nodes if self._has_node(n)}
        for uid, pod in present.items():
            key = _pod_key(pod)
            # One that was terminal before this lab's manager came has nothing to run.
            if uid in self._pods or key in busy or is_terminal(pod):
                continue
            wanted = pod["spec"].get("nodeName")
            node = wanted or workloads.choose_node(pod, machines, load)
            if node not in machines:
                self._unschedulable(pod, wanted, list(machines))
                continue
            load[node] += 1
            with self._spared(f"Pod {key}"):
                number = self._number(node)
                if not wanted:
                    pod["spec"]["nodeName"] = node
                    self._rewrite(pod, nodeName=node)
                self._pods[uid] = PodRunner(self._kubelet, self._nodes[node], pod, number)

    def _has_node(self, name: str) -> bool:
        return ("Node", "", name) in self._by_key

    def _number(self, node: str) -> int:
        """Give out the number that was free longest."""
        used = {r.number for r in self._pods.values() if r.node.name == node}
        last = self._numbers.get(node, 1)
        for step in range(1, MAX_PODS + 1):
            number = 2 + (last - 2 + step) % MAX_PODS
            if number not in used:
                self._numbers[node] = number
                return number
        raise LabError(f"node {node} is full: it holds {MAX_PODS} pods; add a Node")

    def _unschedulable(self, pod: Object, wanted: str | None, nodes: list[str]) -> None:
        if wanted:
            why = f"spec.nodeName {wanted} is no node of this lab; there are: {', '.join(nodes)}"
        else:
            why = f"no node has the labels {pod['spec'].get('nodeSelector')}"
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": why,
        }
        patch = {"status": {"phase": "Pending", "conditions": [condition]}}
        self.store.patch("Pod", namespace_of(pod), pod["metadata"]["name"], MANAGER, patch)

    def _tick_pods(self, now: float) -> None:
        for uid, runner in list(self._pods.items()):
            try:
                runner.tick(now)
            except (MeshError, OSError) as e:
                self._complain(f"Pod {runner.key}: {e}")
                runner.why = str(e)
                runner.report()
            if runner.phase is Phase.GONE:
                del self._pods[uid]
                self._wake()

    # ---- services and names ------------------------------------------------------------------

    def _publish(self) -> None:
        """Bring rules and names in line with services and ready pods."""
        everything = self._sound()
        all_services = [o for o in everything if o["kind"] == "Service"]
        pods = [o for o in everything if o["kind"] == "Pod" and not is_terminal(o)]
        served = services.ports(all_services, pods)
        for node in self._nodes.values():
            local = [
                a
                for r in self._pods.values()
                if r.node is node and not r.host_network
                for a in r.addresses
            ]
            rules = services.rules(served, local)
            if self._rules.get(node.name) != rules:
                with self._spared(f"node {node.name}: service rules"):
                    netns.nft(self.layout.node_netns(node.name), rules)
                    self._rules[node.name] = rules
        names = services.host_names(all_services, pods)
        if names != self._names:
            path = components.dns_hosts(self.layout)
            path.with_suffix(".tmp").write_text(names)
            path.with_suffix(".tmp").rename(path)
            self.components[components.DNS].process.send(_RELOAD)
            self._names = names


_RELOAD: Final = 1  # SIGHUP: dnsmasq reads its hosts files again


def _key(obj: Object) -> tuple[str, str, str]:
    namespace = "" if obj["kind"] in CLUSTER_SCOPED else namespace_of(obj)
    return obj["kind"], namespace, obj["metadata"]["name"]


def _identified(obj: Object) -> bool:
    return "uid" in obj["metadata"]


def _pod_key(pod: Object) -> str:
    return f"{namespace_of(pod)}/{pod['metadata']['name']}"
