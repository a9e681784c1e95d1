"""What every waypoint serves, as snapshots; a change recomputes the waypoints that it touches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from control_plane.registry import Registry
from control_plane.resources import Resource, Snapshot, make_resource
from control_plane.translate.pods import MeshConfig
from control_plane.waypoints.bindings import GatewayKey
from mesh.findings import Condition
from mesh.manifest import Key
from waypoint.config.build import make_backend, make_bound_workload, make_waypoint
from waypoint.config.gateways import Deployed, class_status, gateway_status
from waypoint.config.model import Backend, Bound, BoundWorkload, Waypoint
from waypoint.config.status import Status

log = logging.getLogger(__name__)

Translate = Callable[
    [Waypoint, Sequence[Bound], Sequence[Backend], Sequence[BoundWorkload]],
    Mapping[str, Mapping[str, bytes]],
]


class Waypoints:
    """Follows a Registry; call update() after the registry's own."""

    def __init__(self, config: MeshConfig, registry: Registry, translate: Translate) -> None:
        self.snapshots: dict[str, Snapshot] = {}
        self.statuses: dict[Key, Status] = {}
        self._config = config
        self._translate = translate
        self._registry = registry
        self._bindings = registry.bindings
        self._uses: dict[GatewayKey, set[str]] = {}  # services by key

    def update(self) -> Mapping[str, Snapshot]:
        """Take in what the registry did; returns all snapshots by "namespace/name"."""
        touched, self._registry.touched = self._registry.touched, set()
        dirty = self._bindings.drain_changed()
        dirty |= {g for g, services in self._uses.items() if services & touched}
        for gateway in dirty:
            self._rebuild(gateway)
        self._tell()
        return self.snapshots

    def _rebuild(self, where: GatewayKey) -> None:
        record = self._bindings.gateways.get(where)
        name = "/".join(where)
        if record is None:
            self.snapshots.pop(name, None)
            self._uses.pop(where, None)
            return
        config = self._config
        waypoint = make_waypoint(
            record, config.trust_domain, config.cluster_id, config.cluster_domain
        )
        bound: list[Bound] = []
        backends: list[Backend] = []
        workloads: list[BoundWorkload] = []
        for key in sorted(self._bindings.served(where)):
            if key.kind == "Service":
                found = self._registry.service(key.namespace, key.name)
                if found is not None:
                    bound.append(Bound(found.service))
                    members = ((w, ()) for w in self._registry.members(found.service.key))
                    backends.append(make_backend(found.service, members))
            else:
                workload = self._registry.workload(key.namespace, key.name)
                if workload is not None:
                    ports = (p for group in workload.services.values() for p in group)
                    workloads.append(make_bound_workload(workload, ports))
        self._uses[where] = {b.service.key for b in backends}
        made = self._translate(waypoint, bound, backends, workloads)
        resources: dict[str, dict[str, Resource]] = {}
        for type_url, of_type in made.items():
            here = resources[type_url] = {}
            for n, payload in of_type.items():
                here[n] = make_resource(type_url, n, payload)
        old = self.snapshots.get(name)
        self.snapshots[name] = Snapshot(version=old.version + 1 if old else 1, resources=resources)

    def _tell(self) -> None:
        statuses: dict[Key, Status] = {}
        for key, bound in self._bindings.bound():
            conditions: tuple[Condition, ...] = (bound.condition,) if bound.condition else ()
            statuses[key] = Status(conditions)
        for (namespace, name), record in self._bindings.gateways.items():
            pods, ready = self._bindings.pods((namespace, name))
            service = self._registry.service(namespace, record.resource_name)
            there = Deployed(service.service.hostname if service else "", pods, ready)
            statuses[Key("Gateway", namespace, name)] = gateway_status(record, there)
        for found in self._bindings.own_classes():
            statuses[Key("GatewayClass", "", found["metadata"]["name"])] = class_status(found)
        self.statuses = statuses
