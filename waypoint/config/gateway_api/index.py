"""All routes and backend policies of Gateway API, and what they mean for each service of a mesh.

In memory and pure, like IstioIndex: it is fed objects and says which services may be concerned;
what they come to is worked out when it is asked for, and kept until what it depends on changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from mesh.manifest import Key
from mesh.model import Service
from waypoint.config import regex
from waypoint.config.gateway_api.attach import Attached, attach
from waypoint.config.gateway_api.policies import (
    GRANT,
    TLS_POLICY,
    TRAFFIC_POLICY,
    Grant,
    Policy,
    PolicyTarget,
    read_grant,
    read_policy,
    resolve_tls,
)
from waypoint.config.gateway_api.read_routes import read_route
from waypoint.config.gateway_api.references import GATEWAY_GROUP
from waypoint.config.gateway_api.status import State, status_of_policy, status_of_route
from waypoint.config.gateway_api.templates import PRECEDENCE, Problem, Route
from waypoint.config.pem import NOBODY
from waypoint.config.routing import Routes, Session
from waypoint.config.status import Status
from waypoint.config.traffic import BackendTls, RetryBudget, ServiceTraffic, TrafficPolicy

KINDS: Final = (*PRECEDENCE, GRANT, TLS_POLICY, TRAFFIC_POLICY)
_POLICIES: Final = (TLS_POLICY, TRAFFIC_POLICY)
_K = TypeVar("_K")
_NO_NAMES: Final[Mapping[int, str]] = {}


class GatewayApiIndex:
    """Routes, grants and policies, services, and the ConfigMaps that policies name.

    Services are keyed "namespace/hostname". `put*` return the services whose `routes` or `traffic`
    may be another now.
    """

    def __init__(self, cluster_domain: str = "cluster.local") -> None:
        self._domain = cluster_domain
        self._services: dict[str, Service] = {}
        self._port_names: dict[str, Mapping[int, str]] = {}
        self._config_maps: dict[tuple[str, str], Mapping[str, str]] = {}
        self._routes: dict[Key, Route] = {}
        self._policies: dict[Key, Policy] = {}
        self._grants: dict[str, dict[Key, Grant]] = {}  # by namespace
        self._routes_at: dict[str, set[Key]] = {}  # parent service
        self._senders: dict[str, set[Key]] = {}  # backend service
        self._intruders: dict[str, set[Key]] = {}  # namespace of a backend: routes of others
        self._policies_at: dict[str, set[Key]] = {}
        self._attached: dict[str, Attached] = {}

    # ---- what it is fed ------------------------------------------------------------------------

    def put(self, key: Key, obj: Mapping[str, Any] | None) -> frozenset[str]:
        """Take an object of one of KINDS in, or (None) forget it."""
        if key.kind in PRECEDENCE:
            return self._put_route(key, obj)
        if key.kind in _POLICIES:
            return self._put_policy(key, obj)
        if key.kind == GRANT:
            return self._put_grant(key, obj)
        return frozenset()

    def _put_route(self, key: Key, obj: Mapping[str, Any] | None) -> frozenset[str]:
        with regex.budget():
            new = None if obj is None else read_route(key, obj, self._domain)
        old = self._routes.pop(key, None)
        touched = set()
        for route, change in ((old, _discard), (new, _add)):
            if route is None:
                continue
            for parent in route.parents:
                change(self._routes_at, parent.service, key)
                touched.add(parent.service)
            for ref in route.references:
                change(self._senders, ref.service, key)
                if ref.namespace != key.namespace:
                    change(self._intruders, ref.namespace, key)
        if new is not None:
            self._routes[key] = new
        return self._forget(touched)

    def _put_policy(self, key: Key, obj: Mapping[str, Any] | None) -> frozenset[str]:
        new = None if obj is None else read_policy(key, obj, self._domain)
        old = self._policies.pop(key, None)
        touched = set()
        for policy, change in ((old, _discard), (new, _add)):
            for target in policy.targets if policy is not None else ():
                change(self._policies_at, target.service, key)
                touched.add(target.service)
        if new is not None:
            self._policies[key] = new
        return self._forget(touched | self.sending_to(touched))

    def _put_grant(self, key: Key, obj: Mapping[str, Any] | None) -> frozenset[str]:
        here = self._grants.setdefault(key.namespace, {})
        if obj is not None:
            here[key] = read_grant(key, obj)
        elif key in here:
            del here[key]
        if not here:
            del self._grants[key.namespace]
        return self._forget(self._parents_of(self._intruders.get(key.namespace, ())))

    def put_service(
        self, key: str, service: Service | None, port_names: Mapping[int, str] = _NO_NAMES
    ) -> frozenset[str]:
        """Take a service in, with the names of its ports, or (None) forget it."""
        if service is None:
            self._services.pop(key, None)
            self._port_names.pop(key, None)
        else:
            self._services[key] = service
            self._port_names[key] = port_names
        return self._forget({key} | self.sending_to({key}))

    def put_config_map(
        self, namespace: str, name: str, data: Mapping[str, str] | None
    ) -> frozenset[str]:
        """Take a ConfigMap's data in, or (None) forget it."""
        if data is None:
            self._config_maps.pop((namespace, name), None)
        else:
            self._config_maps[namespace, name] = data
        users = [
            policy
            for policy in self._policies.values()
            if policy.key.namespace == namespace and policy.tls and name in policy.tls.config_maps
        ]
        services = {target.service for policy in users for target in policy.targets}
        return frozenset(services - {""})

    def config_maps(self) -> frozenset[tuple[str, str]]:
        """Name the ConfigMaps (namespace, name) that policies need."""
        return frozenset(
            (policy.key.namespace, name)
            for policy in self._policies.values()
            for name in (policy.tls.config_maps if policy.tls else ())
        )

    # ---- what it says --------------------------------------------------------------------------

    def routes(self, service: str) -> dict[int, Routes]:
        """Say what the routes of a service come to, by port.

        A port without routes is not in it: its traffic goes to the service itself.
        """
        return self.attached(service).ports

    def taken(self, service: str) -> dict[int, str]:
        """Say which ports have routes for all callers, and whose: others do not count there."""
        return self.attached(service).producers

    def traffic(self, service: str, base: ServiceTraffic) -> ServiceTraffic:
        """Fill in what policies say of a service where a DestinationRule leaves it open."""
        budget = self._budget(service)
        tls = {port: self._tls(service, name) for port, name in self._named_ports(service).items()}
        if budget is None and not any(tls.values()):
            return base

        def fill(policy: TrafficPolicy, port: int | None) -> TrafficPolicy:
            own = tls.get(port) if port is not None else self._tls(service, "")
            return replace(policy, budget=policy.budget or budget, tls=policy.tls or own)

        numbers = sorted(tls)
        return replace(
            base,
            policy=fill(base.policy, None),
            ports=tuple((n, fill(base.at(n), n)) for n in numbers),
            subsets=tuple(
                replace(
                    subset,
                    policy=fill(subset.policy, None),
                    ports=tuple((n, fill(subset.at(n), n)) for n in numbers),
                )
                for subset in base.subsets
            ),
        )

    def __contains__(self, key: Key) -> bool:
        """Say whether it holds an object that is told something."""
        return key in self._routes or key in self._policies

    def keys(self) -> frozenset[Key]:
        """Name the objects that are told something."""
        return frozenset((*self._routes, *self._policies))

    def objects(self, services: Iterable[str]) -> frozenset[Key]:
        """Name the objects whose status depends on these services."""
        found: set[Key] = set()
        for service in services:
            for table in (self._routes_at, self._senders, self._policies_at):
                found |= table.get(service, set())
        return frozenset(found)

    def status(self, key: Key, state: State) -> Status:
        """Say what an object is to be told."""
        if key in self._routes:
            return status_of_route(self._routes[key], self, self.attached, state)
        policy = self._policies.get(key)
        if policy is None:
            return Status()
        ca: Problem | None = None
        has_ca = True
        if policy.tls is not None:
            settings, ca = self._resolve(policy)
            has_ca = settings.ca != NOBODY
        return status_of_policy(policy, self, self._older, ca, has_ca)

    # ---- Catalogue -----------------------------------------------------------------------------

    def service(self, key: str) -> Service | None:
        """Find a service."""
        return self._services.get(key)

    def port_name(self, service: str, port: int) -> str:
        """Name a port of a service, or ""."""
        return self._port_names.get(service, _NO_NAMES).get(port, "")

    def is_granted(self, route: Key, service: Service) -> bool:
        """Say whether a ReferenceGrant lets a route send to a service."""
        grants = self._grants.get(service.namespace, {}).values()
        return any(
            g.allows(GATEWAY_GROUP, route.kind, route.namespace, service.name) for g in grants
        )

    def session(self, service: str) -> Session | None:
        """Find the session persistence that a policy asks of a service."""
        policies = self._policies_of(service, TRAFFIC_POLICY)
        return policies[0].session if policies and not policies[0].report.invalid else None

    # ---- working it out ------------------------------------------------------------------------

    def attached(self, service: str) -> Attached:
        """Say what became of the routes of a service."""
        found = self._attached.get(service)
        if found is None:
            known = self._services.get(service)
            found = Attached()
            if known is not None:
                keys = self._routes_at.get(service, ())
                found = attach(known, [self._routes[k] for k in sorted(keys)], self)
            self._attached[service] = found
        return found

    def _policies_of(self, service: str, kind: str) -> list[Policy]:
        """Order the policies of a kind for a service: the oldest counts."""
        keys = (k for k in self._policies_at.get(service, ()) if k.kind == kind)
        return sorted((self._policies[k] for k in keys), key=lambda policy: policy.age)

    def _budget(self, service: str) -> RetryBudget | None:
        policies = self._policies_of(service, TRAFFIC_POLICY)
        return policies[0].budget if policies and not policies[0].report.invalid else None

    def _named_ports(self, service: str) -> dict[int, str]:
        known = self._services.get(service)
        ports = known.ports if known is not None else ()
        return {p.service_port: self.port_name(service, p.service_port) for p in ports}

    def _counting_tls(self, service: str, section: str) -> Policy | None:
        """Find the policy for a port by its name: one that names it before one for all."""
        policies = self._policies_of(service, TLS_POLICY)
        for wanted in dict.fromkeys((section, "")):
            for policy in policies:
                if any(t.service == service and t.section == wanted for t in policy.targets):
                    return policy
        return None

    def _tls(self, service: str, section: str) -> BackendTls | None:
        policy = self._counting_tls(service, section)
        return None if policy is None else self._resolve(policy)[0]

    def _resolve(self, policy: Policy) -> tuple[BackendTls, Problem | None]:
        assert policy.tls is not None
        return resolve_tls(
            policy.tls,
            policy.key.namespace,
            lambda ns, name: self._config_maps.get((ns, name)),
            sound=not policy.report.invalid,
        )

    def _older(self, policy: Policy, target: PolicyTarget) -> Key | None:
        """Find the policy that counts for a target instead of this one."""
        if policy.key.kind == TLS_POLICY:
            rivals = [
                p
                for p in self._policies_of(target.service, TLS_POLICY)
                if any(
                    (t.service, t.section) == (target.service, target.section) for t in p.targets
                )
            ]
        else:
            rivals = self._policies_of(target.service, TRAFFIC_POLICY)
        return rivals[0].key if rivals and rivals[0].key != policy.key else None

    # ---- which services ------------------------------------------------------------------------

    def _parents_of(self, routes: Iterable[Key]) -> set[str]:
        return {parent.service for key in routes for parent in self._routes[key].parents}

    def sending_to(self, services: Iterable[str]) -> set[str]:
        """Find the services whose routes send to any of these."""
        found: set[str] = set()
        for service in services:
            found |= self._parents_of(self._senders.get(service, ()))
        return found

    def _forget(self, services: set[str]) -> frozenset[str]:
        services.discard("")
        for service in services:
            self._attached.pop(service, None)
        return frozenset(services)


def _add(table: dict[str, set[_K]], at: str, value: _K) -> None:
    table.setdefault(at, set()).add(value)


def _discard(table: dict[str, set[_K]], at: str, value: _K) -> None:
    here = table.get(at, set())
    here.discard(value)
    if not here:
        table.pop(at, None)
