"""Objects that the lab makes for itself: what stands for its own parts. Pure."""

from __future__ import annotations

from typing import Any

from lab.layout import DNS_NAMESPACE, DNS_VIP, NodeAddress
from lab.workloads import STATIC

Object = dict[str, Any]


def make(kind: str, namespace: str | None, name: str, **fields: Any) -> Object:
    """Build an object of the core group."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **fields}


def static_pod(namespace: str, name: str, node: str, account: str) -> Object:
    """Build the Pod that stands for a part of the mesh or the cluster."""
    spec: Object = {
        "hostNetwork": True,
        "serviceAccountName": account,
        "containers": [{"name": "main"}],
    }
    if node:
        spec["nodeName"] = node
    pod = make("Pod", namespace, name, spec=spec)
    labels = {"k8s-app": "kube-dns"} if namespace == DNS_NAMESPACE else {"app": account}
    pod["metadata"] |= {"labels": labels, "annotations": {STATIC: "true"}}
    return pod


def static_status(addresses: list[str], ready: bool, why: str, restarts: int) -> Object:
    """Build the status of such a pod."""
    condition: Object = {"type": "Ready", "status": "True" if ready else "False"}
    if not ready:
        condition |= {"reason": "ContainersNotReady", "message": why}
    return {
        "phase": "Running",
        "podIP": addresses[0],
        "podIPs": [{"ip": a} for a in addresses],
        "hostIP": addresses[0],
        "hostIPs": [{"ip": a} for a in addresses],
        "conditions": [condition],
        "containerStatuses": [{"name": "main", "ready": ready, "restartCount": restarts}],
    }


def dns_service() -> Object:
    """Build the Service of cluster DNS."""
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    spec = {
        "clusterIP": DNS_VIP,
        "clusterIPs": [DNS_VIP],
        "ipFamilies": ["IPv4"],
        "selector": {"k8s-app": "kube-dns"},
        "ports": ports,
    }
    return make("Service", DNS_NAMESPACE, "kube-dns", spec=spec)


def node_status(name: str, address: NodeAddress) -> Object:
    """Build what a node says about itself, as a patch."""
    return {
        "metadata": {"labels": {"kubernetes.io/hostname": name}},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": address.v4},
                {"type": "InternalIP", "address": address.v6},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
