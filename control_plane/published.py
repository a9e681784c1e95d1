"""The resources that clients of workload xDS may see, and the snapshots made of them. Pure.

A snapshot copies the dictionaries, not the resources.
"""

from __future__ import annotations

from control_plane.resources import Snapshot
from control_plane.selecting import set_values
from mesh.model.convert import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.xds.delta import Resource


class Published:
    """All resources by type and name, with the addresses and memberships that lead to them."""

    def __init__(self) -> None:
        self.snapshot = Snapshot(resources={AUTHORIZATION_TYPE: {}, ADDRESS_TYPE: {}})
        self._resources: dict[str, dict[str, Resource]] = {AUTHORIZATION_TYPE: {}, ADDRESS_TYPE: {}}
        self._aliases: dict[str, tuple[str, ...]] = {}
        self._members: dict[str, tuple[str, ...]] = {}
        self._changed = False

    def put(self, type_url: str, name: str, new: Resource | None) -> None:
        """Replace one resource and its aliases, or take it out."""
        here = self._resources[type_url]
        old = here.get(name)
        if old is not None and new is not None and old.version == new.version:
            return
        if old is None and new is None:
            return
        self._changed = True
        for alias in set(old.aliases if old else ()) ^ set(new.aliases if new else ()):
            names = set(self._aliases.get(alias, ()))
            names = names | {name} if new and alias in new.aliases else names - {name}
            set_values(self._aliases, alias, names)
        if new is None:
            del here[name]
        else:
            here[name] = new

    def join(self, uid: str, before: set[str], after: set[str]) -> None:
        """Move a workload between services' lists of members."""
        for service in before ^ after:
            members = set(self._members.get(service, ()))
            members = members | {uid} if service in after else members - {uid}
            set_values(self._members, service, members)

    def members(self, service: str) -> tuple[str, ...]:
        """Name the workloads that back a service, by uid, in order."""
        return self._members.get(service, ())

    def settle(self) -> Snapshot:
        """Make a snapshot of what there is now; the last one again where nothing is other."""
        if self._changed:
            self._changed = False
            self.snapshot = Snapshot(
                version=self.snapshot.version + 1,
                resources={t: dict(r) for t, r in self._resources.items()},
                aliases=dict(self._aliases),
                members=dict(self._members),
            )
        return self.snapshot
