"""What is read from the cluster. One more kind is one more line; what is not named is not kept."""

from __future__ import annotations

from typing import Final

from control_plane.translate.endpoints import SERVICE_NAME
from control_plane.translate.pods import PLACE_LABELS
from control_plane.translate.services import DISTRIBUTION
from mesh.kube.kinds import Kind, Template
from mesh.ports import ANNOTATION_REDIRECTION

ISTIO_SECURITY: Final = ("v1", "v1beta1")

_PORTS: Final = {"ports": {"name": True, "containerPort": True, "protocol": True}}
_POD: Final[Template] = {
    "metadata": {
        "labels": True,
        "annotations": {ANNOTATION_REDIRECTION: True},
        "deletionTimestamp": True,
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
        "conditions": {"type": True, "status": True},
    },
}
_SERVICE: Final[Template] = {
    "metadata": {"annotations": {DISTRIBUTION: True}},
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
    "status": {"loadBalancer": {"ingress": {"ip": True}}},
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
_NAMESPACE: Final[Template] = {"metadata": {"labels": True, "deletionTimestamp": True}}
_NODE: Final[Template] = {"metadata": {"labels": dict.fromkeys(PLACE_LABELS, True)}}
_GATEWAY: Final[Template] = {
    "metadata": {"deletionTimestamp": True},
    "spec": {"gatewayClassName": True},
}
_GATEWAY_CLASS: Final[Template] = {"spec": {"controllerName": True}}

_SECURITY: Final = "security.istio.io"
_GATEWAY_API: Final = "gateway.networking.k8s.io"

KINDS: Final = (
    Kind("Namespace", "namespaces", namespaced=False, keep=_NAMESPACE, metadata_only=True),
    Kind("Node", "nodes", namespaced=False, keep=_NODE, metadata_only=True),
    Kind("Pod", "pods", keep=_POD),
    Kind("Service", "services", keep=_SERVICE),
    Kind("EndpointSlice", "endpointslices", "discovery.k8s.io", keep=_SLICE),
    Kind("AuthorizationPolicy", "authorizationpolicies", _SECURITY, ISTIO_SECURITY, optional=True),
    Kind("PeerAuthentication", "peerauthentications", _SECURITY, ISTIO_SECURITY, optional=True),
    Kind("Gateway", "gateways", _GATEWAY_API, ("v1", "v1beta1"), optional=True, keep=_GATEWAY),
    Kind(
        "GatewayClass",
        "gatewayclasses",
        _GATEWAY_API,
        ("v1", "v1beta1"),
        namespaced=False,
        optional=True,
        keep=_GATEWAY_CLASS,
    ),
)
