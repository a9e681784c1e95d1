"""Values checked against values.schema.json: the part of JSON Schema that our schema uses.

Helm checks the same file with all of JSON Schema; a keyword not known here is an error in the
schema, so that the two cannot differ by one of them passing over something.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from mesh.errors import ConfigError

Schema = Mapping[str, Any]

_ANNOTATIONS: Final = {"$schema", "definitions", "title", "description"}
_TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "object": lambda v: isinstance(v, Mapping),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
}


def check(values: Mapping[str, Any], schema: Schema) -> None:
    """Raise ConfigError naming every value that the schema refuses."""
    found = list(_check(values, schema, schema, ""))
    if found:
        raise ConfigError("; ".join(found[:20]))


def _check(value: Any, schema: Schema, root: Schema, path: str) -> Iterator[str]:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/definitions/")
        yield from _check(value, root["definitions"][name], root, path)
        return
    for keyword, wanted in schema.items():
        if keyword in _ANNOTATIONS:
            continue
        if keyword not in _KEYWORDS:
            raise ConfigError(f"values.schema.json: {path or 'root'}: keyword {keyword!r}")
        yield from _KEYWORDS[keyword](value, wanted, schema, root, path)


_Keyword = Callable[[Any, Any, Schema, Schema, str], Iterator[str]]


def _type(value: Any, wanted: Any, schema: Schema, root: Schema, path: str) -> Iterator[str]:
    kinds = wanted if isinstance(wanted, list) else [wanted]
    if not any(_TYPES[kind](value) for kind in kinds):
        yield f"value {path}: {value!r:.60} is not of type {' or '.join(kinds)}"


def _properties(value: Any, wanted: Any, schema: Schema, root: Schema, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key in wanted:
            if key in value:
                yield from _check(value[key], wanted[key], root, f"{path}.{key}".lstrip("."))


def _additional(value: Any, wanted: Any, schema: Schema, root: Schema, path: str) -> Iterator[str]:
    known = schema.get("properties", {})
    if not isinstance(value, Mapping):
        return
    for key in value:
        if key in known:
            continue
        where = f"{path}.{key}".lstrip(".")
        if wanted is False:
            yield f"value {where}: no such value (known here: {', '.join(sorted(known))})"
        elif isinstance(wanted, Mapping):
            yield from _check(value[key], wanted, root, where)


def _required(value: Any, wanted: Any, schema: Schema, root: Schema, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key in wanted:
            if key not in value:
                yield f"value {f'{path}.{key}'.lstrip('.')}: needed, and was removed"


def _items(value: Any, wanted: Any, schema: Schema, root: Schema, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _check(item, wanted, root, f"{path}[{i}]")


def _enum(value: Any, wanted: Any, schema: Schema, root: Schema, path: str) -> Iterator[str]:
    if value not in wanted:
        yield f"value {path}: {value!r:.60} is not one of {', '.join(map(str, wanted))}"


def _pattern(value: Any, wanted: Any, schema: Schema, root: Schema, path: str) -> Iterator[str]:
    if isinstance(value, str) and not re.search(wanted, value):
        what = schema.get("description", f"it must match {wanted}")
        yield f"value {path}: {value!r:.60}: {what}"


def _minimum(value: Any, wanted: Any, schema: Schema, root: Schema, path: str) -> Iterator[str]:
    if _TYPES["integer"](value) and value < wanted:
        yield f"value {path}: {value} is below {wanted}"


def _maximum(value: Any, wanted: Any, schema: Schema, root: Schema, path: str) -> Iterator[str]:
    if _TYPES["integer"](value) and value > wanted:
        yield f"value {path}: {value} is above {wanted}"


_KEYWORDS: Final[dict[str, _Keyword]] = {
    "type": _type,
    "properties": _properties,
    "additionalProperties": _additional,
    "required": _required,
    "items": _items,
    "enum": _enum,
    "pattern": _pattern,
    "minimum": _minimum,
    "maximum": _maximum,
}
