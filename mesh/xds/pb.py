"""Delta xDS messages between their protobuf form and the values of mesh.xds.delta."""

from __future__ import annotations

from typing import Any, Final

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from mesh.xds.delta import Request, Resource, Response

ADS: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
DELTA: Final = "DeltaAggregatedResources"
_INVALID_ARGUMENT: Final = 3  # google.rpc.Code


def request_to_pb(request: Request, node: Any = None) -> discovery_pb2.DeltaDiscoveryRequest:
    """Build a request; `node`: the envoy Node, which the first one of a stream carries."""
    pb = discovery_pb2.DeltaDiscoveryRequest(
        type_url=request.type_url,
        resource_names_subscribe=request.subscribe,
        resource_names_unsubscribe=request.unsubscribe,
        initial_resource_versions=dict(request.initial_versions),
        response_nonce=request.nonce,
    )
    if node is not None:
        pb.node.CopyFrom(node)
    if request.error:
        pb.error_detail.code = _INVALID_ARGUMENT
        pb.error_detail.message = request.error
    return pb


def request_from_pb(pb: discovery_pb2.DeltaDiscoveryRequest) -> Request:
    """Read a request, all but its node."""
    error = ""
    if pb.HasField("error_detail"):
        error = pb.error_detail.message or f"code {pb.error_detail.code}"
    return Request(
        type_url=pb.type_url,
        subscribe=tuple(pb.resource_names_subscribe),
        unsubscribe=tuple(pb.resource_names_unsubscribe),
        initial_versions=dict(pb.initial_resource_versions),
        nonce=pb.response_nonce,
        error=error,
    )


def response_to_pb(response: Response) -> discovery_pb2.DeltaDiscoveryResponse:
    """Build a response."""
    return discovery_pb2.DeltaDiscoveryResponse(
        type_url=response.type_url,
        nonce=response.nonce,
        system_version_info=response.version,
        removed_resources=response.removed,
        resources=[
            discovery_pb2.Resource(
                name=r.name,
                version=r.version,
                aliases=r.aliases,
                resource=any_pb2.Any(type_url=r.type_url, value=r.payload),
            )
            for r in response.resources
        ],
    )


def response_from_pb(pb: discovery_pb2.DeltaDiscoveryResponse) -> Response:
    """Read a response; payloads stay encoded."""
    return Response(
        pb.type_url,
        pb.nonce,
        tuple(
            Resource(r.name, r.version, r.resource.type_url, r.resource.value, tuple(r.aliases))
            for r in pb.resources
        ),
        tuple(pb.removed_resources),
        pb.system_version_info,
    )
