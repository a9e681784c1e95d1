"""Policies that keep callers from going around a waypoint, and what they are attached to. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mesh.model import Authorization

Guarded = str | tuple[str, str]  # key of a service, for its pods; or a pod: namespace and name


class GuardTable:
    """One policy for each guarded thing; pods may share theirs."""

    def __init__(self) -> None:
        self._policies: dict[Guarded, Authorization] = {}
        self._uses: Counter[str] = Counter()

    def change(self, guarded: Guarded, new: Authorization | None) -> tuple[str, bool]:
        """Attach a policy, or (None) take it off.

        Returns the name of a policy that is in use no more, "" for none, and whether the guarded
        thing has another one than before by name.
        """
        old = self._policies.pop(guarded, None)
        if new is not None:
            self._policies[guarded] = new
            self._uses[new.key] += 1
        unused = ""
        if old is not None:
            self._uses[old.key] -= 1
            if not self._uses[old.key]:
                del self._uses[old.key]
                unused = old.key
        return unused, (old and old.key) != (new and new.key)

    def names(self, guarded: Iterable[Guarded]) -> list[str]:
        """Name the policies of these."""
        return [self._policies[g].key for g in guarded if g in self._policies]
