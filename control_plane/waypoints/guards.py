"""Who may go around a waypoint: nobody, where policies at it protect a service or a pod.

The pods of such a service, and pods whose own traffic passes such a waypoint, are told to refuse
whoever does not come by it. That holds also while the waypoint is missing; the switch that opens
the service or pod then opens this, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from control_plane.guarding import Guarded
from control_plane.registry import Registry
from control_plane.waypoints.rules import Rules
from mesh.manifest import Key
from mesh.model import Authorization, SpiffeId
from waypoint.config.security import Target, bypass_policy, workload_bypass_policy


class Guards:
    """Keeps the policies of services and pods current."""

    def __init__(self, registry: Registry, rules: Rules, trust_domain: str) -> None:
        self._registry = registry
        self._bindings = registry.bindings
        self._rules = rules
        self._trust_domain = trust_domain
        self._policies: dict[Guarded, Authorization] = {}

    def update(
        self, services: Iterable[str], pods: Iterable[tuple[str, str]]
    ) -> dict[Guarded, Authorization | None]:
        """Look at services (by key) and pods (namespace, name) again, and at the services' pods.

        Returns the policies that are others; None: no more.
        """
        found: dict[Guarded, Authorization | None] = {}
        concerned = set(pods)
        for service in services:
            found[service] = self._of_service(service)
            concerned |= {(w.namespace, w.name) for w in self._registry.members(service)}
        for pod in concerned:
            found[pod] = self._of_pod(pod)
        changes = {g: new for g, new in found.items() if new != self._policies.get(g)}
        for guarded, new in changes.items():
            if new is None:
                del self._policies[guarded]
            else:
                self._policies[guarded] = new
        return changes

    def _of_service(self, name: str) -> Authorization | None:
        record = self._registry.by_key(name)
        if record is None:
            return None
        service = record.service
        key = Key("Service", service.namespace, service.name)
        if not self._is_protected(key, Target(*key)):
            return None
        ports = {
            port.target_port
            for workload in self._registry.members(name)
            for port in workload.services.get(name, ())
        }
        passing = list(self._waypoints([key]))
        return bypass_policy(service.namespace, service.name, passing, ports - {0})

    def _of_pod(self, pod: tuple[str, str]) -> Authorization | None:
        key = Key("Pod", *pod)
        want = self._bindings.wanted(key)
        workload = self._registry.workload(*pod) if want is not None else None
        if want is None or workload is None or not self._is_protected(key):
            return None
        if want.inherited and want.key not in self._bindings.gateways:
            return None  # nobody knows whether it would take traffic of pods; Services are guarded
        records = (self._registry.by_key(name) for name in workload.services)
        services = (
            Key("Service", r.service.namespace, r.service.name) for r in records if r is not None
        )
        return workload_bypass_policy(pod[0], want.name, self._waypoints([key, *services]))

    def _is_protected(self, key: Key, *targets: Target) -> bool:
        """Say whether what a Service or Pod passes enforces anything, there or not."""
        want = self._bindings.wanted(key)
        if want is None or self._bindings.of(key).address is None:
            return False
        gateway = self._bindings.gateways.get(want.key)
        covering = [*targets, Target("Gateway", *want.key)]
        if gateway is not None:
            covering.append(Target("GatewayClass", "", gateway.class_name))
        return self._rules.security_of(covering).enforces

    def _waypoints(self, keys: Iterable[Key]) -> Iterator[SpiffeId]:
        """Yield the identities of the waypoints that these pass."""
        for key in keys:
            want = self._bindings.wanted(key)
            if want is None or self._bindings.of(key).address is None:
                continue
            gateway = self._bindings.gateways.get(want.key)
            if gateway is not None:
                yield SpiffeId(self._trust_domain, gateway.namespace, gateway.service_account)
