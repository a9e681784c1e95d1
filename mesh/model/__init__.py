"""The model: frozen values, no behaviour that needs a clock or a socket."""

from mesh.model.identity import SpiffeId
from mesh.model.policy import (
    Action,
    Authorization,
    Clause,
    Match,
    Rule,
    Scope,
    StringMatch,
)
from mesh.model.workload import (
    Gateway,
    LoadBalancing,
    Locality,
    Port,
    Service,
    Tunnel,
    Workload,
    WorkloadType,
)

__all__ = [
    "Action",
    "Authorization",
    "Clause",
    "Gateway",
    "LoadBalancing",
    "Locality",
    "Match",
    "Port",
    "Rule",
    "Scope",
    "Service",
    "SpiffeId",
    "StringMatch",
    "Tunnel",
    "Workload",
    "WorkloadType",
]
