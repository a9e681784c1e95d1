"""One waypoint's resources, kept from change to change: only what is another value is made anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from envoy.config.listener.v3 import listener_pb2

from control_plane.resources import Snapshot, make_resource
from control_plane.waypoints.refusals import Refusals, Trial
from control_plane.waypoints.sending import Encoded, Made, SentTo, encode
from mesh.manifest import Key
from mesh.xds.delta import Resource
from mesh.xds.types import LISTENER
from waypoint.config.build import refs_of
from waypoint.config.envoy.names import MAIN_INTERNAL
from waypoint.config.locality import Place
from waypoint.config.model import Backend, Bound, BoundWorkload, Waypoint
from waypoint.config.routing import BackendRef
from waypoint.config.security import filters

TRIAL: Final = "trial_internal"  # listener


class Translator(Protocol):
    """The translation of the model into Envoy's resources (waypoint.config.envoy.translate)."""

    def backend_resources(self, backend: Backend) -> Encoded:
        """Translate what is sent to: clusters and endpoints."""

    def placed_resources(self, backend: Backend, place: Place) -> Encoded:
        """Translate those endpoints as they are seen from a place."""

    def bound_resources(self, waypoint: Waypoint, bound: Bound) -> tuple[Any, Encoded]:
        """Translate what is listened for: its part of the listener, and its routes."""

    def workload_resources(
        self, waypoint: Waypoint, workload: BoundWorkload
    ) -> tuple[Any, Encoded]:
        """Translate a pod that is listened for."""

    def listener_resources(self, waypoint: Waypoint, parts: Sequence[Any]) -> Encoded:
        """Put the listeners together, and what every waypoint has."""


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
    _sent_to: SentTo = field(default_factory=SentTo)
    _fixed: list[Resource] = field(default_factory=list)
    _resources: dict[str, dict[str, Resource]] = field(default_factory=dict)
    _refusals: Refusals = field(default_factory=Refusals)
    _trial: Trial = field(default_factory=Trial)
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

    def value(self, key: Key) -> Bound | BoundWorkload | None:
        """What is listened for as one thing."""
        part = self._parts.get(key)
        return part.value if part is not None else None

    def uses(self) -> dict[str, frozenset[BackendRef]]:
        """The services that are sent to, by key, and what of them routes refer to."""
        found: dict[str, set[BackendRef]] = {}
        for part in self._parts.values():
            if isinstance(part.value, Bound):
                found.setdefault(part.value.service.key, set())
            for ref in part.refs:
                found.setdefault(ref.service, set()).add(ref)
        return {service: frozenset(refs) for service, refs in found.items()}

    def send_to(self, service: str, made: Made | None) -> None:
        """Take what is made of a service that is sent to; None: it is not any more."""
        old = self._sent_to.get(service)
        if old is made:
            return
        self._changed |= self._sent_to.put(service, made)
        self._replace(old.resources if old else (), made.resources if made else ())

    @property
    def place_keys(self) -> frozenset[str]:
        """The labels of its pods that what they are served depends on."""
        return self._sent_to.keys

    def settle(self, places: Mapping[str, Place]) -> None:
        """Take where its pods are, by name, as far as place_keys go."""
        self._changed |= self._sent_to.settle(places)

    def finish(self, translator: Translator) -> Snapshot:
        """Make the snapshot; the same one when nothing is another."""
        if self._listens_anew:
            self._listen(translator)
        if self._changed:
            self._changed = False
            resources = {t: dict(here) for t, here in self._resources.items()}
            self._refusals.serve(resources)
            version = self.snapshot.version + 1
            views = self._sent_to.views(version, resources)
            self.snapshot = Snapshot(version=version, resources=resources, views=views)
        return self.snapshot

    def _listen(self, translator: Translator) -> None:
        """Put the listeners together, and the second one while a bad part is looked for."""
        parts = {key: part.chains for key, part in self._parts.items()}
        new = self._listeners(translator, self._trial.choose(parts), False)
        if self._trial.active:
            tried = self._listeners(translator, self._trial.choose_trial(parts), True)
            if any(r.name == MAIN_INTERNAL for r in self._fixed):
                # What is served stays as it is until the bad part is known.
                new = [r for r in self._fixed if r.name != TRIAL]
            new += [_tried(r) for r in tried if _is_main(r)]
        self._replace(self._fixed, new)
        self._fixed, self._listens_anew = new, False

    def _listeners(
        self, translator: Translator, parts: Mapping[Key, Any], trial: bool
    ) -> list[Resource]:
        ordered = [chains for _, chains in sorted(parts.items())]
        made = encode(translator.listener_resources(self.waypoint, ordered))
        for resource in made:
            if _is_main(resource):
                version = _tried(resource).version if trial else resource.version
                self._trial.made(version, dict(parts), trial)
        return made

    # ---- what Envoys answer ------------------------------------------------------------------

    def answered(
        self, accepted: Iterable[Resource], refused: Iterable[tuple[Resource, str]]
    ) -> bool:
        """Take answers in; returns whether there is something else to serve, or to say."""
        again = False
        for resource in accepted:
            if _is_main(resource) or resource.name == TRIAL:
                again |= self._trial.accept(resource.version, resource.name == TRIAL)
            if resource.name != TRIAL:
                self._refusals.accept(resource)
        for resource, error in refused:
            if _is_main(resource) or resource.name == TRIAL:
                found = self._trial.refuse(resource.version, error, resource.name == TRIAL)
                again |= found
                if found or resource.name == TRIAL:
                    continue
            again |= self._refusals.refuse(resource, error)
        self._listens_anew |= again
        self._changed |= again
        return again

    def refused(self) -> Iterator[tuple[Key | None, str, str]]:
        """Yield what is refused now: (what it is for, resource, error)."""
        for key, (_, error) in self._trial.bad.items():
            yield key, MAIN_INTERNAL, error
        for name, error in self._refusals.errors.items():
            yield self._owner(name), name[1], error

    def _owner(self, name: tuple[str, str]) -> Key | None:
        for key, part in self._parts.items():
            if any((r.type_url, r.name) == name for r in part.resources):
                return key
        service = self._sent_to.owner(name)
        if service is None:
            return None
        namespace, _, hostname = service.partition("/")
        return Key("Service", namespace, hostname.partition(".")[0])

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


def _is_main(resource: Resource) -> bool:
    return resource.name == MAIN_INTERNAL and resource.type_url == LISTENER


def _tried(resource: Resource) -> Resource:
    """The same listener by another name, to which nothing is sent."""
    listener = listener_pb2.Listener.FromString(resource.payload)
    listener.name = TRIAL
    return make_resource(LISTENER, TRIAL, listener.SerializeToString(deterministic=True))


def _refs(bound: Bound) -> frozenset[BackendRef]:
    refs = {ref for _, routes in bound.routes for ref in refs_of(routes)}
    return frozenset(refs.union(filters.backends(bound.security)))
