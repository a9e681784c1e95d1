"""What makes the pods of a protected service refuse whoever does not come by its waypoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from mesh.model import Action, Authorization, Clause, Match, Rule, Scope, SpiffeId, StringMatch

_PREFIX: Final = "waypoint_only_"  # "_" is in no object's name, so it cannot be somebody's policy


def bypass_policy(
    namespace: str, service: str, waypoints: Sequence[SpiffeId], ports: Iterable[int]
) -> Authorization | None:
    """Write the policy for the pods of a service; None where there is no port to guard.

    Ports are those of the pods. A caller without identity (plaintext) is refused as well.
    """
    guarded = tuple(sorted(set(ports)))
    if not guarded:
        return None
    passing = tuple(StringMatch("exact", w.principal) for w in waypoints)
    # Two clauses: both must hold. Without a waypoint nobody is let in.
    others = (Clause((Match(not_principals=passing),)),) if passing else ()
    rule = Rule((*others, Clause((Match(destination_ports=guarded),))))
    return Authorization(
        name=_PREFIX + service,
        namespace=namespace,
        scope=Scope.WORKLOAD_SELECTOR,
        action=Action.DENY,
        rules=(rule,),
    )
