"""Kubernetes manifests as text: documents to objects, and what is wrong with the rest.

YAML is read the way Kubernetes reads it: timestamps stay text, keys are text, a `List` is its
items. One broken document does not spoil the others of its file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import yaml

from mesh.errors import BadInput

MAX_BYTES: Final = 4 << 20  # of one file; an API server takes 3 MiB per request
MAX_DEPTH: Final = 100  # real objects stay below 30
# libyaml's composer recurses in C and dies past some 20,000 levels: nothing near that is parsed.
_SAFE_NESTING: Final = 5000

CLUSTER_SCOPED: Final = frozenset(
    {
        "APIService",
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "GatewayClass",
        "IngressClass",
        "MutatingWebhookConfiguration",
        "Namespace",
        "Node",
        "PersistentVolume",
        "PriorityClass",
        "StorageClass",
        "ValidatingWebhookConfiguration",
    }
)

_KIND = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123 label
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")  # RFC 1123 subdomain
_RBAC_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,251}[A-Za-z0-9])?")  # system:node
_RBAC = frozenset({"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"})
# "---" in column 0 always ends a document, even inside a block scalar (YAML 1.1, 9.1.2).
_MARKER = re.compile(r"^---(?=\s|$)", re.MULTILINE)


class Key(NamedTuple):
    """Which object; namespace is "" for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        """Kind ns/name, as messages name an object."""
        return f"{self.kind} {self.namespace + '/' if self.namespace else ''}{self.name}"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong where in a file."""

    line: int
    message: str


class _Loader(yaml.CSafeLoader):
    """Kubernetes has no timestamp type in YAML: creationTimestamp is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own class attribute)
        first: [(tag, regexp) for tag, regexp in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


def make_key(kind: str, namespace: str | None, name: str) -> Key:
    """Build a checked key; raises BadInput. No namespace means "default" where one is needed."""
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise BadInput(f"kind {kind!r} is not the name of a kind")
    form = _RBAC_NAME if kind in _RBAC else _NAME
    if not isinstance(name, str) or not form.fullmatch(name) or ".." in name:
        raise BadInput(f"{kind}: metadata.name {name!r} is not a valid object name")
    if kind in CLUSTER_SCOPED:
        return Key(kind, "", name)
    namespace = namespace or "default"
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        raise BadInput(f"{kind} {name}: metadata.namespace {namespace!r} is not a valid namespace")
    return Key(kind, namespace, name)


def key_of(obj: Any) -> Key:
    """Read the key of an object; raises BadInput when it is none."""
    if not isinstance(obj, dict):
        raise BadInput("not an object: expected a mapping with apiVersion, kind and metadata")
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict):
        raise BadInput(f"{obj.get('kind', 'object')}: metadata is missing")
    return make_key(obj.get("kind", ""), metadata.get("namespace"), metadata.get("name", ""))


def plain(value: Any, path: str = "", depth: int = 0) -> Any:
    """Copy plain JSON data of sane depth; raises BadInput for anything else.

    Keys that YAML reads as numbers or booleans become text, as Kubernetes does it (portLevelMtls).
    """
    if depth > MAX_DEPTH:
        raise BadInput(f"{path[:100]}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        out = {}
        for k, v in value.items():
            if isinstance(k, bool):
                k = str(k).lower()
            elif not isinstance(k, str | int | float):
                raise BadInput(f"{path or 'object'}: key {k!r} is not text (quote it)")
            key = str(k)
            out[key] = v if v.__class__ is str else plain(v, f"{path}.{key}", depth + 1)
        return out
    if isinstance(value, list | tuple):
        return [
            v if v.__class__ is str else plain(v, f"{path}[{i}]", depth + 1)
            for i, v in enumerate(value)
        ]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise BadInput(f"{path.lstrip('.')}: a {type(value).__name__} is not plain JSON data")


def normalise(obj: Any) -> tuple[Key, dict[str, Any]]:
    """Check one object and return a copy with metadata.namespace filled in; raises BadInput."""
    key = key_of(obj)
    new: dict[str, Any] = plain(obj)
    metadata = new["metadata"]
    for field in ("labels", "annotations"):
        values = metadata.get(field)
        if values is not None and (
            not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values())
        ):
            raise BadInput(f"{key}: metadata.{field} must map text to text (quote the values)")
    for field in ("spec", "status"):
        if not isinstance(new.get(field, {}), dict | None):
            raise BadInput(f"{key}: {field} must be a mapping")
    if key.namespace:
        metadata["namespace"] = key.namespace
    else:
        metadata.pop("namespace", None)
    return key, new


def split_documents(text: str) -> list[tuple[int, str]]:
    """Cut a file at its document markers; returns (number of lines before it, text)."""
    out, start, line = [], 0, 0
    for m in _MARKER.finditer(text):
        out.append((line, text[start : m.start()]))
        line += text.count("\n", start, m.start())
        start = m.end()
    out.append((line, text[start:]))
    return out


def _too_deep(text: str) -> bool:
    """Say whether parsing could overflow the C stack (an upper bound first, exactly if needed)."""
    flow = text.count("[") + text.count("{")
    # A block collection starts in a later column than the one around it, or the same (a
    # sequence in a mapping): twice the longest line bounds their depth.
    if flow + 2 * max(map(len, text.split("\n"))) < _SAFE_NESTING:
        return False
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            return True
    return False


def _items(doc: Any) -> list[Any]:
    if isinstance(doc, dict) and isinstance(doc.get("items"), list):
        kind = doc.get("kind")
        if isinstance(kind, str) and kind.endswith("List"):
            return list(doc["items"])
    return [doc]


def _parse_document(
    before: int, text: str, objects: dict[Key, dict[str, Any]], problems: list[Problem]
) -> None:
    try:
        if _too_deep(text):
            raise BadInput(f"nested deeper than {MAX_DEPTH} levels")
        doc = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        why = ", ".join(filter(None, (e.context, e.problem)))
        # What is missing at the end is found missing one line later.
        line = min(mark.line if mark else 0, text.rstrip("\n").count("\n"))
        problems.append(Problem(before + line + 1, why))
        return
    except (yaml.YAMLError, ValueError, RecursionError, BadInput) as e:
        problems.append(Problem(before + 1, str(e).split("\n")[0][:200]))
        return
    if doc is None:
        return
    lines = text.split("\n")
    first = before + next((i for i, s in enumerate(lines) if s.split("#")[0].strip()), 0) + 1
    for obj in _items(doc):
        try:
            key, checked = normalise(obj)
            if key in objects:
                problems.append(Problem(first, f"{key} is in this file twice: the last one counts"))
            objects[key] = checked
        except (BadInput, RecursionError) as e:
            problems.append(Problem(first, str(e)[:300]))


def parse_manifests(raw: bytes | str) -> tuple[dict[Key, dict[str, Any]], list[Problem]]:
    """Parse the text of one file into its objects, in order, and its problems."""
    objects: dict[Key, dict[str, Any]] = {}
    problems: list[Problem] = []
    if len(raw) > MAX_BYTES:
        return {}, [Problem(1, f"larger than {MAX_BYTES >> 20} MiB: split it")]
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object.count(b"\n", 0, e.start) + 1
        return {}, [Problem(line, "not UTF-8 text")]
    for before, document in split_documents(text):
        _parse_document(before, document, objects, problems)
    return objects, problems


def parse_value(text: str) -> Any:
    """Read one YAML document that is no object, as a ConfigMap's text; raises BadInput."""
    if len(text) > MAX_BYTES:
        raise BadInput(f"larger than {MAX_BYTES >> 20} MiB")
    try:
        if _too_deep(text):
            raise BadInput(f"nested deeper than {MAX_DEPTH} levels")
        return plain(yaml.load(text, _Loader))
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise BadInput(f"not YAML: {str(e).split(chr(10))[0][:200]}") from e


def dump_manifest(obj: dict[str, Any]) -> str:
    """Render one object as a YAML document."""
    return yaml.dump(obj, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
