"""xDS resources and the immutable snapshots of them that connections are served from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from mesh.model import Authorization, Service, Workload
from mesh.model.convert import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    authorization_to_pb,
    service_to_pb,
    workload_to_pb,
)
from mesh.xds.delta import Resource


def make_resource(
    type_url: str, name: str, payload: bytes, aliases: tuple[str, ...] = ()
) -> Resource:
    """Name and version an encoded message."""
    version = hashlib.blake2b(payload, digest_size=10).hexdigest()
    return Resource(name, version, type_url, payload, aliases)


def workload_resource(w: Workload) -> Resource:
    """Encode a workload. Addresses shared by a whole node do not name one workload."""
    aliases = () if w.host_network else tuple(f"{w.network}/{a}" for a in w.addresses)
    payload = workload_to_pb(w).SerializeToString(deterministic=True)
    return make_resource(ADDRESS_TYPE, w.uid, payload, aliases)


def service_resource(s: Service) -> Resource:
    """Encode a service."""
    aliases = tuple(f"{s.network}/{v}" for v in s.vips)
    return make_resource(
        ADDRESS_TYPE, s.key, service_to_pb(s).SerializeToString(deterministic=True), aliases
    )


def authorization_resource(a: Authorization) -> Resource:
    """Encode a policy."""
    payload = authorization_to_pb(a).SerializeToString(deterministic=True)
    return make_resource(AUTHORIZATION_TYPE, a.key, payload)


_NOTHING: Final[Mapping[str, Resource]] = MappingProxyType({})
_EMPTY: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """All resources at one moment. Never changed once made: every connection holds one.

    aliases: "network/ip" to the names that have that address. members: service key to the uids
    of its workloads. views: by client, what those are served that see some resources otherwise.
    """

    version: int = 0
    resources: Mapping[str, Mapping[str, Resource]] = field(default_factory=dict)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _EMPTY)
    members: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _EMPTY)
    views: Mapping[str, Snapshot] = field(default_factory=dict)

    def seen_by(self, client: str) -> Snapshot:
        """What a client is served; its version is the same as everybody's."""
        return self.views.get(client, self)

    def of(self, type_url: str) -> Mapping[str, Resource]:
        """All resources of a type by name."""
        return self.resources.get(type_url, _NOTHING)

    def resolve(self, type_url: str, name: str) -> list[str]:
        """Names of the resources that answer a subscription: a service brings its workloads."""
        here = self.of(type_url)
        found = [name] if name in here else list(self.aliases.get(name, ()))
        if type_url == ADDRESS_TYPE:
            for n in list(found):
                found += self.members.get(n, ())
        return found
