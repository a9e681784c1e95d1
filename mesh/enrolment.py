"""Which pods belong to the mesh. Pure: the agent, the lab and the control plane must agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mesh.ports import LABEL_DATAPLANE_MODE, ROOT_NAMESPACE

# The mesh's own parts and the cluster's own parts must work before the mesh does.
EXCLUDED_NAMESPACES: Final = frozenset({"kube-system", ROOT_NAMESPACE})
_TERMINAL: Final = frozenset({"Succeeded", "Failed"})
_SIDECAR_STATUS: Final = "sidecar.istio.io/status"  # has an Envoy sidecar: already in a mesh


def _labels(obj: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return ((obj or {}).get("metadata") or {}).get("labels") or {}


def wants(pod: Mapping[str, Any], namespace: Mapping[str, Any] | None) -> bool:
    """Say whether `pod` should be captured; `namespace` is its Namespace object, if there is one.

    The pod's own label istio.io/dataplane-mode (ambient, none) beats the namespace's.
    """
    metadata = pod.get("metadata") or {}
    if metadata.get("namespace", "default") in EXCLUDED_NAMESPACES:
        return False
    if (pod.get("spec") or {}).get("hostNetwork"):
        return False
    if (pod.get("status") or {}).get("phase") in _TERMINAL:
        return False
    if _SIDECAR_STATUS in (metadata.get("annotations") or {}):
        return False
    own = _labels(pod).get(LABEL_DATAPLANE_MODE)
    if own in ("ambient", "none"):
        return bool(own == "ambient")
    return bool(_labels(namespace).get(LABEL_DATAPLANE_MODE) == "ambient")
