"""What is attached to services and waypoints: routes, traffic policies, security.

The indexes of waypoint.config are fed here and say what they touch; nothing is worked out before it
is asked for.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from control_plane.waypoints import providers
from control_plane.waypoints.holding import GatewayKey
from mesh.manifest import Key
from mesh.model import Service
from waypoint.config import access_logs
from waypoint.config import gateway_api as gateway_config
from waypoint.config import istio as istio_config
from waypoint.config.access_logs import TelemetryIndex, read_mesh_logs
from waypoint.config.build import refs_of
from waypoint.config.gateway_api import GatewayApiIndex
from waypoint.config.istio import IstioIndex, ServiceState, combine
from waypoint.config.model import Bound
from waypoint.config.routing import BackendRef, HttpRule, Routes, TcpRule
from waypoint.config.security import (
    Jwks,
    Security,
    SecurityIndex,
    Target,
    TargetState,
    read_providers,
)
from waypoint.config.status import Status
from waypoint.config.traffic import ServiceTraffic, TrafficPolicy

log = logging.getLogger(__name__)

Object = Mapping[str, Any]
_SECURITY: Final = frozenset({"AuthorizationPolicy", "RequestAuthentication"})
_ISTIO: Final = frozenset(istio_config.KINDS)
_GATEWAY_API: Final = frozenset(gateway_config.KINDS)
KINDS: Final = _SECURITY | _ISTIO | _GATEWAY_API | {access_logs.KIND, "ConfigMap", "Secret"}
_BROKEN: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_NONE: Final = Routes()
_UNNAMED: Final[Mapping[int, str]] = {}


class Rules:
    """Feed it objects and services; ask it what applies to a service."""

    def __init__(self, root_namespace: str, cluster_domain: str) -> None:
        self.gateway_api = GatewayApiIndex(cluster_domain)
        self.istio = IstioIndex(root_namespace, cluster_domain)
        self.security = SecurityIndex(root_namespace)
        self.telemetry = TelemetryIndex(root_namespace)
        self._known: dict[str, tuple[Service, Mapping[int, str]]] = {}
        self._services: set[str] = set()
        self._targets: set[Target] = set()
        self._objects: set[Key] = set()
        self._relogged: set[GatewayKey] = set()
        self._mesh = Key("ConfigMap", root_namespace, providers.NAME)

    # ---- changes -----------------------------------------------------------------------------

    def take(self, key: Key, obj: Object | None) -> None:
        """Take in an object of one of KINDS, or (None) forget it.

        What breaks its translation is logged; its last reading stays in effect.
        """
        try:
            if key.kind in _GATEWAY_API:
                self._services |= self.gateway_api.put(key, obj)
            elif key.kind in _ISTIO:
                touched = self.istio.put(key, obj)
                self._services |= touched | self.gateway_api.sending_to(touched)
            elif key.kind in _SECURITY:
                self._targets |= self.security.put(key, obj)
            elif key.kind == access_logs.KIND:
                self._relogged |= self.telemetry.put(key, obj)
            else:
                self._take_data(key, obj)
                return
        except _BROKEN:
            log.exception("%s: cannot be read; what was read of it before stays", key)
            return
        self._objects.add(key)

    def _take_data(self, key: Key, obj: Object | None) -> None:
        """Take in what other objects refer to."""
        data = (obj or {}).get("data")
        known = {str(k): str(v) for k, v in data.items()} if isinstance(data, Mapping) else {}
        if key.kind == "Secret":
            decoded = None if obj is None else _decoded(obj, known)
            self._services |= self.istio.put_secret(key.namespace, key.name, decoded)
            return
        if key == self._mesh:
            self._take_mesh(obj)
        found = None if obj is None else known
        self._services |= self.gateway_api.put_config_map(key.namespace, key.name, found)

    def _take_mesh(self, configmap: Object | None) -> None:
        where = f"{self._mesh.namespace}/{providers.WHERE}"
        config, problem = providers.read_config(configmap)
        if problem:
            log.warning("%s: %s", where, problem)
        found, problems = read_providers(config.get("extensionProviders"))
        for text in problems:
            log.warning("%s: %s; policies that name it refuse", where, text)
        self._targets |= self.security.set_providers(found)
        logs, problems = read_mesh_logs(config)
        for text in problems:
            log.warning("%s: %s", where, text)
        self._relogged |= self.telemetry.set_mesh(logs)

    def take_keys(self, jwks: Mapping[str, Jwks]) -> None:
        """Take in what was fetched of issuers' keys, by URI."""
        self._targets |= self.security.set_jwks(jwks)

    def put_service(
        self, key: str, service: Service | None, port_names: Mapping[int, str] = _UNNAMED
    ) -> None:
        """Take in a service of the mesh, bound or not, with the names of its ports."""
        new = None if service is None else (service, port_names)
        if self._known.get(key) == new:
            return
        if new is None:
            del self._known[key]
        else:
            self._known[key] = new
        self._services |= self.istio.put_service(key, service)
        self._services |= self.gateway_api.put_service(key, service, port_names)
        self._services.add(key)

    def references(self) -> set[Key]:
        """Name the ConfigMaps and Secrets that objects refer to."""
        found = {Key("ConfigMap", *name) for name in self.gateway_api.config_maps()}
        return found | {Key("Secret", *name) for name in self.istio.secrets()}

    def drain(self) -> tuple[set[str], set[Target], set[Key]]:
        """Say what is touched since the last call: services, targets of security, objects."""
        out = self._services, self._targets, self._objects
        self._services, self._targets, self._objects = set(), set(), set()
        return out

    def drain_logs(self) -> set[GatewayKey]:
        """Name the waypoints whose access logs may be others since the last call."""
        out, self._relogged = self._relogged, set()
        return out

    # ---- questions ---------------------------------------------------------------------------

    def routes(self, service: Service, namespace: str) -> tuple[tuple[int, Routes], ...]:
        """Say how requests to a service are routed at a waypoint of a namespace, by port."""
        istio = self.istio.routes(service.key, namespace)
        gateway_api = self.gateway_api.routes(service.key)
        out = (
            (
                p.service_port,
                combine(gateway_api.get(p.service_port, _NONE), istio.get(p.service_port, _NONE)),
            )
            for p in service.ports
        )
        return tuple(sorted((port, routes) for port, routes in out if routes != _NONE))

    def traffic(self, service: str) -> ServiceTraffic:
        """Say how a service's endpoints are talked to."""
        return self.gateway_api.traffic(service, self.istio.traffic(service))

    def hashes(
        self, service: str, routes: Iterable[tuple[int, Routes]]
    ) -> tuple[tuple[BackendRef, TrafficPolicy], ...]:
        """Say by what the other services that a service's routes send to balance requests."""
        refs = {ref for _, found in routes for ref in refs_of(found) if ref.service != service}
        policies = ((ref, self.traffic(ref.service).of(ref)) for ref in sorted(refs))
        return tuple((ref, policy) for ref, policy in policies if policy.hash is not None)

    def taken(self, service: str) -> Mapping[int, str]:
        """Say which routes of Gateway API have which ports of a service."""
        return self.gateway_api.taken(service)

    def security_of(self, targets: Iterable[Target]) -> Security:
        """Say what protects what all of these targets cover."""
        return self.security.security(*targets)

    def culprits(self, bound: Bound, error: str) -> set[Key]:
        """Name the objects that a service's routes and filters are made of.

        Those that an error names by one of their rules, if any is.
        """
        rules: list[HttpRule | TcpRule] = []
        for _, routes in bound.routes:
            rules += [*(routes.http or ()), *(routes.tcp or ())]
        named = {rule.origin for rule in rules if rule.name and rule.name in error}
        if named:
            return named
        target = Target("Service", bound.service.namespace, bound.service.name)
        return {rule.origin for rule in rules}.union(self.security.at(target))

    # ---- statuses ----------------------------------------------------------------------------

    def objects(self, services: set[str], targets: set[Target]) -> set[Key]:
        """Name the objects whose status depends on any of these."""
        found = set(self.istio.objects(services)) | self.gateway_api.objects(services)
        for target in targets:
            found.update(self.security.at(target))
            if target.kind == "Gateway":
                found |= self.telemetry.at((target.namespace, target.name))
        return found

    def status(
        self,
        key: Key,
        service: Callable[[str], ServiceState],
        target: Callable[[Target], TargetState],
    ) -> Status | None:
        """Say what became of an object; None: it is not for waypoints, or gone."""
        if key.kind in _GATEWAY_API:
            return self.gateway_api.status(key, service) if key in self.gateway_api else None
        if key.kind in _ISTIO:
            return self.istio.status(key, service) if key in self.istio else None
        if key in self.telemetry:
            return self.telemetry.status(key)
        if key in self.security:
            return self.security.status(key, target)
        return None


def _decoded(secret: Object, data: Mapping[str, str]) -> dict[str, bytes]:
    """Read a Secret's data; what is no base64 is left out."""
    out: dict[str, bytes] = {}
    for name, text in data.items():
        try:
            out[name] = base64.b64decode(text, validate=True)
        except ValueError:
            continue
    plain = secret.get("stringData")
    for name, text in plain.items() if isinstance(plain, Mapping) else ():
        out[str(name)] = str(text).encode()
    return out
