"""Who may go around a waypoint: nobody, where policies at it protect a service.

The pods of such a service are told to refuse whoever does not come by the waypoint. That holds
also while the waypoint is missing; the switch that opens the service then opens this, too.
"""

from __future__ import annotations

from collections.abc import Iterable

from control_plane.registry import Registry
from control_plane.waypoints.rules import Rules
from mesh.manifest import Key
from mesh.model import Authorization, SpiffeId
from waypoint.config.security import Target, bypass_policy


class Guards:
    """Keeps the policies of services, by key, current."""

    def __init__(self, registry: Registry, rules: Rules, trust_domain: str) -> None:
        self._registry = registry
        self._bindings = registry.bindings
        self._rules = rules
        self._trust_domain = trust_domain
        self._policies: dict[str, Authorization] = {}

    def update(self, services: Iterable[str]) -> dict[str, Authorization | None]:
        """Look at services (by key) again; returns the policies that are others, None: no more."""
        changes = {}
        for service in services:
            new = self._policy(service)
            if new == self._policies.get(service):
                continue
            changes[service] = new
            if new is None:
                del self._policies[service]
            else:
                self._policies[service] = new
        return changes

    def _policy(self, name: str) -> Authorization | None:
        record = self._registry.by_key(name)
        if record is None:
            return None
        service = record.service
        key = Key("Service", service.namespace, service.name)
        want = self._bindings.wanted(key)
        if want is None or self._bindings.of(key).address is None:
            return None
        targets, passing = [Target(*key), Target("Gateway", *want.key)], []
        gateway = self._bindings.gateways.get(want.key)
        if gateway is not None:
            targets.append(Target("GatewayClass", "", gateway.class_name))
            account = gateway.service_account
            passing.append(SpiffeId(self._trust_domain, gateway.namespace, account))
        if not self._rules.security_of(targets).enforces:
            return None
        ports = {
            port.target_port
            for workload in self._registry.members(name)
            for port in workload.services.get(name, ())
        }
        return bypass_policy(service.namespace, service.name, passing, ports - {0})
