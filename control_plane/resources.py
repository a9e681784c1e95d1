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

# In the order they are sent: a workload must not arrive before the policies that it names.
TYPES: Final = (AUTHORIZATION_TYPE, ADDRESS_TYPE)


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One named resource; `version` is a hash of its content, the same after a restart."""

    type_url: str
    name: str
    version: str
    payload: bytes
    aliases: tuple[str, ...] = ()


def _resource(type_url: str, name: str, payload: bytes, aliases: tuple[str, ...]) -> Resource:
    version = hashlib.blake2b(payload, digest_size=10).hexdigest()
    return Resource(type_url, name, version, payload, aliases)


def workload_resource(w: Workload) -> Resource:
    """Encode a workload. Addresses shared by a whole node do not name one workload."""
    aliases = () if w.host_network else tuple(f"{w.network}/{a}" for a in w.addresses)
    payload = workload_to_pb(w).SerializeToString(deterministic=True)
    return _resource(ADDRESS_TYPE, w.uid, payload, aliases)


def service_resource(s: Service) -> Resource:
    """Encode a service."""
    aliases = tuple(f"{s.network}/{v}" for v in s.vips)
    return _resource(
        ADDRESS_TYPE, s.key, service_to_pb(s).SerializeToString(deterministic=True), aliases
    )


def authorization_resource(a: Authorization) -> Resource:
    """Encode a policy."""
    payload = authorization_to_pb(a).SerializeToString(deterministic=True)
    return _resource(AUTHORIZATION_TYPE, a.key, payload, ())


_EMPTY: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """All resources at one moment. Never changed once made: every connection holds one.

    aliases: "network/ip" to the names that have that address. members: service key to the uids
    of its workloads.
    """

    version: int = 0
    resources: Mapping[str, Mapping[str, Resource]] = field(
        default_factory=lambda: {t: {} for t in TYPES}
    )
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _EMPTY)
    members: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _EMPTY)

    def resolve(self, type_url: str, name: str) -> list[str]:
        """Names of the resources that answer a subscription: a service brings its workloads."""
        here = self.resources[type_url]
        found = [name] if name in here else list(self.aliases.get(name, ()))
        if type_url == ADDRESS_TYPE:
            for n in list(found):
                found += self.members.get(n, ())
        return found
