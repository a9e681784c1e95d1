"""Who may do what at a waypoint: AuthorizationPolicy and RequestAuthentication with targetRefs.

Objects are read into values (`index`), the values of what covers a service or workload are its
Security, and that becomes filters of its chain in Envoy (`filters`).
"""

from waypoint.config.security.bypass import bypass_policy, workload_bypass_policy
from waypoint.config.security.index import SecurityIndex, TargetState
from waypoint.config.security.jwks import Jwks
from waypoint.config.security.model import OPEN, Provider, Security, Target
from waypoint.config.security.providers import read_providers

__all__ = [
    "OPEN",
    "Jwks",
    "Provider",
    "Security",
    "SecurityIndex",
    "Target",
    "TargetState",
    "bypass_policy",
    "read_providers",
    "workload_bypass_policy",
]
