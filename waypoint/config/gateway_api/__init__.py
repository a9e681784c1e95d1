"""Gateway API at a waypoint: routes whose parents are Services, and policies of backends."""

from waypoint.config.gateway_api.attach import is_default
from waypoint.config.gateway_api.index import KINDS, GatewayApiIndex

__all__ = ["KINDS", "GatewayApiIndex", "is_default"]
