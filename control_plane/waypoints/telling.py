"""What the objects that concern waypoints are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from control_plane.registry import Registry
from control_plane.waypoints.deploying import Trouble
from control_plane.waypoints.holding import GatewayKey
from control_plane.waypoints.rules import Rules
from control_plane.waypoints.statuses import Statuses
from mesh.findings import Condition
from mesh.manifest import Key
from waypoint.config.features import FEATURES
from waypoint.config.gateways import Deployed, class_status, gateway_status
from waypoint.config.istio import ServiceState
from waypoint.config.security import Target, TargetState
from waypoint.config.status import Status

PROGRAMMED: Final = "ambit.io/Programmed"  # of a route's parent; only said when it is not
_MAX_MESSAGE: Final = 4096
_HTTP: Final = frozenset({1, 2, 3})  # istio.workload.AppProtocol: HTTP11, HTTP2, GRPC


class Teller:
    """Keeps statuses current. `users`: the waypoints ("namespace/name") that send to a service."""

    def __init__(
        self, registry: Registry, rules: Rules, users: Callable[[str], tuple[str, ...]]
    ) -> None:
        self.statuses = Statuses()
        self._registry = registry
        self._bindings = registry.bindings
        self._rules = rules
        self._users = users
        self._classes: set[str] = set()
        self.troubles: Mapping[GatewayKey, Trouble] = {}
        self._refused: Mapping[Key, str] = {}

    def take_refusals(self, refused: Mapping[Key, str]) -> set[Key]:
        """Take what Envoys refuse, by object; returns those that are told otherwise now."""
        old, self._refused = self._refused, refused
        return {k for k in {*old, *refused} if old.get(k) != refused.get(k)}

    def take_troubles(self, troubles: Mapping[GatewayKey, Trouble]) -> set[GatewayKey]:
        """Take what stands in the way of Gateways; returns those of which it is news."""
        old, self.troubles = self.troubles, troubles
        return {k for k in {*old, *troubles} if old.get(k) != troubles.get(k)}

    def tell(
        self,
        rebound: Iterable[Key],
        gateways: Iterable[GatewayKey],
        services: set[str],
        targets: set[Target],
        objects: set[Key],
    ) -> None:
        """Work out the statuses that depend on what has changed."""
        gateways = set(gateways)
        for key in {*rebound, *(k for k in objects if k.kind in ("Service", "Pod"))}:
            condition = self._bindings.of(key).condition
            self._say(key, Status((condition,)) if condition else None)
        gateways |= {(k.namespace, k.name) for k in objects if k.kind == "Gateway"}
        objects = {k for k in objects if k.kind not in ("Service", "Pod", "Gateway")}
        for where in gateways:
            self._tell_gateway(where)
        self._tell_classes()
        targets = targets | {Target(*key) for key in rebound if key.kind == "Service"}
        targets |= {Target("Gateway", *where) for where in gateways}
        for key in objects | self._rules.objects(services, targets):
            self._say(key, self._rules.status(key, self._service, self._target))

    def _say(self, key: Key, status: Status | None) -> None:
        """Say something, and beside it what Envoy thinks of the object."""
        error = self._refused.get(key)
        self.statuses.set(key, with_error(status, error) if status and error else status)

    def _tell_gateway(self, where: GatewayKey) -> None:
        key, record = Key("Gateway", *where), self._bindings.gateways.get(where)
        if record is None:
            self.statuses.set(key, None)
            return
        service = self._registry.service(record.namespace, record.resource_name)
        pods, ready = self._bindings.pods(where)
        trouble = self.troubles.get(where, Trouble())
        there = Deployed(
            service.service.hostname if service else "",
            pods,
            ready,
            trouble.problem,
            trouble.parameters,
        )
        self._say(key, gateway_status(record, there))

    def _tell_classes(self) -> None:
        own = {str(c["metadata"]["name"]): c for c in self._bindings.own_classes()}
        for name in self._classes - own.keys():
            self.statuses.set(Key("GatewayClass", "", name), None)
        for name, found in own.items():
            self.statuses.set(Key("GatewayClass", "", name), class_status(found, FEATURES))
        self._classes = set(own)

    def _bound(self, key: Key) -> tuple[str, ...]:
        """Name the waypoint that serves something now."""
        found = self._bindings.of(key)
        return ("/".join(found.gateway),) if found.gateway and found.address else ()

    def _service(self, name: str) -> ServiceState:
        """Say what there is to know of a service, for DestinationRules and VirtualServices."""
        record = self._registry.by_key(name)
        if record is None:
            return ServiceState()
        key = Key("Service", record.service.namespace, record.service.name)
        return ServiceState(self._bound(key), self._users(name), self._rules.taken(name))

    def _target(self, target: Target) -> TargetState:
        """Say what there is to know of a policy's target."""
        if target.kind == "Service":
            record = self._registry.service(target.namespace, target.name)
            if record is None:
                return TargetState(False)
            ports = (p.service_port for p in record.service.ports if p.app_protocol not in _HTTP)
            return TargetState(True, self._bound(Key(*target)), tuple(sorted(ports)))
        if target.kind == "Gateway":
            gateway = self._bindings.gateways.get((target.namespace, target.name))
            name = f"{target.namespace}/{target.name}"
            return TargetState(gateway is not None, (name,) if gateway else ())
        if target.kind == "GatewayClass":
            found = sorted(
                "/".join(where)
                for where, gateway in self._bindings.gateways.items()
                if gateway.class_name == target.name
            )
            return TargetState(bool(found) or target.name in self._bindings.classes, tuple(found))
        return TargetState(False)


def with_error(status: Status, error: str) -> Status:
    """Say in a status that Envoy refuses what is made of the object."""
    text = f"{error}; what worked before stays in effect"[:_MAX_MESSAGE]
    if status.parents:
        told = Condition(PROGRAMMED, False, "RefusedByEnvoy", text)
        parents = tuple(replace(p, conditions=(*p.conditions, told)) for p in status.parents)
        return replace(status, parents=parents)
    *rest, last = status.conditions
    return replace(
        status, conditions=(*rest, replace(last, status=False, reason="Invalid", message=text))
    )
