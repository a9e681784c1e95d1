"""What this node knows of the mesh: workloads, services, policies, and the indexes to find them.

Pure: fed with decoded xDS resources by name, asked by the router and by the control process.
Grows with the mesh, not with traffic: a workload with its share of the indexes is about 1.3 kB here
(tests/unit/ztunnel/test_ztunnel_state.py measures it); the whole process grew by 33 MB when 10,000
arrived at once. On-demand xDS keeps only what is asked for.

An address is "network/ip", as xDS names it.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from mesh.model import Authorization, Port, Scope, Service, Workload

_K = TypeVar("_K")


def address_key(network: str, ip: str) -> str:
    """Build the xDS alias of an address."""
    return f"{network}/{ip}"


@dataclass(slots=True)
class Effects:
    """What a change touched.

    touched: resource names and addresses, old and new, that an answer may have rested on.
    workloads: uids that appeared, changed or went. policies: keys, likewise; scopes they had.
    """

    touched: set[str] = field(default_factory=set)
    workloads: set[str] = field(default_factory=set)
    policies: set[str] = field(default_factory=set)
    everywhere: bool = False  # a GLOBAL policy changed
    namespaces: set[str] = field(default_factory=set)  # with a changed NAMESPACE policy
    cidrs: bool = False  # an address block changed: any miss may now be a hit


class State:
    """The stores and their indexes; one writer, readers on the same thread."""

    def __init__(self) -> None:
        self.workloads: dict[str, Workload] = {}
        self.services: dict[str, Service] = {}
        self.policies: dict[str, Authorization] = {}
        self._by_address: dict[str, tuple[str, ...]] = {}
        self._by_name: dict[tuple[str, str], tuple[str, ...]] = {}
        self._by_vip: dict[str, tuple[str, ...]] = {}
        self._cidrs: dict[tuple[str, int, int], dict[int, tuple[str, ...]]] = {}
        self._cidr_order: list[tuple[str, int, int]] = []
        self._members: dict[str, dict[str, None]] = {}
        self._global: dict[str, None] = {}
        self._of_namespace: dict[str, dict[str, None]] = {}

    # ---- changes -----------------------------------------------------------------------------

    def set_address(self, name: str, resource: Workload | Service, effects: Effects) -> None:
        """Add or replace one Address resource."""
        if isinstance(resource, Workload):
            self._drop_service(name, effects)
            self._set_workload(_interned(resource), effects)
        else:
            self._drop_workload(name, effects)
            self._set_service(resource, effects)

    def remove_address(self, name: str, effects: Effects) -> None:
        """Remove a workload or service; an alias or unknown name is only noted as touched."""
        effects.touched.add(name)
        self._drop_workload(name, effects)
        self._drop_service(name, effects)

    def set_policy(self, policy: Authorization, effects: Effects) -> None:
        """Add or replace a policy."""
        self.remove_policy(policy.key, effects)
        self.policies[policy.key] = policy
        if policy.scope == Scope.GLOBAL:
            self._global[policy.key] = None
        elif policy.scope == Scope.NAMESPACE:
            self._of_namespace.setdefault(policy.namespace, {})[policy.key] = None
        self._note_policy(policy, effects)

    def remove_policy(self, key: str, effects: Effects) -> None:
        """Remove a policy."""
        old = self.policies.pop(key, None)
        if old is None:
            return
        self._global.pop(key, None)
        keys = self._of_namespace.get(old.namespace, {})
        keys.pop(key, None)
        if not keys:
            self._of_namespace.pop(old.namespace, None)
        self._note_policy(old, effects)

    def _note_policy(self, policy: Authorization, effects: Effects) -> None:
        effects.policies.add(policy.key)
        if policy.scope == Scope.GLOBAL:
            effects.everywhere = True
        elif policy.scope == Scope.NAMESPACE:
            effects.namespaces.add(policy.namespace)

    def _set_workload(self, new: Workload, effects: Effects) -> None:
        self._drop_workload(new.uid, effects)
        self.workloads[new.uid] = new
        for ip in new.addresses:
            _add(self._by_address, address_key(new.network, ip), new.uid)
        _add(self._by_name, (new.namespace, new.name), new.uid)
        for service in new.services:
            self._members.setdefault(service, {})[new.uid] = None
        self._note_workload(new, effects)

    def _drop_workload(self, uid: str, effects: Effects) -> None:
        old = self.workloads.pop(uid, None)
        if old is None:
            return
        for ip in old.addresses:
            _remove(self._by_address, address_key(old.network, ip), uid)
        _remove(self._by_name, (old.namespace, old.name), uid)
        for service in old.services:
            members = self._members.get(service, {})
            members.pop(uid, None)
            if not members:
                self._members.pop(service, None)
        self._note_workload(old, effects)

    def _note_workload(self, w: Workload, effects: Effects) -> None:
        effects.workloads.add(w.uid)
        effects.touched.add(w.uid)
        effects.touched.update(address_key(w.network, ip) for ip in w.addresses)
        effects.touched.update(w.services)
        if w.hostname:
            effects.touched.add(f"{w.namespace}/{w.hostname}")

    def _set_service(self, new: Service, effects: Effects) -> None:
        self._drop_service(new.key, effects)
        self.services[new.key] = new
        for vip in new.vips:
            _add(self._by_vip, address_key(new.network, vip), new.key)
        for where, base in _blocks(new):
            _add(self._cidrs.setdefault(where, {}), base, new.key)
        self._note_service(new, effects)

    def _drop_service(self, key: str, effects: Effects) -> None:
        old = self.services.pop(key, None)
        if old is None:
            return
        for vip in old.vips:
            _remove(self._by_vip, address_key(old.network, vip), key)
        for where, base in _blocks(old):
            block = self._cidrs.get(where, {})
            _remove(block, base, key)
            if not block:
                self._cidrs.pop(where, None)
        self._note_service(old, effects)

    def _note_service(self, s: Service, effects: Effects) -> None:
        effects.touched.add(s.key)
        effects.touched.update(address_key(s.network, vip) for vip in s.vips)
        if s.cidrs:
            effects.cidrs = True
            # Longest prefix first; the shift is what is left of it.
            self._cidr_order = sorted(self._cidrs, key=lambda where: where[2])

    # ---- lookups -----------------------------------------------------------------------------

    def service_at(self, network: str, ip: str, namespace: str) -> Service | None:
        """Find the service with this VIP, else with this address in its longest CIDR.

        Of several one in `namespace` is preferred, then the canonical one, then the first by name.
        """
        keys = self._by_vip.get(address_key(network, ip)) or self._in_cidr(network, ip)
        if not keys:
            return None
        found = [self.services[key] for key in keys]
        return min(found, key=lambda s: (s.namespace != namespace, not s.canonical, s.key))

    def _in_cidr(self, network: str, ip: str) -> tuple[str, ...]:
        if not self._cidr_order:
            return ()
        address = ipaddress.ip_address(ip)
        value, version = int(address), address.version
        for where in self._cidr_order:
            if where[0] == network and where[1] == version:
                keys = self._cidrs[where].get(value >> where[2])
                if keys:
                    return keys
        return ()

    def workload_at(self, network: str, ip: str) -> Workload | None:
        """Find the workload with this address, a pod before those that share their node's."""
        uids = self._by_address.get(address_key(network, ip), ())
        found = [self.workloads[uid] for uid in uids]
        pods = [w for w in found if not w.host_network]
        if pods:
            return min(pods, key=lambda w: w.uid)
        return found[0] if len(found) == 1 else None

    def workload_named(self, namespace: str, name: str, service_account: str) -> Workload | None:
        """Find a local pod by what the node agent says of it."""
        for uid in self._by_name.get((namespace, name), ()):
            w = self.workloads[uid]
            if w.service_account == service_account:
                return w
        return None

    def workload_with_hostname(self, namespace: str, hostname: str) -> Workload | None:
        """Find a workload by host name: a scan, for the rare gateway named so."""
        for w in self.workloads.values():
            if w.hostname == hostname and w.namespace == namespace:
                return w
        return None

    def endpoints(self, key: str) -> Iterator[Workload]:
        """All workloads of a service, healthy or not."""
        for uid in self._members.get(key, ()):
            yield self.workloads[uid]

    def policies_of(self, namespace: str, listed: Iterable[str]) -> tuple[Authorization, ...]:
        """Give the effective policies: GLOBAL, those of the namespace, and the listed ones.

        A listed policy that is not known is left out: the control plane sends policies before
        the workloads that name them and nothing is served before both have come once, so this is
        a policy that has just been removed.
        """
        keys = dict.fromkeys(self._global)
        keys.update(self._of_namespace.get(namespace, {}))
        keys.update(dict.fromkeys(k for k in listed if k in self.policies))
        return tuple(self.policies[k] for k in sorted(keys))

    def service_behind(self, w: Workload, port: int, hostname: str = "") -> Service | None:
        """Guess the service an inbound connection to w:port was meant for."""
        own = [self.services[k] for k in sorted(w.services) if k in self.services]
        for s in own:
            if s.hostname == hostname:
                return s
        for s in own:
            if any(p.target_port == port for p in (*w.services[s.key], *s.ports)):
                return s
        return None


def endpoint_port(w: Workload, service: Service, port: int) -> int:
    """Give the port of an endpoint behind a service port; 0 when it does not serve it."""
    for own in w.services.get(service.key, ()):
        if own.service_port == port and own.target_port:
            return own.target_port
    declared = declared_port(service, port)
    return declared.target_port if declared else 0


def declared_port(service: Service, port: int) -> Port | None:
    """Find a service's port by number."""
    return next((p for p in service.ports if p.service_port == port), None)


def _blocks(service: Service) -> Iterator[tuple[tuple[str, int, int], int]]:
    for cidr in service.cidrs:
        net = ipaddress.ip_network(cidr, strict=False)
        shift = net.max_prefixlen - net.prefixlen
        yield (service.network, net.version, shift), int(net.network_address) >> shift


def _add(index: dict[_K, tuple[str, ...]], key: _K, name: str) -> None:
    index[key] = (*(n for n in index.get(key, ()) if n != name), name)


def _remove(index: dict[_K, tuple[str, ...]], key: _K, name: str) -> None:
    left = tuple(n for n in index.get(key, ()) if n != name)
    if left:
        index[key] = left
    else:
        index.pop(key, None)


# Fields whose values thousands of workloads share.
_SHARED: Final = (
    "namespace",
    "service_account",
    "trust_domain",
    "node",
    "network",
    "cluster_id",
    "canonical_name",
    "canonical_revision",
    "workload_name",
)


def _interned(w: Workload) -> Workload:
    """Give an equal workload that shares its repeated strings with the others."""
    values: dict[str, Any] = {name: sys.intern(getattr(w, name)) for name in _SHARED}
    services = {sys.intern(k): _shared_ports(v) for k, v in w.services.items()}
    policies = tuple(sys.intern(k) for k in w.authorization_policies)
    return replace(w, services=services, authorization_policies=policies, **values)


_PORTS: dict[tuple[Port, ...], tuple[Port, ...]] = {}
_MAX_PORTS: Final = 10_000


def _shared_ports(ports: tuple[Port, ...]) -> tuple[Port, ...]:
    if len(_PORTS) >= _MAX_PORTS:
        _PORTS.clear()
    return _PORTS.setdefault(ports, ports)
