"""What is made of the services that waypoints send to, and how their pods see it by place.

Endpoints of a service that prefers what is near are in another order for each place. They are made
once for all waypoints and all pods of a place, and only where the service asks for it: everything
else is the same for everybody.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from control_plane.resources import Snapshot, make_resource
from mesh.xds.delta import Resource
from mesh.xds.types import ENDPOINTS
from waypoint.config.locality import NOWHERE, Place, keys_of, narrow
from waypoint.config.model import Backend

log = logging.getLogger(__name__)

Encoded = Mapping[str, Mapping[str, bytes]]  # by type, by name
_REMEMBERED: Final = 256  # places of one service, most of them of nodes that are gone


class Maker(Protocol):
    """The part of the translation that is about services that are sent to (see Translator)."""

    def backend_resources(self, backend: Backend) -> Encoded:
        """Translate clusters and endpoints."""

    def placed_resources(self, backend: Backend, place: Place) -> Encoded:
        """Translate those endpoints as they are seen from a place."""


def encode(encoded: Encoded) -> list[Resource]:
    """Give encoded messages names and versions."""
    return [
        make_resource(type_url, name, payload)
        for type_url, here in encoded.items()
        for name, payload in here.items()
    ]


@dataclass(slots=True, eq=False)
class Made:
    """What is made of a service. Shared by the waypoints that send to it."""

    backend: Backend
    resources: list[Resource]
    keys: frozenset[str]
    _maker: Maker
    _placed: dict[Place, list[Resource]] = field(default_factory=dict)

    def at(self, place: Place) -> list[Resource]:
        """The endpoints that are others for pods at a place."""
        near = narrow(place, self.keys)
        if near == NOWHERE:
            return []
        if near not in self._placed:
            if len(self._placed) >= _REMEMBERED:
                self._placed.clear()
            self._placed[near] = self._make_at(near)
        return self._placed[near]

    def _make_at(self, place: Place) -> list[Resource]:
        try:
            return encode(self._maker.placed_resources(self.backend, place))
        except Exception:  # one service's must not be everybody's
            name = self.backend.service.key
            log.exception("service %s: all its endpoints are alike for %s", name, dict(place))
            return []


def make(backend: Backend, maker: Maker) -> Made:
    """Translate a service that is sent to."""
    resources = encode(maker.backend_resources(backend))
    return Made(backend, resources, keys_of(backend), maker)


class SentTo:
    """The services that one waypoint sends to, and where its pods are."""

    def __init__(self) -> None:
        self._made: dict[str, Made] = {}
        self._keys: frozenset[str] | None = None  # None: to be found anew
        self._places: Mapping[str, Place] = {}  # by pod
        self._seen: dict[Place, dict[str, Resource]] = {}  # endpoints by name, where they differ

    def get(self, service: str) -> Made | None:
        """What is made of a service."""
        return self._made.get(service)

    def put(self, service: str, made: Made | None) -> bool:
        """Replace it; returns whether some pod sees something else besides what all do."""
        old = self._made.pop(service, None)
        if made is not None:
            self._made[service] = made
        if (old.keys if old else frozenset()) != (made.keys if made else frozenset()):
            self._keys = None
        changed = False
        for place, here in self._seen.items():
            gone = {r.name for r in old.at(place)} if old else set()
            for resource in made.at(place) if made else ():
                gone.discard(resource.name)
                there = here.get(resource.name)
                changed |= there is None or there.version != resource.version
                here[resource.name] = resource
            for name in gone:
                changed |= here.pop(name, None) is not None
        return changed

    @property
    def keys(self) -> frozenset[str]:
        """The labels of pods that make a difference."""
        if self._keys is None:
            self._keys = frozenset[str]().union(*(m.keys for m in self._made.values()))
        return self._keys

    def settle(self, places: Mapping[str, Place]) -> bool:
        """Take where the pods are; returns whether that is news."""
        known = {pod: place for pod, place in places.items() if place != NOWHERE}
        if known == self._places:
            return False
        self._places = known
        self._seen = {
            place: self._seen[place] if place in self._seen else self._see(place)
            for place in set(known.values())
        }
        return True

    def _see(self, place: Place) -> dict[str, Resource]:
        return {r.name: r for made in self._made.values() for r in made.at(place)}

    def views(
        self, version: int, resources: Mapping[str, Mapping[str, Resource]]
    ) -> dict[str, Snapshot]:
        """What pods are served instead of `resources`, by name of the pod."""
        here = resources.get(ENDPOINTS, {})
        at = {
            place: Snapshot(version, {**resources, ENDPOINTS: {**here, **seen}})
            for place, seen in self._seen.items()
        }
        return {pod: at[place] for pod, place in self._places.items()}

    def owner(self, name: tuple[str, str]) -> str | None:
        """Name the service that a resource (type, name) is made of."""
        for service, made in self._made.items():
            if any((r.type_url, r.name) == name for r in made.resources):
                return service
        return None
