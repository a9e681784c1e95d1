"""What makes protected pods refuse whoever does not come by their waypoint."""

from __future__ import annotations

import hashlib
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


def workload_bypass_policy(
    namespace: str, waypoint: str, passing: Iterable[SpiffeId]
) -> Authorization:
    """Write the policy for pods whose own traffic passes a waypoint, whatever port it is to.

    `passing`: that waypoint, and those of the pod's services; pods with the same ones share it.
    """
    principals = sorted({w.principal for w in passing})
    mark = hashlib.sha256("\n".join(principals).encode()).hexdigest()[:12]
    others = Match(not_principals=tuple(StringMatch("exact", p) for p in principals))
    everybody = Match(not_destination_ports=(0,))  # there is no such port
    return Authorization(
        name=f"{_PREFIX}workloads_{waypoint}_{mark}",
        namespace=namespace,
        scope=Scope.WORKLOAD_SELECTOR,
        action=Action.DENY,
        rules=(Rule((Clause((others if principals else everybody,)),)),),
    )
