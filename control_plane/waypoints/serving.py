"""One waypoint's resources, kept from change to change: only what is another value is made anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from control_plane.resources import Resource, Snapshot, make_resource
from mesh.manifest import Key
from waypoint.config.build import refs_of
from waypoint.config.model import Backend, Bound, BoundWorkload, Waypoint
from waypoint.config.routing import BackendRef
from waypoint.config.security import filters

Encoded = Mapping[str, Mapping[str, bytes]]  # by type, by name


class Translator(Protocol):
    """The translation of the model into Envoy's resources (waypoint.config.envoy.translate)."""

    def backend_resources(self, backend: Backend) -> Encoded:
        """Translate what is sent to: clusters and endpoints."""

    def bound_resources(self, waypoint: Waypoint, bound: Bound) -> tuple[Any, Encoded]:
        """Translate what is listened for: its part of the listener, and its routes."""

    def workload_resources(
        self, waypoint: Waypoint, workload: BoundWorkload
    ) -> tuple[Any, Encoded]:
        """Translate a pod that is listened for."""

    def listener_resources(self, waypoint: Waypoint, parts: Sequence[Any]) -> Encoded:
        """Put the listeners together, and what every waypoint has."""


def encode(encoded: Encoded) -> list[Resource]:
    """Give encoded messages names and versions."""
    return [
        make_resource(type_url, name, payload)
        for type_url, here in encoded.items()
        for name, payload in here.items()
    ]


@dataclass(slots=True)
class _Part:
    """What is made of one thing that is bound."""

    value: Bound | BoundWorkload
    chains: Any
    resources: list[Resource]
    refs: frozenset[BackendRef]


@dataclass(slots=True)
class Serving:
    """One waypoint."""

    waypoint: Waypoint
    snapshot: Snapshot = field(default_factory=Snapshot)
    _parts: dict[Key, _Part] = field(default_factory=dict)
    _backends: dict[str, list[Resource]] = field(default_factory=dict)
    _fixed: list[Resource] = field(default_factory=list)
    _resources: dict[str, dict[str, Resource]] = field(default_factory=dict)
    _listens_anew: bool = True
    _changed: bool = False

    def describe(self, waypoint: Waypoint) -> bool:
        """Take the waypoint itself; returns whether all of it has to be made anew."""
        if waypoint == self.waypoint:
            return False
        self.waypoint = waypoint
        for key in list(self._parts):
            self.unbind(key)
        self._listens_anew = True
        return True

    def bind(self, key: Key, value: Bound | BoundWorkload, translator: Translator) -> bool:
        """Listen for something; returns whether it is another value than before.

        What the translation raises leaves everything as it was.
        """
        old = self._parts.get(key)
        if old is not None and old.value == value:
            return False
        if isinstance(value, Bound):
            chains, encoded = translator.bound_resources(self.waypoint, value)
            refs = _refs(value)
        else:
            chains, encoded = translator.workload_resources(self.waypoint, value)
            refs = frozenset(filters.backends(value.security))
        self._listens_anew |= old is None or old.chains != chains
        new = _Part(value, chains, encode(encoded), refs)
        self._replace(old.resources if old else (), new.resources)
        self._parts[key] = new
        return True

    def unbind(self, key: Key) -> bool:
        """Listen for something no more; returns whether it was listened for."""
        old = self._parts.pop(key, None)
        if old is None:
            return False
        self._replace(old.resources, ())
        self._listens_anew = True
        return True

    def bound(self) -> tuple[Key, ...]:
        """What is listened for."""
        return tuple(self._parts)

    def uses(self) -> dict[str, frozenset[BackendRef]]:
        """The services that are sent to, by key, and what of them routes refer to."""
        found: dict[str, set[BackendRef]] = {}
        for part in self._parts.values():
            if isinstance(part.value, Bound):
                found.setdefault(part.value.service.key, set())
            for ref in part.refs:
                found.setdefault(ref.service, set()).add(ref)
        return {service: frozenset(refs) for service, refs in found.items()}

    def send_to(self, service: str, resources: list[Resource] | None) -> None:
        """Take what is made of a service that is sent to; None: it is not any more."""
        old = self._backends.get(service)
        if old is resources:
            return
        if resources is None:
            self._backends.pop(service, None)
        else:
            self._backends[service] = resources
        self._replace(old or (), resources or ())

    def finish(self, translator: Translator) -> Snapshot:
        """Make the snapshot; the same one when nothing is another."""
        if self._listens_anew:
            parts = [part.chains for _, part in sorted(self._parts.items())]
            new = encode(translator.listener_resources(self.waypoint, parts))
            self._replace(self._fixed, new)
            self._fixed, self._listens_anew = new, False
        if self._changed:
            self._changed = False
            self.snapshot = Snapshot(
                version=self.snapshot.version + 1,
                resources={t: dict(here) for t, here in self._resources.items()},
            )
        return self.snapshot

    def _replace(self, old: Iterable[Resource], new: Iterable[Resource]) -> None:
        gone = {(r.type_url, r.name) for r in old}
        for resource in new:
            here = self._resources.setdefault(resource.type_url, {})
            gone.discard((resource.type_url, resource.name))
            there = here.get(resource.name)
            if there is None or there.version != resource.version:
                here[resource.name] = resource
                self._changed = True
        for type_url, name in gone:
            self._changed |= self._resources[type_url].pop(name, None) is not None


def _refs(bound: Bound) -> frozenset[BackendRef]:
    refs = {ref for _, routes in bound.routes for ref in refs_of(routes)}
    return frozenset(refs.union(filters.backends(bound.security)))
