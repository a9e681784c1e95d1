"""The mesh's configuration, as far as it is about waypoints: extension providers, access logs.

It is where Istio has it, so that users keep it: the ConfigMap `istio` of the root namespace, whose
key `mesh` is YAML (MeshConfig).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mesh.errors import BadInput
from mesh.kube.kinds import Kind
from mesh.manifest import parse_value

NAME: Final = "istio"
_KEY: Final = "mesh"
WHERE: Final = f"ConfigMap {NAME}, data.{_KEY}"  # for messages


def configmap_kind(root_namespace: str) -> Kind:
    """Describe how the one ConfigMap is read from a cluster."""
    return Kind(
        "ConfigMap",
        "configmaps",
        namespace=root_namespace,
        selector=f"metadata.name={NAME}",
        keep={"data": {_KEY: True}},
    )


def read_config(configmap: Mapping[str, Any] | None) -> tuple[Mapping[str, Any], str]:
    """Read the MeshConfig out of the ConfigMap: ({}, why) if it cannot be."""
    data = (configmap or {}).get("data")
    text = data.get(_KEY) if isinstance(data, Mapping) else None
    if text is None:
        return {}, ""
    try:
        config = parse_value(text) if isinstance(text, str) else None
    except BadInput as e:
        return {}, str(e)
    if config is None:
        return {}, ""
    if not isinstance(config, Mapping):
        return {}, "must be a mapping"
    return config, ""
