"""What there is to know about a kind of object to read it: where it is served, what of it is kept.

To read one more kind is one more entry. Pure.
"""

from __future__ import annotations

import marshal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.manifest import Key

Object = dict[str, Any]
# True keeps the value; a mapping keeps those of its names, of each item where the value is a list;
# Items chooses among the items of a list.
Template = Mapping[str, Any]

# Never read by anybody, and often the larger half of an object.
_NOISE: Final = frozenset({"managedFields", "selfLink"})
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"

_META_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_META_ONE: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


@dataclass(frozen=True, slots=True)
class Items:
    """Of a list the items whose field `by` has one of these values, and what of each is kept."""

    by: str
    keep: Mapping[str, Any]  # True or a Template


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind as one reader reads it.

    versions: the first one that is served is read. optional: it may be missing (a CRD). keep: the
    parts to keep; None keeps everything but noise. metadata_only: the server leaves out all else.
    namespace and selector (a field selector) narrow what is read.
    """

    name: str
    plural: str
    group: str = ""
    versions: tuple[str, ...] = ("v1",)
    namespaced: bool = True
    optional: bool = False
    keep: Template | None = None
    metadata_only: bool = False
    namespace: str = ""
    selector: str = ""

    def api_version(self, version: str) -> str:
        """group/version, as objects carry it."""
        return f"{self.group}/{version}" if self.group else version

    def root(self, version: str) -> str:
        """Path of the group and version, where discovery is."""
        return f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"

    def path(self, version: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Path of all objects, of a namespace's, or of one object."""
        parts = [self.root(version)]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [p for p in (name, subresource) if p]
        return "/".join(parts)

    @property
    def accept_list(self) -> str:
        """Accept header of a list."""
        return _META_LIST if self.metadata_only else "application/json"

    @property
    def accept_watch(self) -> str:
        """Accept header of a watch."""
        return _META_ONE if self.metadata_only else "application/json"

    def pack(self, obj: Object, version: str) -> tuple[Key, bytes]:
        """Read the key and keep what is to be kept; raises ValueError when it is no object."""
        metadata = obj.get("metadata")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
            raise ValueError(f"{self.name}: an object without metadata.name")
        key = Key(self.name, str(metadata.get("namespace") or ""), metadata["name"])
        kept = _without_noise(obj) if self.keep is None else _keep(obj, self.keep)
        kept.update(apiVersion=self.api_version(version), kind=self.name)
        for field in ("name", "namespace", "uid"):
            if metadata.get(field):
                kept.setdefault("metadata", {})[field] = metadata[field]
        return key, marshal.dumps(kept)


def unpack(data: bytes) -> Object:
    """Read what pack wrote."""
    obj: Object = marshal.loads(data)
    return obj


def _keep(obj: Mapping[str, Any], template: Template) -> Object:
    out: Object = {}
    for name, wanted in template.items():
        value = obj.get(name)
        if value is None:
            continue
        if wanted is True or not isinstance(value, dict | list):
            out[name] = value
        elif isinstance(wanted, Items):
            out[name] = _chosen(value, wanted)
        elif isinstance(value, dict):
            kept = _keep(value, wanted)
            if kept:
                out[name] = kept
        else:
            out[name] = [_keep(v, wanted) if isinstance(v, dict) else v for v in value]
    return out


def _chosen(value: Any, wanted: Items) -> list[Any]:
    out = []
    for item in value if isinstance(value, list) else ():
        known = item.get(wanted.by) if isinstance(item, dict) else None
        keep = wanted.keep.get(known) if isinstance(known, str) else None
        if keep is not None:
            out.append(item if keep is True else _keep(item, keep))
    return out


def _without_noise(obj: Object) -> Object:
    metadata = {k: v for k, v in obj["metadata"].items() if k not in _NOISE}
    annotations = metadata.get("annotations")
    if isinstance(annotations, dict) and _LAST_APPLIED in annotations:
        metadata["annotations"] = {k: v for k, v in annotations.items() if k != _LAST_APPLIED}
    # resourceVersion changes with what is not kept as well: it would make every write a change.
    metadata.pop("resourceVersion", None)
    return {**obj, "metadata": metadata}
