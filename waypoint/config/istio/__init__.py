"""Istio's routing API at a waypoint: DestinationRule and VirtualService."""

from waypoint.config.istio.index import KINDS, IstioIndex
from waypoint.config.istio.rules import combine
from waypoint.config.istio.status import ServiceState

__all__ = ["KINDS", "IstioIndex", "ServiceState", "combine"]
