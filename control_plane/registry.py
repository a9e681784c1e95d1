"""Objects in, snapshots of xDS resources out; each change recomputes only what it touches.

A Service's members are those of its EndpointSlices where it has any, else the pods it selects.

State grows with the objects: per pod one record and one encoded resource (about 2 KB), per
service and policy the same.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from control_plane.guarding import Guarded, GuardTable
from control_plane.peers import Peers
from control_plane.published import Published
from control_plane.resources import (
    Snapshot,
    authorization_resource,
    service_resource,
    workload_resource,
)
from control_plane.selecting import LabelIndex, discard, pivot
from control_plane.translate.endpoints import (
    EndpointIndex,
    ServiceKey,
    plain_workload,
    translate_slice,
)
from control_plane.translate.peer_authentication import parse_peer_authentication
from control_plane.translate.pods import MeshConfig, PodRecord, locality_of, translate_pod
from control_plane.translate.policy import Policy, translate_policy
from control_plane.translate.services import ServiceRecord, translate_service
from control_plane.waypoints.bindings import Bindings
from mesh.findings import Condition, selects
from mesh.manifest import Key
from mesh.model import Authorization, Locality, Port, Workload
from mesh.model.convert import ADDRESS_TYPE, AUTHORIZATION_TYPE

log = logging.getLogger(__name__)

Object = Mapping[str, Any]
PodKey = tuple[str, str]  # namespace, name
_T = TypeVar("_T")
KINDS: Final = frozenset(
    {"AuthorizationPolicy", "EndpointSlice", "Node", "PeerAuthentication", "Pod", "Service"}
    | {"Gateway", "GatewayClass", "Namespace"}
)


class Registry:
    """The model of the cluster, kept current. Not shared between threads."""

    def __init__(self, config: MeshConfig) -> None:
        self.config = config
        self.conditions: dict[Key, Condition] = {}
        self.bindings = Bindings(config.cluster_domain)
        # Services (by key) that are others or have other members, pods that are others.
        self._touched: set[str] = set()
        self._touched_pods: set[PodKey] = set()
        self._pods: dict[PodKey, PodRecord] = {}
        self._namespaces: dict[str, set[PodKey]] = {}
        self._labelled: LabelIndex[PodKey] = LabelIndex()
        self._selecting: LabelIndex[str] = LabelIndex()  # names of Services
        self._accounts: dict[tuple[str, str, str], set[PodKey]] = {}
        self._services: dict[str, dict[str, ServiceRecord]] = defaultdict(dict)
        self._endpoints = EndpointIndex()
        self._holders: dict[str, set[PodKey]] = {}  # address: the pods that have it
        self._nodes: dict[str, Locality] = {}
        self._policies: dict[str, dict[str, Policy]] = defaultdict(dict)
        self._peers = Peers(config.root_namespace)
        self._guards = GuardTable()
        self._peer_policies: set[str] = set()
        self._workloads: dict[PodKey | str, Workload] = {}  # by pod, or address that no pod has
        self._by_uid: dict[str, Workload] = {}
        self._published = Published()
        self._peers_changed = False
        self._takers: dict[str, Callable[[Key, Object | None], None]] = {
            "AuthorizationPolicy": self._take_policy,
            "EndpointSlice": self._take_slice,
            **dict.fromkeys(("Gateway", "GatewayClass", "Namespace"), self.bindings.take),
            "Node": self._take_node,
            "PeerAuthentication": self._take_peer,
            "Pod": self._take_pod,
            "Service": self._take_service,
        }
        self._dirty: set[PodKey] = set()
        self._dirty_addresses: set[str] = set()  # which may need a workload without a pod

    @property
    def snapshot(self) -> Snapshot:
        """What clients are served as of the last change."""
        return self._published.snapshot

    # ---- questions the CA asks ---------------------------------------------------------------

    def pod(self, namespace: str, name: str) -> PodRecord | None:
        """Find a pod that has not finished."""
        record = self._pods.get((namespace, name))
        return None if record is None or record.terminal else record

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        """Say whether a pod of that service account runs on that node."""
        return bool(self._accounts.get((node, namespace, service_account)))

    # ---- questions that waypoints ask --------------------------------------------------------

    def service(self, namespace: str, name: str) -> ServiceRecord | None:
        """Find a Service by the name of its object."""
        return self._service((namespace, name))

    def by_key(self, key: str) -> ServiceRecord | None:
        """Find a Service by "namespace/hostname"."""
        namespace, _, hostname = key.partition("/")
        found = self._service((namespace, hostname.partition(".")[0]))
        return found if found is not None and found.service.key == key else None

    def drain_touched(self) -> tuple[set[str], set[PodKey]]:
        """Name services (by key) and pods that are others since the last call.

        A service is another with its endpoints.
        """
        out = self._touched, self._touched_pods
        self._touched, self._touched_pods = set(), set()
        return out

    def workload(self, namespace: str, name: str) -> Workload | None:
        """Find a pod's workload, as it is published."""
        return self._workloads.get((namespace, name))

    def members(self, service: str) -> Iterator[Workload]:
        """What backs a service (by key), healthy or not, in the order of their uids."""
        return (self._by_uid[uid] for uid in self._published.members(service))

    # ---- changes -----------------------------------------------------------------------------

    def update(self, changed: Mapping[Key, Object], gone: set[Key], now: float = 0.0) -> Snapshot:
        """Take in changes; returns the snapshot, the same one when no resource changed.

        now: monotonic time, for bindings that are held back.
        """
        for key in [*changed, *gone]:
            take = self._takers.get(key.kind)
            if take is not None:
                take(key, changed.get(key))
        if self._peers_changed:
            self._peers_changed = False
            self._index_peers()
        return self.rebind(self.bindings.settle(now))

    def rebind(self, bound: Iterable[Key]) -> Snapshot:
        """Publish Services and Pods with their waypoints as they are now; see update()."""
        for key in bound:
            if key.kind == "Pod":
                self._dirty.add((key.namespace, key.name))
            elif record := self._service((key.namespace, key.name)):
                self._publish(record)
        return self._settle()

    def _settle(self) -> Snapshot:
        for where in self._dirty:
            self._replace(where, self._build(self._pods.get(where)))
        for address in self._dirty_addresses:
            self._replace(address, self._build_plain(address))
        self._dirty.clear()
        self._dirty_addresses.clear()
        return self._published.settle()

    def guard(self, changes: Mapping[Guarded, Authorization | None]) -> Snapshot:
        """Attach policies to pods and the pods of services, or take them off; see update()."""
        for guarded, policy in changes.items():
            unused, is_other = self._guards.change(guarded, policy)
            if policy is not None:
                self._published.put(AUTHORIZATION_TYPE, policy.key, authorization_resource(policy))
            if unused:
                self._published.put(AUTHORIZATION_TYPE, unused, None)
            if not is_other:
                continue
            if isinstance(guarded, str):
                self._dirty |= {(w.namespace, w.name) for w in self.members(guarded)}
            else:
                self._dirty.add(guarded)
        return self._settle()

    def _translate(
        self, key: Key, obj: Object | None, translate: Callable[[Object], _T | None], old: _T | None
    ) -> _T | None:
        """Translate; an object that breaks it anyway is logged and its last good reading kept."""
        if obj is None:
            return None
        try:
            return translate(obj)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            log.exception("%s: cannot be read; %s", key, "last reading kept" if old else "skipped")
            return old

    def _take_pod(self, key: Key, obj: Object | None) -> None:
        where = (key.namespace, key.name)
        old = self._pods.get(where)
        new = self._translate(key, obj, lambda o: translate_pod(o, self.config), old)
        if new == old:
            return
        self.bindings.put_pod(old, new)
        was, now = (p.labels.items() if p is not None else () for p in (old, new))
        self._labelled.put(key.namespace, where, was, now)
        self.bindings.put(key, new.wish if new is not None and new.workload else None)
        if old is not None:
            discard(self._accounts, (old.node, old.namespace, old.service_account), where)
        if new is None:
            self._pods.pop(where, None)
            discard(self._namespaces, key.namespace, where)
        else:
            self._pods[where] = new
            self._namespaces.setdefault(key.namespace, set()).add(where)
            if not new.terminal:
                account = (new.node, new.namespace, new.service_account)
                self._accounts.setdefault(account, set()).add(where)
        if old is not None and new is not None and old.labels != new.labels:
            # Waypoints choose among the pods of a service by labels that no workload has.
            self._touched.update(self._services_at(where))
        self._dirty.add(where)
        for address in _addresses(old) - _addresses(new):
            discard(self._holders, address, where)
            self._dirty_addresses.add(address)
        for address in _addresses(new) - _addresses(old):
            self._holders.setdefault(address, set()).add(where)
            self._dirty_addresses.add(address)

    def _services_at(self, where: PodKey) -> Iterable[str]:
        """Name the services that a pod backed until now."""
        workload = self._workloads.get(where)
        return workload.services if workload is not None else ()

    def _take_service(self, key: Key, obj: Object | None) -> None:
        here = self._services[key.namespace]
        old = here.get(key.name)
        new = self._translate(key, obj, lambda o: translate_service(o, self.config), old)
        if new == old:
            return
        if new is None:
            here.pop(key.name, None)
        else:
            here[key.name] = new
        was, now = (pivot(r.selector) if r is not None else () for r in (old, new))
        self._selecting.put(key.namespace, key.name, was, now)
        self.bindings.put(key, new.wish if new is not None and new.service.vips else None)
        if old is not None and (new is None or new.service.key != old.service.key):
            self._touched.add(old.service.key)
            self._published.put(ADDRESS_TYPE, old.service.key, None)
        if new is not None and (old is None or new.service != old.service):
            self._publish(new)
        self._touch_members((key.namespace, key.name), old, new)

    def _publish(self, record: ServiceRecord) -> None:
        service = record.service
        address = self.bindings.address(Key("Service", service.namespace, service.name))
        self._touched.add(service.key)
        resource = service_resource(replace(service, waypoint=address))
        self._published.put(ADDRESS_TYPE, service.key, resource)

    def _touch_members(self, service: ServiceKey, *records: ServiceRecord | None) -> None:
        """Look again at whatever backs a Service, by slices or by these records' selectors."""
        self._touch_addresses(self._endpoints.addresses_of(service))
        for record in records:
            if record is not None:
                found = self._labelled.find(service[0], pivot(record.selector))
                self._dirty |= {where for where in found if record.matches(self._pods[where])}

    def _touch_addresses(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            self._dirty |= self._holders.get(address, set())
            self._dirty_addresses.add(address)

    def _take_slice(self, key: Key, obj: Object | None) -> None:
        old = self._endpoints.get(key)
        new = self._translate(key, obj, translate_slice, old)
        if new == old:
            return
        touched, flipped = self._endpoints.put(key, new)
        self._touch_addresses(touched)
        for namespace, name in flipped:  # from its selector to slices, or back
            self._touch_members((namespace, name), self._services[namespace].get(name))

    def _take_node(self, key: Key, obj: Object | None) -> None:
        old = self._nodes.get(key.name)
        new = self._translate(key, obj, locality_of, old)
        if new is None:
            self._nodes.pop(key.name, None)
        else:
            self._nodes[key.name] = new
        if (new or Locality()) != (old or Locality()):
            self._dirty |= {k for k, pod in self._pods.items() if pod.node == key.name}

    def _take_policy(self, key: Key, obj: Object | None) -> None:
        here = self._policies[key.namespace]
        old = here.get(key.name)
        new = self._translate(
            key, obj, lambda o: translate_policy(o, self.config.root_namespace), old
        )
        if new is None:
            here.pop(key.name, None)
            self.conditions.pop(key, None)
        else:
            here[key.name] = new
            if new.condition is not None:
                self.conditions[key] = new.condition
            else:
                self.conditions.pop(key, None)
        before = old.authorization if old else None
        after = new.authorization if new else None
        if before != after:
            name = f"{key.namespace}/{key.name}"
            resource = authorization_resource(after) if after else None
            self._published.put(AUTHORIZATION_TYPE, name, resource)
        was = old.selector if old and before else None
        now = new.selector if new and after else None
        if was != now:
            for where, pod in self._in_scope(key.namespace):
                if any(s is not None and selects(s, pod.labels) for s in (was, now)):
                    self._dirty.add(where)

    def _take_peer(self, key: Key, obj: Object | None) -> None:
        old = self._peers.get(key)
        new = self._translate(
            key, obj, lambda o: parse_peer_authentication(o, self.config.root_namespace), old
        )
        self._peers.put(key, new)
        if new is None:
            self.conditions.pop(key, None)
        if new != old:
            self._dirty |= {where for where, _ in self._in_scope(key.namespace)}
            self._peers_changed = True

    def _in_scope(self, namespace: str) -> Iterator[tuple[PodKey, PodRecord]]:
        """Pods that a policy of this namespace may apply to: all, where it is the root's."""
        if namespace == self.config.root_namespace:
            yield from self._pods.items()
        else:
            here = self._namespaces.get(namespace, ())
            yield from ((where, self._pods[where]) for where in here)

    # ---- PeerAuthentication: levels and converted policies -----------------------------------

    def _index_peers(self) -> None:
        """Find which PeerAuthentication counts where, and publish the policies made of them."""
        conditions, wanted = self._peers.index()
        self.conditions.update(conditions)
        for name in self._peer_policies - set(wanted):
            self._published.put(AUTHORIZATION_TYPE, name, None)
        for name, policy in wanted.items():
            self._published.put(AUTHORIZATION_TYPE, name, authorization_resource(policy))
        self._peer_policies = set(wanted)

    # ---- workloads ---------------------------------------------------------------------------

    def _build(self, pod: PodRecord | None) -> Workload | None:
        if pod is None or pod.workload is None:
            return None
        root = self.config.root_namespace
        policies = [
            policy.authorization.key
            for ns in {pod.namespace, root}
            for policy in self._policies[ns].values()
            if policy.authorization is not None
            and policy.selector is not None
            and selects(policy.selector, pod.labels)
        ]
        policies += self._peers.references(pod)
        services = self._services_of(pod)
        policies += self._guards.names([*services, (pod.namespace, pod.name)])
        return replace(
            pod.workload,
            services=services,
            authorization_policies=tuple(sorted(policies)),
            locality=self._nodes.get(pod.node, Locality()),
            waypoint=self.bindings.address(Key("Pod", pod.namespace, pod.name)),
        )

    def _services_of(self, pod: PodRecord) -> dict[str, tuple[Port, ...]]:
        """Find the services that a pod backs, and the ports on it."""
        assert pod.workload is not None
        here = self._services[pod.namespace]
        out = {
            here[name].service.key: here[name].ports_on(pod)
            for name in self._selecting.find(pod.namespace, pod.labels.items())
            if here[name].matches(pod) and not self._endpoints.has((pod.namespace, name))
        }
        found: dict[str, dict[int, Port]] = {}
        for address in pod.workload.addresses:
            for piece, endpoint in self._endpoints.at(address):
                record = self._service(piece.service)
                if record is None or not endpoint.is_of(pod):
                    continue
                # Where the pod itself is not ready it is no target anyhow. One that is, and is
                # said not to be ready for this service, is no member of it.
                if endpoint.ready or record.publishes_unready or not pod.workload.healthy:
                    ports = piece.ports_for(record.service.ports, record.port_names)
                    found[record.service.key] = {**ports, **found.get(record.service.key, {})}
        out.update(
            {key: tuple(p for _, p in sorted(ports.items())) for key, ports in found.items()}
        )
        return out

    def _service(self, key: ServiceKey) -> ServiceRecord | None:
        return self._services[key[0]].get(key[1])

    def _build_plain(self, address: str) -> Workload | None:
        """Build the workload of an address that slices name and no pod has."""
        if any(not self._shares(where) for where in self._holders.get(address, ())):
            return None
        first = None
        found: dict[str, dict[int, Port]] = {}
        for piece, endpoint in self._endpoints.at(address):
            record = self._service(piece.service)
            if record is None or endpoint.pod is not None:
                continue  # a pod that is not known yet: nothing is said until it is
            if endpoint.ready or record.publishes_unready:
                first = first or (piece, endpoint)
                ports = piece.ports_for(record.service.ports, record.port_names)
                found[record.service.key] = {**ports, **found.get(record.service.key, {})}
        if first is None:
            return None
        services = {k: tuple(p for _, p in sorted(ports.items())) for k, ports in found.items()}
        return replace(
            plain_workload(*first, services, self.config),
            locality=self._nodes.get(first[1].node, Locality()),
        )

    def _shares(self, where: PodKey) -> bool:
        """Say whether a pod has its node's address."""
        workload = self._pods[where].workload
        return workload is not None and workload.host_network

    def _replace(self, where: PodKey | str, new: Workload | None) -> None:
        """Replace a workload, its memberships and its resource."""
        old = self._workloads.get(where)
        if new == old:
            return
        if new is None:
            self._workloads.pop(where, None)
        else:
            self._workloads[where] = new
            self._by_uid[new.uid] = new
        self._touched |= _services_touched(old, new)
        if isinstance(where, tuple):
            self._touched_pods.add(where)
        if old is not None and (new is None or new.uid != old.uid):
            self._published.join(old.uid, set(old.services), set())
            self._by_uid.pop(old.uid, None)
            self._published.put(ADDRESS_TYPE, old.uid, None)
            old = None
        if new is not None:
            self._published.join(new.uid, set(old.services) if old else set(), set(new.services))
            self._published.put(ADDRESS_TYPE, new.uid, workload_resource(new))


def _services_touched(old: Workload | None, new: Workload | None) -> set[str]:
    """Name the services whose endpoints are others."""
    was, now = (dict(w.services) if w is not None else {} for w in (old, new))
    if old is not None and new is not None and replace(old, services=new.services) == new:
        return {k for k in was.keys() | now.keys() if was.get(k) != now.get(k)}
    return was.keys() | now.keys()


def _addresses(pod: PodRecord | None) -> set[str]:
    return set(pod.workload.addresses) if pod and pod.workload else set()
