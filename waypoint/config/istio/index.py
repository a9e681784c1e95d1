"""All DestinationRules and VirtualServices of a mesh, and what they mean for each of its services.

In memory and pure: it is fed objects and says which services may be concerned; what they come to
is worked out when it is asked for, and kept until something it depends on changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from mesh.manifest import Key
from mesh.model import Service
from waypoint.config import regex
from waypoint.config.istio import hosts
from waypoint.config.istio.destination_rule import (
    DestinationRule,
    compose,
    read_destination_rule,
)
from waypoint.config.istio.rules import Bindings, bind
from waypoint.config.istio.status import ServiceState, status_of_rule, status_of_virtual
from waypoint.config.istio.templates import VirtualService
from waypoint.config.istio.tls import Data
from waypoint.config.istio.virtual_service import read_virtual_service
from waypoint.config.reading import Report
from waypoint.config.routing import Routes
from waypoint.config.status import Status
from waypoint.config.traffic import DEFAULT, ServiceTraffic

RULE: Final = "DestinationRule"
VIRTUAL: Final = "VirtualService"
KINDS: Final = (RULE, VIRTUAL)


class _ByHost:
    """Objects by the hosts that they name; a service's name finds those of wildcards too."""

    def __init__(self) -> None:
        self._exact: dict[str, set[Key]] = {}
        self._wild: dict[str, set[Key]] = {}

    def _of(self, host: str) -> dict[str, set[Key]]:
        return self._wild if hosts.is_wildcard(host) else self._exact

    def add(self, key: Key, names: Iterable[str]) -> None:
        for host in names:
            self._of(host).setdefault(host, set()).add(key)

    def discard(self, key: Key, names: Iterable[str]) -> None:
        for host in names:
            table = self._of(host)
            table.get(host, set()).discard(key)
            if not table.get(host):
                table.pop(host, None)

    def find(self, hostname: str) -> dict[str, set[Key]]:
        """Find all that name a hostname, by the host that they say."""
        found = {p: keys for p, keys in self._wild.items() if hosts.covers(p, hostname)}
        if hostname in self._exact:
            found[hostname] = self._exact[hostname]
        return found


class IstioIndex:
    """DestinationRules and VirtualServices, services, and the Secrets that rules name.

    Services are keyed "namespace/hostname". `put*` return the services whose `traffic` or `routes`
    may be another now.
    """

    def __init__(self, root_namespace: str, cluster_domain: str = "cluster.local") -> None:
        self.root_namespace = root_namespace
        self._domain = cluster_domain
        self._services: dict[str, Service] = {}
        self._hostnames: dict[str, set[str]] = {}
        self._secrets: dict[tuple[str, str], Data] = {}
        self._rules: dict[Key, DestinationRule] = {}
        self._virtual: dict[Key, VirtualService] = {}
        self._rules_at = _ByHost()
        self._virtual_at = _ByHost()
        self._senders: dict[str, set[Key]] = {}  # destination host: VirtualServices
        self._roots: dict[Key, set[Key]] = {}  # delegate: VirtualServices that name it
        self._traffic: dict[str, tuple[ServiceTraffic, dict[Key, Report]]] = {}
        self._bindings: dict[str, dict[str, Bindings]] = {}  # service: namespace of the waypoint

    # ---- what it is fed ------------------------------------------------------------------------

    def put(self, key: Key, obj: Mapping[str, Any] | None) -> frozenset[str]:
        """Take an object of one of KINDS in, or (None) forget it."""
        if key.kind == RULE:
            return self._put_rule(key, obj)
        if key.kind == VIRTUAL:
            return self._put_virtual(key, obj)
        return frozenset()

    def _put_rule(self, key: Key, obj: Mapping[str, Any] | None) -> frozenset[str]:
        new = None if obj is None else read_destination_rule(key, obj, self._domain)
        touched: set[str] = set()
        old = self._rules.pop(key, None)
        if old is not None and old.host:
            self._rules_at.discard(key, (old.host,))
            touched |= self.named(old.host)
        if new is not None:
            self._rules[key] = new
        if new is not None and new.host:
            self._rules_at.add(key, (new.host,))
            touched |= self.named(new.host)
        return self._forget(touched | self._sending_to(touched))

    def _put_virtual(self, key: Key, obj: Mapping[str, Any] | None) -> frozenset[str]:
        with regex.budget():
            new = None if obj is None else read_virtual_service(key, obj, self._domain)
        touched = self.served(key)
        old = self._virtual.pop(key, None)
        if old is not None:
            self._virtual_at.discard(key, old.hosts)
            self._link(key, old, set.discard)
        if new is not None:
            self._virtual[key] = new
            self._virtual_at.add(key, new.hosts)
            self._link(key, new, set.add)
        return self._forget(touched | self.served(key))

    def _link(self, key: Key, obj: VirtualService, change: Callable[[set[Key], Key], None]) -> None:
        for host in obj.destinations:
            _change(self._senders, host, key, change)
        for delegate in obj.delegates:
            _change(self._roots, delegate, key, change)

    def put_service(self, key: str, service: Service | None) -> frozenset[str]:
        """Take a service in, or (None) forget it."""
        touched = {key}
        for known in (self._services.pop(key, None), service):
            if known is None:
                continue
            same = self._hostnames.setdefault(known.hostname, set())
            touched |= same
            if known is service:
                same.add(key)
                self._services[key] = service
            else:
                same.discard(key)
            if not same:
                del self._hostnames[known.hostname]
            for sender in self._senders.get(known.hostname, ()):
                touched |= self.served(sender)
        return self._forget(touched)

    def put_secret(self, namespace: str, name: str, data: Data | None) -> frozenset[str]:
        """Take a Secret's data (decoded) in, or (None) forget it."""
        if data is None:
            self._secrets.pop((namespace, name), None)
        else:
            self._secrets[namespace, name] = data
        touched: set[str] = set()
        for rule in self._rules.values():
            if rule.key.namespace == namespace and name in rule.credentials():
                touched |= self.named(rule.host)
        return self._forget(touched)

    def secrets(self) -> frozenset[tuple[str, str]]:
        """Name the Secrets (namespace, name) that rules need."""
        return frozenset(
            (rule.key.namespace, name)
            for rule in self._rules.values()
            for name in rule.credentials()
        )

    # ---- what it says --------------------------------------------------------------------------

    def traffic(self, service: str) -> ServiceTraffic:
        """Say how the endpoints of a service are talked to."""
        return self.composed(service)[0]

    def routes(self, service: str, namespace: str) -> dict[int, Routes]:
        """Say what the VirtualServices of a service come to, by port, at a waypoint of a namespace.

        Those of the service's own namespace and of the waypoint's count. A port without rules is
        not in it: its traffic goes to the service itself.
        """
        return self.bindings(service, namespace).ports

    def __contains__(self, key: Key) -> bool:
        """Say whether it holds an object."""
        return key in self._rules or key in self._virtual

    def keys(self) -> frozenset[Key]:
        """Name the objects that it holds."""
        return frozenset((*self._rules, *self._virtual))

    def objects(self, services: Iterable[str]) -> frozenset[Key]:
        """Name the objects whose status depends on these services."""
        found: set[Key] = set()
        for service in services:
            hostname = service.partition("/")[2]
            for index in (self._rules_at, self._virtual_at):
                for keys in index.find(hostname).values():
                    found |= keys
            found |= self._senders.get(hostname, set())
        for key in tuple(found):
            found |= self._virtual[key].delegates if key in self._virtual else set()
            found |= self._roots.get(key, set())
        return frozenset(found)

    def status(self, key: Key, state: Callable[[str], ServiceState]) -> Status:
        """Say what an object is to be told."""
        if key in self._rules:
            return status_of_rule(self._rules[key], self, state)
        if key in self._virtual:
            return status_of_virtual(self._virtual[key], self, state)
        return Status()

    # ---- Catalogue -----------------------------------------------------------------------------

    def find(self, hostname: str, namespace: str) -> Service | None:
        """Find a service by hostname, one of this namespace before others."""
        keys = self._hostnames.get(hostname, ())
        best = min(keys, key=lambda k: (not k.startswith(f"{namespace}/"), k), default=None)
        return None if best is None else self._services[best]

    def has_subset(self, service: str, name: str) -> bool:
        """Say whether a DestinationRule gives a service this subset."""
        return self.traffic(service).subset(name) is not None

    def lookup(self, key: Key) -> VirtualService | None:
        """Find a VirtualService."""
        return self._virtual.get(key)

    # ---- which services ------------------------------------------------------------------------

    def roots(self, key: Key) -> list[VirtualService]:
        """Find the VirtualServices that delegate to one."""
        return [self._virtual[root] for root in sorted(self._roots.get(key, ()))]

    def named(self, host: str) -> set[str]:
        """Find the services that a host, perhaps a wildcard, stands for."""
        if not hosts.is_wildcard(host):
            return set(self._hostnames.get(host, ()))
        return {
            key
            for hostname, keys in self._hostnames.items()
            if hosts.covers(host, hostname)
            for key in keys
        }

    def served(self, key: Key) -> set[str]:
        """Find the services whose requests a VirtualService takes, itself or as a delegate."""
        found: set[str] = set()
        for root in (key, *self._roots.get(key, ())):
            obj = self._virtual.get(root)
            for host in obj.hosts if obj is not None else ():
                found |= self.named(host)
        return found

    def _sending_to(self, services: set[str]) -> set[str]:
        """Find the services whose VirtualServices send to any of these."""
        found: set[str] = set()
        for hostname in {key.partition("/")[2] for key in services}:
            for sender in self._senders.get(hostname, ()):
                found |= self.served(sender)
        return found

    def _forget(self, services: set[str]) -> frozenset[str]:
        for key in services:
            self._traffic.pop(key, None)
            self._bindings.pop(key, None)
        return frozenset(services)

    # ---- working it out ------------------------------------------------------------------------

    def _rules_of(self, service: Service) -> list[DestinationRule]:
        """Pick a service's rules: its namespace's before the root's, exact before wildcard."""
        found = self._rules_at.find(service.hostname)
        for owner in dict.fromkeys((service.namespace, self.root_namespace)):
            here = {
                host: rules
                for host, keys in found.items()
                if (
                    rules := [
                        rule
                        for rule in map(self._rules.__getitem__, keys)
                        if rule.key.namespace == owner
                        and hosts.is_visible(rule.export, owner, service.namespace)
                    ]
                )
            }
            if here:
                best = max(here, key=hosts.specificity)
                return sorted(here[best], key=lambda rule: rule.age)
        return []

    def composed(self, key: str) -> tuple[ServiceTraffic, dict[Key, Report]]:
        """Say how a service is talked to, and what each of the rules is told that say so."""
        found = self._traffic.get(key)
        if found is None:
            service = self._services.get(key)
            rules = [] if service is None else self._rules_of(service)
            found = (DEFAULT, {})
            if rules:
                found = compose(rules, lambda ns, name: self._secrets.get((ns, name)))
            self._traffic[key] = found
        return found

    def _virtual_of(self, service: Service, namespace: str) -> list[VirtualService]:
        """Order the VirtualServices of a service: the most specific host first, then the oldest."""
        ordered = []
        for host, keys in self._virtual_at.find(service.hostname).items():
            exact, length = hosts.specificity(host)
            for obj in map(self._virtual.__getitem__, keys):
                owner = obj.key.namespace
                if owner in (service.namespace, namespace) and (
                    hosts.is_visible(obj.export, owner, service.namespace)
                    or hosts.is_visible(obj.export, owner, namespace)
                ):
                    ordered.append(((not exact, -length, obj.created, *obj.key), obj))
        ordered.sort(key=lambda item: item[0])
        return list({obj.key: obj for _, obj in ordered}.values())

    def bindings(self, key: str, namespace: str) -> Bindings:
        """Say what a service's VirtualServices come to at a waypoint of a namespace."""
        here = self._bindings.setdefault(key, {})
        found = here.get(namespace)
        if found is None:
            service = self._services.get(key)
            objects = [] if service is None else self._virtual_of(service, namespace)
            found = bind(service, objects, self) if service and objects else Bindings({}, {})
            here[namespace] = found
        return found


def _change(
    table: dict[Any, set[Key]], at: Any, key: Key, change: Callable[[set[Key], Key], None]
) -> None:
    here = table.setdefault(at, set())
    change(here, key)
    if not here:
        del table[at]
