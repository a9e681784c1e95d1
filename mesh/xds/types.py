"""Type URLs of the resources that Envoys are served."""

from __future__ import annotations

from typing import Final

_CONFIG: Final = "type.googleapis.com/envoy.config."

CLUSTER: Final = f"{_CONFIG}cluster.v3.Cluster"
ENDPOINTS: Final = f"{_CONFIG}endpoint.v3.ClusterLoadAssignment"
LISTENER: Final = f"{_CONFIG}listener.v3.Listener"
ROUTES: Final = f"{_CONFIG}route.v3.RouteConfiguration"
