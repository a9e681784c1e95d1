"""All waypoints: what each of them serves, and what every object that concerns them is told.

Follows a Registry. A change makes anew what depends on it: the values of what a waypoint serves
(model), where they differ their resources, and the snapshots of the waypoints that have them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from control_plane.delta import Nack
from control_plane.guarding import Guarded
from control_plane.registry import Registry
from control_plane.resources import Snapshot
from control_plane.translate.pods import MeshConfig
from control_plane.waypoints import rules
from control_plane.waypoints.deploying import Trouble
from control_plane.waypoints.guards import Guards
from control_plane.waypoints.holding import GatewayKey
from control_plane.waypoints.rules import Rules
from control_plane.waypoints.sending import Made, make
from control_plane.waypoints.serving import Serving, Translator
from control_plane.waypoints.telling import Teller
from mesh.manifest import Key
from mesh.model import Authorization, Workload
from mesh.xds.delta import Resource
from waypoint.config.build import Labels, make_backend, make_bound_workload, make_waypoint
from waypoint.config.gateways import GatewayRecord
from waypoint.config.locality import Place, needs_labels, place_of
from waypoint.config.model import Bound, BoundWorkload
from waypoint.config.routing import BackendRef
from waypoint.config.security import Target

log = logging.getLogger(__name__)

Object = Mapping[str, Any]
KINDS: Final = rules.KINDS
_SENT_TO: Final = "outbound|"  # names of clusters and assignments


class Waypoints:
    """Feed it the changes that the registry was fed, after it."""

    def __init__(self, config: MeshConfig, registry: Registry, translator: Translator) -> None:
        self.rules = Rules(config.root_namespace, config.cluster_domain)
        self._config = config
        self._registry = registry
        self._bindings = registry.bindings
        self._translator = translator
        self._now = 0.0
        self._serving: dict[GatewayKey, Serving] = {}
        self._at: dict[Key, GatewayKey] = {}  # where something is listened for
        self._uses: dict[GatewayKey, dict[str, frozenset[BackendRef]]] = {}
        self._users: dict[str, set[GatewayKey]] = {}  # who sends to a service
        self._made: dict[str, Made] = {}  # of services that are sent to
        self._guards = Guards(registry, self.rules, config.trust_domain)
        self._teller = Teller(registry, self.rules, self.users)
        self.statuses = self._teller.statuses

    @property
    def gateways(self) -> Mapping[GatewayKey, GatewayRecord]:
        """All Gateways of a waypoint class."""
        return self._bindings.gateways

    @property
    def snapshots(self) -> Mapping[str, Snapshot]:
        """What each waypoint serves, by "namespace/name"."""
        return {"/".join(where): s.snapshot for where, s in self._serving.items()}

    def update(
        self,
        changed: Mapping[Key, Object],
        gone: set[Key],
        troubles: Mapping[GatewayKey, Trouble] | None = None,
        now: float = 0.0,
    ) -> Mapping[Guarded, Authorization | None]:
        """Take in a change; returns policies for pods and services (see Guards).

        troubles: what stands in the way of Gateways' objects; None: as before. now: monotonic.
        """
        self._now = now
        touched, pods = self._take(changed, gone)
        services, targets, objects = self.rules.drain()
        rebound, gateways = self._bindings.drain()
        gateways |= self.rules.drain_logs()

        dirty = {where for where in gateways if self._describe(where)}
        keys = rebound | self._covered(touched | services, targets)
        keys |= {Key("Pod", namespace, name) for namespace, name in pods}
        for where in dirty:
            keys |= self._bindings.served(where)
        for key in keys:
            dirty |= self._rebind(key)
        for where, key in self._bindings.holds.left(now):
            if where in self._serving and self._serving[where].unbind(key):
                dirty.add(where)
        used = set()
        for where in dirty:
            used |= self._use(where)
        for service in touched | services | used:
            self._send(service)
        for where, serving in self._serving.items():
            self._finish(where, serving)
        self._bindings.holds.made(self._version)
        objects |= self._teller.take_refusals(self._blame())
        gateways |= {
            g for g, record in self._bindings.gateways.items() if self._address(record) in touched
        }
        if troubles is not None:
            gateways |= self._teller.take_troubles(troubles)
        concerned = services | used | self._services_of(rebound)
        rebound = {key for key in rebound if key not in self._bindings.holds}
        self._teller.tell(rebound, gateways, concerned, targets, objects)
        guarded = keys | rebound | self._covered((), targets)
        found = {(key.namespace, key.name) for key in guarded if key.kind == "Pod"}
        return self._guards.update(touched | self._services_of(guarded), found)

    def _take(
        self, changed: Mapping[Key, Object], gone: set[Key]
    ) -> tuple[set[str], set[tuple[str, str]]]:
        """Take objects in, and services as the registry has them; returns what it touched."""
        for key in [*changed, *gone]:
            if key.kind in KINDS:
                self.rules.take(key, changed.get(key))
        touched, pods = self._registry.drain_touched()
        for name in touched:
            record = self._registry.by_key(name)
            if record is None:
                self.rules.put_service(name, None)
            else:
                self.rules.put_service(name, record.service, record.port_names)
        return touched, pods

    def release(self, now: float, reached: Callable[[str], int | None]) -> set[Key]:
        """Name the bindings that may be told to node proxies now, and tell their objects.

        reached: the version that all pods of a waypoint ("namespace/name") have, None for none.
        """
        released = self._bindings.release(now, lambda where: reached("/".join(where)))
        services = self._services_of(released)
        self._teller.tell(released, (), services, set(), set())
        return released

    def answered(self, name: str, accepted: Sequence[Resource], refused: Sequence[Nack]) -> bool:
        """Take the answers of a pod of a waypoint; returns whether update() has something to do."""
        namespace, _, gateway = name.partition("/")
        serving = self._serving.get((namespace, gateway))
        errors = [(resource, nack.error) for nack in refused for resource in nack.resources]
        return serving is not None and serving.answered(accepted, errors)

    @property
    def refused(self) -> int:
        """How many resources are refused by a waypoint now."""
        return sum(1 for serving in self._serving.values() for _ in serving.refused())

    def due(self, now: float) -> float | None:
        """When to look again though nothing changes; None: not at all."""
        return self._bindings.holds.due(now)

    # ---- waypoints ---------------------------------------------------------------------------

    def _describe(self, where: GatewayKey) -> bool:
        """Take in a Gateway; returns whether all that is bound to it is to be made anew."""
        record, config = self._bindings.gateways.get(where), self._config
        self.rules.telemetry.put_gateway(where, record is not None)
        if record is None:
            return self._serving.pop(where, None) is not None
        waypoint = make_waypoint(
            record,
            config.trust_domain,
            config.cluster_id,
            config.cluster_domain,
            self.rules.telemetry.logs(where),
        )
        serving = self._serving.get(where)
        if serving is None:
            self._serving[where] = Serving(waypoint)
            return True
        return serving.describe(waypoint)

    def _blame(self) -> dict[Key, str]:
        """Say which objects made what waypoints refuse, and what was refused."""
        out: dict[Key, str] = {}
        for where, serving in self._serving.items():
            for owner, resource, error in serving.refused():
                text = f"waypoint {where[0]}/{where[1]} refuses {resource}: {error}"
                for culprit in self._culprits(serving, owner, resource, error):
                    out.setdefault(culprit, text)
                if owner is None:
                    out.setdefault(Key("Gateway", *where), text)
        return out

    def _culprits(self, serving: Serving, owner: Key | None, resource: str, error: str) -> set[Key]:
        value = serving.value(owner) if owner is not None else None
        if owner is None:
            return set()
        record = self._registry.service(owner.namespace, owner.name)
        if record is not None and resource.startswith(_SENT_TO):
            origin = self.rules.traffic(record.service.key).origin
            return {origin} if origin is not None else {owner}
        found = self.rules.culprits(value, error) if isinstance(value, Bound) else set()
        return found or {owner}

    def _version(self, where: GatewayKey) -> int:
        serving = self._serving.get(where)
        return serving.snapshot.version if serving is not None else 0

    def _address(self, gateway: GatewayRecord) -> str:
        """Key of the Service made for a Gateway."""
        ns, domain = gateway.namespace, self._config.cluster_domain
        return f"{ns}/{gateway.resource_name}.{ns}.svc.{domain}"

    def _finish(self, where: GatewayKey, serving: Serving) -> None:
        try:
            serving.settle(self._places(where, serving.place_keys))
            serving.finish(self._translator)
        except Exception:  # one waypoint's must not be everybody's
            log.exception("waypoint %s/%s: listeners stay as they were", *where)

    def _places(self, where: GatewayKey, keys: frozenset[str]) -> dict[str, Place]:
        """Say where the pods of a waypoint are, as far as these labels go."""
        found = {}
        for name in self._bindings.pod_names(where) if keys else ():
            pod = self._registry.pod(where[0], name)
            workload = self._registry.workload(where[0], name)
            if pod is not None and workload is not None:
                found[name] = place_of(workload, pod.labels, keys)
        return found

    # ---- what is listened for ----------------------------------------------------------------

    def _covered(self, services: Iterable[str], targets: Iterable[Target]) -> set[Key]:
        """Name what is bound and may be another value because of these."""
        found: set[Key] = set()
        for name in services:
            record = self._registry.by_key(name)
            if record is not None:
                found.add(Key("Service", record.service.namespace, record.service.name))
        for target in targets:
            if target.kind == "Gateway":
                found |= self._bindings.served((target.namespace, target.name))
            elif target.kind == "GatewayClass":
                for where, gateway in self._bindings.gateways.items():
                    if gateway.class_name == target.name:
                        found |= self._bindings.served(where)
            else:
                found.add(Key(target.kind, target.namespace, target.name))
        return found

    def _rebind(self, key: Key) -> set[GatewayKey]:
        """Listen for something where it is bound now; returns the waypoints that are others."""
        dirty = set()
        old, new = self._at.get(key), self._bindings.of(key).gateway
        value = self._value(key, new) if new and new in self._serving else None
        if old is not None and (value is None or old != new):
            del self._at[key]
            if self._exists(key):  # node proxies hear of it a moment later
                self._bindings.holds.leave(old, key, self._now)
            elif old in self._serving and self._serving[old].unbind(key):
                dirty.add(old)
        if new and value is not None:
            try:
                if self._serving[new].bind(key, value, self._translator):
                    dirty.add(new)
                self._at[key] = new
                self._bindings.holds.stay(new, key)
            except Exception:  # one object's must not be everybody's
                log.exception("%s: cannot be translated; it stays as it was", key)
        return dirty

    def _exists(self, key: Key) -> bool:
        if key.kind == "Service":
            return self._registry.service(key.namespace, key.name) is not None
        return self._registry.workload(key.namespace, key.name) is not None

    def _value(self, key: Key, where: GatewayKey) -> Bound | BoundWorkload | None:
        gateway = self._bindings.gateways[where]
        covering = [
            Target("Gateway", gateway.namespace, gateway.name),
            Target("GatewayClass", "", gateway.class_name),
        ]
        if key.kind == "Service":
            record = self._registry.service(key.namespace, key.name)
            if record is None:
                return None
            service = record.service
            routes = self.rules.routes(service, gateway.namespace)
            return Bound(
                service=service,
                routes=routes,
                security=self.rules.security_of([Target(*key), *covering]),
                traffic=self.rules.traffic(service.key),
                hashes=self.rules.hashes(service.key, routes),
            )
        workload = self._registry.workload(key.namespace, key.name)
        if workload is None:
            return None
        ports = (port for ports in workload.services.values() for port in ports)
        return make_bound_workload(workload, ports, self.rules.security_of(covering))

    # ---- what is sent to ---------------------------------------------------------------------

    def _use(self, where: GatewayKey) -> set[str]:
        """Follow what a waypoint sends to; returns services of which it uses something else."""
        serving, old = self._serving.get(where), self._uses.pop(where, {})
        new = self._uses[where] = serving.uses() if serving is not None else {}
        if serving is None:
            del self._uses[where]
        for service in old.keys() - new.keys():
            self._users[service].discard(where)
            if serving is not None:
                serving.send_to(service, None)
        for service in new.keys() - old.keys():
            self._users.setdefault(service, set()).add(where)
        return {s for s in old.keys() | new.keys() if old.get(s) != new.get(s)}

    def _send(self, name: str) -> None:
        """Make what is sent to of a service, if it is another value, and tell who uses it."""
        users = self._users.get(name, set())
        record = self._registry.by_key(name)
        if not users or record is None:
            if not users:
                self._users.pop(name, None)
            self._made.pop(name, None)
            for where in users:
                self._serving[where].send_to(name, None)
            return
        traffic = self.rules.traffic(name)
        labelled = needs_labels(record.service, traffic)
        members = ((w, self._labels(w) if labelled else ()) for w in self._registry.members(name))
        used = {ref for where in users for ref in self._uses[where].get(name, ())}
        backend = make_backend(record.service, members, traffic, used)
        old = self._made.get(name)
        if old is None or old.backend != backend:
            try:
                self._made[name] = make(backend, self._translator)
            except Exception:  # one object's must not be everybody's
                log.exception("service %s: cannot be translated; it stays as it was", name)
        if name in self._made:
            for where in users:
                self._serving[where].send_to(name, self._made[name])

    def _labels(self, workload: Workload) -> Labels:
        pod = self._registry.pod(workload.namespace, workload.name)
        return tuple(sorted(pod.labels.items())) if pod is not None else ()

    def _services_of(self, keys: Iterable[Key]) -> set[str]:
        found = (
            self._registry.service(key.namespace, key.name) for key in keys if key.kind == "Service"
        )
        return {record.service.key for record in found if record is not None}

    # ---- questions ---------------------------------------------------------------------------

    def users(self, service: str) -> tuple[str, ...]:
        """Name ("namespace/name") the waypoints that send to a service."""
        return tuple(sorted("/".join(where) for where in self._users.get(service, ())))
