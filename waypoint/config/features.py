"""Features of Gateway API for meshes (its pkg/features/mesh.go) that waypoints have.

All of them, and only they, are reported as passed in docs/conformance/mesh.yaml. GatewayClasses are
told them as status.supportedFeatures.
"""

from __future__ import annotations

from typing import Final

CORE: Final = ("GRPCRoute", "HTTPRoute", "Mesh")  # of the profiles MESH-HTTP and MESH-GRPC
EXTENDED: Final = (
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
)
FEATURES: Final = (*CORE, *EXTENDED)
