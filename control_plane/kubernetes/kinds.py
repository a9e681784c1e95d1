"""What is read from the cluster. One more kind is one more line; what is not named is not kept."""

from __future__ import annotations

from typing import Final

from control_plane.translate.endpoints import SERVICE_NAME
from control_plane.translate.pods import PLACE_LABELS
from control_plane.translate.services import DISTRIBUTION
from mesh.kube.kinds import Items, Kind, Template
from mesh.ports import ANNOTATION_REDIRECTION
from waypoint.config.binding import LABELS, MISSING, WAYPOINT_BOUND
from waypoint.config.gateways import GATEWAY_NAME, GROUP

_ISTIO: Final = ("v1", "v1beta1")
_BOUND: Final = {WAYPOINT_BOUND: True}

_PORTS: Final = {"ports": {"name": True, "containerPort": True, "protocol": True}}
_POD: Final[Template] = {
    "metadata": {
        "labels": True,
        "annotations": {ANNOTATION_REDIRECTION: True, MISSING: True},
        "deletionTimestamp": True,
        "generation": True,
        "ownerReferences": {"kind": True, "name": True, "controller": True},
    },
    "spec": {
        "nodeName": True,
        "serviceAccountName": True,
        "hostNetwork": True,
        "containers": _PORTS,
        "initContainers": _PORTS,
    },
    "status": {
        "phase": True,
        "podIP": True,
        "podIPs": True,
        "conditions": Items("type", {"Ready": {"type": True, "status": True}, **_BOUND}),
    },
}
_SERVICE: Final[Template] = {
    "metadata": {
        "annotations": {DISTRIBUTION: True, MISSING: True},
        "labels": dict.fromkeys((*LABELS, GATEWAY_NAME), True),
        "generation": True,
    },
    "spec": {
        "type": True,
        "ports": {
            "name": True,
            "port": True,
            "targetPort": True,
            "protocol": True,
            "appProtocol": True,
        },
        "clusterIP": True,
        "clusterIPs": True,
        "ipFamilies": True,
        "selector": True,
        "publishNotReadyAddresses": True,
        "internalTrafficPolicy": True,
        "trafficDistribution": True,
    },
    "status": {
        "loadBalancer": {"ingress": {"ip": True}},
        "conditions": Items("type", _BOUND),
    },
}
_SLICE: Final[Template] = {
    "metadata": {"labels": {SERVICE_NAME: True}},
    "addressType": True,
    "endpoints": {
        "addresses": True,
        "conditions": {"ready": True},
        "targetRef": {"kind": True, "namespace": True, "name": True, "uid": True},
        "nodeName": True,
    },
    "ports": {"name": True, "port": True, "protocol": True},
}
_NAMESPACE: Final[Template] = {
    "metadata": {"labels": True, "annotations": {MISSING: True}, "deletionTimestamp": True}
}
_NODE: Final[Template] = {"metadata": {"labels": dict.fromkeys(PLACE_LABELS, True)}}

_SECURITY: Final = "security.istio.io"
_NETWORKING: Final = "networking.istio.io"
_TELEMETRY: Final = "telemetry.istio.io"


def _optional(name: str, plural: str, group: str, *versions: str, namespaced: bool = True) -> Kind:
    """Describe a kind that is a CRD, and is kept whole."""
    return Kind(name, plural, group, versions, namespaced=namespaced, optional=True)


KINDS: Final = (
    Kind("Namespace", "namespaces", namespaced=False, keep=_NAMESPACE, metadata_only=True),
    Kind("Node", "nodes", namespaced=False, keep=_NODE, metadata_only=True),
    Kind("Pod", "pods", keep=_POD),
    Kind("Service", "services", keep=_SERVICE),
    Kind("EndpointSlice", "endpointslices", "discovery.k8s.io", keep=_SLICE),
    _optional("AuthorizationPolicy", "authorizationpolicies", _SECURITY, *_ISTIO),
    _optional("PeerAuthentication", "peerauthentications", _SECURITY, *_ISTIO),
    _optional("RequestAuthentication", "requestauthentications", _SECURITY, *_ISTIO),
    _optional("DestinationRule", "destinationrules", _NETWORKING, *_ISTIO),
    _optional("VirtualService", "virtualservices", _NETWORKING, *_ISTIO),
    _optional("Telemetry", "telemetries", _TELEMETRY, "v1", "v1alpha1"),
    _optional("Gateway", "gateways", GROUP, "v1", "v1beta1"),
    _optional("GatewayClass", "gatewayclasses", GROUP, "v1", "v1beta1", namespaced=False),
    _optional("HTTPRoute", "httproutes", GROUP, "v1", "v1beta1"),
    _optional("GRPCRoute", "grpcroutes", GROUP, "v1"),
    _optional("TCPRoute", "tcproutes", GROUP, "v1", "v1alpha2"),
    _optional("TLSRoute", "tlsroutes", GROUP, "v1", "v1alpha3", "v1alpha2"),
    _optional("BackendTLSPolicy", "backendtlspolicies", GROUP, "v1", "v1alpha3"),
    _optional("ReferenceGrant", "referencegrants", GROUP, "v1", "v1beta1"),
    _optional(
        "XBackendTrafficPolicy",
        "xbackendtrafficpolicies",
        "gateway.networking.x-k8s.io",
        "v1alpha1",
    ),
)
