"""The mesh's configuration, as far as it is about waypoints: extension providers.

It is where Istio has it, so that users keep it: the ConfigMap `istio` of the root namespace, whose
key `mesh` is YAML (MeshConfig).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mesh.errors import BadInput
from mesh.kube.kinds import Kind
from mesh.manifest import parse_value
from waypoint.config.security import Provider, read_providers

NAME: Final = "istio"
_KEY: Final = "mesh"


def configmap_kind(root_namespace: str) -> Kind:
    """Describe how the one ConfigMap is read from a cluster."""
    return Kind(
        "ConfigMap",
        "configmaps",
        namespace=root_namespace,
        selector=f"metadata.name={NAME}",
        keep={"data": {_KEY: True}},
    )


def providers_of(configmap: Mapping[str, Any] | None) -> tuple[dict[str, Provider], list[str]]:
    """Read the extension providers of the ConfigMap, and what is wrong with it."""
    data = (configmap or {}).get("data")
    text = data.get(_KEY) if isinstance(data, Mapping) else None
    if text is None:
        return {}, []
    where = f"ConfigMap {NAME}, data.{_KEY}"
    try:
        config = parse_value(text) if isinstance(text, str) else None
    except BadInput as e:
        return {}, [f"{where}: {e}"]
    if config is None:
        return {}, []
    if not isinstance(config, Mapping):
        return {}, [f"{where}: must be a mapping"]
    providers, problems = read_providers(config.get("extensionProviders"))
    return providers, [f"{where}: {problem}" for problem in problems]
