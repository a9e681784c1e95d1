"""What `ambit install` put into a cluster, remembered there in a ConfigMap. Pure.

It is written before anything else is applied and names old and new objects then, so that an
installation which was broken off can be upgraded and uninstalled like any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cli.cluster.objects import INSTALLER, MANAGED_BY, PART_OF, US, Object, Ref
from mesh.errors import BadInput

NAME: Final = "ambit-install"
LABEL: Final = "ambit.io/inventory"
GONE: Final = ""  # version of an inventory whose objects are uninstalled


@dataclass(frozen=True, slots=True)
class Inventory:
    """`values`: what the operator set beside the profile; `crds`: those that were not there.

    `extras` came with the Gateway API's CRDs and go with them. `complete`: everything became ready.
    """

    namespace: str
    version: str
    profile: str
    values: Mapping[str, Any] = field(default_factory=dict)
    objects: frozenset[Ref] = frozenset()
    crds: frozenset[str] = frozenset()
    extras: frozenset[Ref] = frozenset()
    created_namespace: bool = False
    complete: bool = True

    def with_objects(self, more: Iterable[Ref]) -> Inventory:
        """Name more objects."""
        return replace(self, objects=self.objects | frozenset(more))


def dump(inventory: Inventory) -> Object:
    """Build the ConfigMap."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": NAME,
            "namespace": inventory.namespace,
            "labels": {PART_OF: US, MANAGED_BY: INSTALLER, LABEL: "true"},
        },
        "data": {
            "version": inventory.version,
            "profile": inventory.profile,
            "values": json.dumps(inventory.values, sort_keys=True),
            "objects": _dump_refs(inventory.objects),
            "extras": _dump_refs(inventory.extras),
            "crds": json.dumps(sorted(inventory.crds)),
            "createdNamespace": json.dumps(inventory.created_namespace),
            "complete": json.dumps(inventory.complete),
        },
    }


def parse_untrusted(config_map: Mapping[str, Any]) -> Inventory:
    """Read the ConfigMap; raises BadInput when somebody changed it beyond reading."""
    metadata = config_map.get("metadata") or {}
    where = f"ConfigMap {metadata.get('namespace')}/{metadata.get('name')}"
    data = config_map.get("data") or {}
    try:
        values = json.loads(data["values"])
        objects = frozenset(_ref(entry) for entry in json.loads(data["objects"]))
        extras = frozenset(_ref(entry) for entry in json.loads(data.get("extras", "[]")))
        crds = frozenset(str(name) for name in json.loads(data["crds"]))
        if not isinstance(values, dict):
            raise TypeError("values is no map")
        return Inventory(
            namespace=str(metadata["namespace"]),
            version=str(data["version"]),
            profile=str(data["profile"]),
            values=values,
            objects=objects,
            crds=crds,
            extras=extras,
            created_namespace=json.loads(data.get("createdNamespace", "false")) is True,
            complete=json.loads(data.get("complete", "false")) is True,
        )
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise BadInput(
            f"{where}: the list of what was installed cannot be read ({e!r:.100});"
            " delete it and install again"
        ) from e


def _dump_refs(refs: Iterable[Ref]) -> str:
    return json.dumps([[o.api_version, o.kind, o.namespace, o.name] for o in sorted(refs)])


def _ref(entry: Any) -> Ref:
    if not isinstance(entry, list) or len(entry) != 4:
        raise TypeError(f"{entry!r:.60} names no object")
    if not all(isinstance(part, str) for part in entry):
        raise TypeError(f"{entry!r:.60} names no object")
    return Ref(*entry)
