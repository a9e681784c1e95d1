"""Objects in, snapshots of xDS resources out; each change recomputes only what it touches.

State grows with the objects: per pod one record and one encoded resource (about 2 KB), per
service and policy the same. A snapshot copies the dictionaries, not the resources.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from control_plane.resources import (
    Resource,
    Snapshot,
    authorization_resource,
    service_resource,
    workload_resource,
)
from control_plane.translate.findings import Condition, selects
from control_plane.translate.peer_authentication import (
    Defaults,
    PeerAuthentication,
    converted,
    index_levels,
    parse_peer_authentication,
    references,
    static_strict,
    superseded,
)
from control_plane.translate.pods import MeshConfig, PodRecord, locality_of, translate_pod
from control_plane.translate.policy import Policy, translate_policy
from control_plane.translate.services import ServiceRecord, translate_service
from mesh.manifest import Key
from mesh.model import Locality, Workload
from mesh.model.convert import ADDRESS_TYPE, AUTHORIZATION_TYPE

log = logging.getLogger(__name__)

Object = Mapping[str, Any]
PodKey = tuple[str, str]  # namespace, name
_T = TypeVar("_T")
KINDS: Final = frozenset({"AuthorizationPolicy", "Node", "PeerAuthentication", "Pod", "Service"})


class Registry:
    """The model of the cluster, kept current. Not shared between threads."""

    def __init__(self, config: MeshConfig) -> None:
        self.config = config
        self.snapshot = Snapshot()
        self.conditions: dict[Key, Condition] = {}
        self._pods: dict[PodKey, PodRecord] = {}
        self._namespaces: dict[str, set[PodKey]] = defaultdict(set)
        self._accounts: dict[tuple[str, str, str], set[PodKey]] = defaultdict(set)
        self._services: dict[str, dict[str, ServiceRecord]] = defaultdict(dict)
        self._nodes: dict[str, Locality] = {}
        self._policies: dict[str, dict[str, Policy]] = defaultdict(dict)
        self._peers: dict[Key, PeerAuthentication] = {}
        self._peer_index: dict[str, tuple[Defaults, tuple[PeerAuthentication, ...]]] = {}
        self._peer_policies: set[str] = set()
        self._workloads: dict[PodKey, Workload] = {}
        self._resources: dict[str, dict[str, Resource]] = {
            t: dict(r) for t, r in self.snapshot.resources.items()
        }
        self._aliases: dict[str, tuple[str, ...]] = {}
        self._members: dict[str, tuple[str, ...]] = {}
        self._changed = False
        self._dirty: set[PodKey] = set()

    # ---- questions the CA asks ---------------------------------------------------------------

    def pod(self, namespace: str, name: str) -> PodRecord | None:
        """Find a pod that has not finished."""
        record = self._pods.get((namespace, name))
        return None if record is None or record.terminal else record

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        """Say whether a pod of that service account runs on that node."""
        return bool(self._accounts.get((node, namespace, service_account)))

    # ---- changes -----------------------------------------------------------------------------

    def update(self, changed: Mapping[Key, Object], gone: set[Key]) -> Snapshot:
        """Take in changes; returns the snapshot, the same one when no resource changed."""
        peers = False
        for key in [*changed, *gone]:
            obj = changed.get(key)
            if key.kind == "Pod":
                self._take_pod(key, obj)
            elif key.kind == "Service":
                self._take_service(key, obj)
            elif key.kind == "Node":
                self._take_node(key, obj)
            elif key.kind == "AuthorizationPolicy":
                self._take_policy(key, obj)
            elif key.kind == "PeerAuthentication":
                peers = self._take_peer(key, obj) or peers
        if peers:
            self._index_peers()
        for pod in self._dirty:
            self._rebuild(pod)
        self._dirty.clear()
        if self._changed:
            self._changed = False
            self.snapshot = Snapshot(
                version=self.snapshot.version + 1,
                resources={t: dict(r) for t, r in self._resources.items()},
                aliases=dict(self._aliases),
                members=dict(self._members),
            )
        return self.snapshot

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
        if old is not None:
            self._accounts[(old.node, old.namespace, old.service_account)].discard(where)
        if new is None:
            self._pods.pop(where, None)
            self._namespaces[key.namespace].discard(where)
        else:
            self._pods[where] = new
            self._namespaces[key.namespace].add(where)
            if not new.terminal:
                self._accounts[(new.node, new.namespace, new.service_account)].add(where)
        self._dirty.add(where)

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
        if old is not None and (new is None or new.service.key != old.service.key):
            self._put(ADDRESS_TYPE, old.service.key, None)
        if new is not None and (old is None or new.service != old.service):
            self._put(ADDRESS_TYPE, new.service.key, service_resource(new.service))
        for where in self._namespaces[key.namespace]:
            pod = self._pods[where]
            if (old and old.matches(pod)) or (new and new.matches(pod)):
                self._dirty.add(where)

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
            self.conditions[key] = new.condition
        before = old.authorization if old else None
        after = new.authorization if new else None
        if before != after:
            name = f"{key.namespace}/{key.name}"
            resource = authorization_resource(after) if after else None
            self._put(AUTHORIZATION_TYPE, name, resource)
        was = old.selector if old and before else None
        now = new.selector if new and after else None
        if was != now:
            for where, pod in self._in_scope(key.namespace):
                if any(s is not None and selects(s, pod.labels) for s in (was, now)):
                    self._dirty.add(where)

    def _take_peer(self, key: Key, obj: Object | None) -> bool:
        old = self._peers.get(key)
        new = self._translate(
            key, obj, lambda o: parse_peer_authentication(o, self.config.root_namespace), old
        )
        if new is None:
            self._peers.pop(key, None)
            self.conditions.pop(key, None)
        else:
            self._peers[key] = new
        if new == old:
            return False
        self._dirty |= {where for where, _ in self._in_scope(key.namespace)}
        return True

    def _in_scope(self, namespace: str) -> Iterator[tuple[PodKey, PodRecord]]:
        """Pods that a policy of this namespace may apply to: all, where it is the root's."""
        if namespace == self.config.root_namespace:
            yield from self._pods.items()
        else:
            yield from ((where, self._pods[where]) for where in self._namespaces[namespace])

    # ---- PeerAuthentication: levels and converted policies -----------------------------------

    def _index_peers(self) -> None:
        """Find which PeerAuthentication counts where, and publish the policies made of them."""
        root = self.config.root_namespace
        self._peer_index, conflicts = index_levels(self._peers.values(), root)
        for key, peer in self._peers.items():
            older = conflicts.get((peer.namespace, peer.name))
            self.conditions[key] = superseded(older) if older else peer.condition
        wanted = {}
        if self._peers:
            static = static_strict(root)
            wanted[static.key] = static
        for defaults, level in self._peer_index.values():
            for peer in level:
                own = converted(peer, defaults)
                if own is not None:
                    wanted[own.key] = own
        for name in self._peer_policies - set(wanted):
            self._put(AUTHORIZATION_TYPE, name, None)
        for name, policy in wanted.items():
            self._put(AUTHORIZATION_TYPE, name, authorization_resource(policy))
        self._peer_policies = set(wanted)

    # ---- workloads ---------------------------------------------------------------------------

    def _build(self, pod: PodRecord) -> Workload | None:
        if pod.workload is None:
            return None
        root = self.config.root_namespace
        services = {
            record.service.key: record.ports_on(pod)
            for record in self._services[pod.namespace].values()
            if record.matches(pod)
        }
        policies = [
            policy.authorization.key
            for ns in {pod.namespace, root}
            for policy in self._policies[ns].values()
            if policy.authorization is not None
            and policy.selector is not None
            and selects(policy.selector, pod.labels)
        ]
        # The root's own entry has no policies with selectors: it serves namespaces without any.
        index = self._peer_index
        defaults, level = index.get(pod.namespace) or index.get(root) or (Defaults(), ())
        policies += references(pod.labels, level, defaults, root)
        return replace(
            pod.workload,
            services=services,
            authorization_policies=tuple(sorted(policies)),
            locality=self._nodes.get(pod.node, Locality()),
        )

    def _rebuild(self, where: PodKey) -> None:
        pod = self._pods.get(where)
        old = self._workloads.get(where)
        new = self._build(pod) if pod else None
        if new == old:
            return
        if new is None:
            self._workloads.pop(where, None)
        else:
            self._workloads[where] = new
        before = set(old.services) if old else set()
        after = set(new.services) if new else set()
        known = new or old
        assert known is not None
        uid = known.uid
        for service in before ^ after:
            members = set(self._members.get(service, ()))
            members = members | {uid} if service in after else members - {uid}
            _set(self._members, service, members)
        self._put(ADDRESS_TYPE, uid, workload_resource(new) if new else None)

    def _put(self, type_url: str, name: str, new: Resource | None) -> None:
        """Replace one resource and its aliases."""
        here = self._resources[type_url]
        old = here.get(name)
        if old is not None and new is not None and old.version == new.version:
            return
        if old is None and new is None:
            return
        self._changed = True
        for alias in set(old.aliases if old else ()) ^ set(new.aliases if new else ()):
            names = set(self._aliases.get(alias, ()))
            names = names | {name} if new and alias in new.aliases else names - {name}
            _set(self._aliases, alias, names)
        if new is None:
            del here[name]
        else:
            here[name] = new


def _set(index: dict[str, tuple[str, ...]], key: str, values: set[str]) -> None:
    if values:
        index[key] = tuple(sorted(values))
    else:
        index.pop(key, None)
