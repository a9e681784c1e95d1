"""Proto-JSON dictionaries to messages, at a third of what json_format.ParseDict costs.

The same mapping (https://protobuf.dev/programming-guides/json/), as far as Envoy's configuration
needs it. A dictionary becomes one that the constructor of the message's class takes, which fills
it in C; how each field is to be treated is worked out once for each type of message.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Convert = Callable[[Any, str], Any]
Classes = Callable[[str], type[Message]]  # by full name of the message

_DURATION: Final = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?s")
_INTEGER: Final = re.compile(r"-?\d{1,20}")
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Bool", "Bytes", "Double", "Float", "Int32", "Int64", "String", "UInt32", "UInt64")
)
_NUMBERS: Final = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
        FieldDescriptor.CPPTYPE_DOUBLE,
        FieldDescriptor.CPPTYPE_FLOAT,
    }
)


@dataclass(frozen=True, slots=True)
class Packed:
    """A message that is encoded already, where a dictionary would be."""

    payload: bytes


class NotEncodable(Exception):
    """A value that its field does not take; says where."""


class Encoder:
    """Converts for messages whose classes `classes` finds. Keeps what it learnt of their types."""

    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self._fields: dict[str, dict[str, tuple[str, Convert]]] = {}

    def message(self, name: str, value: Mapping[str, Any]) -> Message:
        """Build a message by its full name; raises NotEncodable.

        A value may be Packed in place of any dictionary in it.
        """
        cls = self._classes(name)
        kwargs = self._converter(cls.DESCRIPTOR)(value, "")
        try:
            return cls(**kwargs)
        except (TypeError, ValueError, OverflowError) as e:
            raise NotEncodable(f"{name}: {e}") from e

    # ---- messages ----------------------------------------------------------------------------

    def _converter(self, descriptor: Any) -> Convert:
        name = descriptor.full_name
        known = _WELL_KNOWN.get(name)
        if known is not None:
            return known
        if name == "google.protobuf.Any":
            return self._any
        if name in _WRAPPERS:
            inner = self._one(descriptor.fields_by_name["value"])
            return lambda value, path: {"value": inner(value, path)}
        return lambda value, path: self._message(descriptor, value, path)

    def _message(self, descriptor: Any, value: Any, path: str) -> Any:
        if isinstance(value, Packed):
            return self._classes(descriptor.full_name).FromString(value.payload)
        if not isinstance(value, Mapping):
            raise NotEncodable(f"{path}: {value!r:.100} is no {descriptor.name}")
        fields = self._fields.get(descriptor.full_name)
        if fields is None:
            fields = self._fields[descriptor.full_name] = self._plan(descriptor)
        out = {}
        for name, inner in value.items():
            if inner is None:
                continue
            field = fields.get(name)
            if field is None:
                raise NotEncodable(f"{path}.{name}: {descriptor.name} has no such field")
            out[field[0]] = field[1](inner, name if not path else f"{path}.{name}")
        return out

    def _plan(self, descriptor: Any) -> dict[str, tuple[str, Convert]]:
        out = {}
        for field in descriptor.fields:
            convert = self._field(field)
            out[field.name] = out[field.json_name] = (field.name, convert)
        return out

    def _field(self, field: FieldDescriptor) -> Convert:
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            return _mapping(self._one(inner.fields_by_name["value"]))
        one = self._one(field)
        return _sequence(one) if field.is_repeated else one

    def _one(self, field: FieldDescriptor) -> Convert:
        if field.message_type is not None:
            inner = field.message_type
            name = inner.full_name
            if name in _WELL_KNOWN or name == "google.protobuf.Any" or name in _WRAPPERS:
                return self._converter(inner)
            return lambda value, path: self._message(inner, value, path)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return _bytes
        if field.cpp_type in _NUMBERS:
            return _number
        return lambda value, path: value  # text, truth and enums are as the constructor wants them

    def _any(self, value: Any, path: str) -> dict[str, Any]:
        url = value.get("@type") if isinstance(value, Mapping) else None
        if not isinstance(url, str):
            raise NotEncodable(f"{path}: no @type")
        name = url.rpartition("/")[2]
        rest = {k: v for k, v in value.items() if k != "@type"}
        if name in _WRAPPERS or name in _WELL_KNOWN:
            rest = rest.get("value")  # type: ignore[assignment]
        cls = self._classes(name)
        made = self._converter(cls.DESCRIPTOR)(rest, path)
        try:
            message = made if isinstance(made, Message) else cls(**made)
            packed = message.SerializeToString(deterministic=True)
        except (TypeError, ValueError, OverflowError) as e:
            raise NotEncodable(f"{path}: {name}: {e}") from e
        return {"type_url": url, "value": packed}


# ---- values --------------------------------------------------------------------------------------


def _sequence(one: Convert) -> Convert:
    def convert(value: Any, path: str) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise NotEncodable(f"{path}: {value!r:.100} is no list")
        return [one(item, path) for item in value]

    return convert


def _mapping(one: Convert) -> Convert:
    def convert(value: Any, path: str) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise NotEncodable(f"{path}: {value!r:.100} is no mapping")
        return {k: one(v, path) for k, v in value.items()}

    return convert


def _number(value: Any, path: str) -> Any:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)  # as JSON has those of 64 bits
    # bool is an int to Python.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotEncodable(f"{path}: {value!r:.100} is no number")
    return value


def _bytes(value: Any, path: str) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError) as e:
        raise NotEncodable(f"{path}: {value!r:.100} is not base64") from e


def _duration(value: Any, path: str) -> dict[str, int]:
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise NotEncodable(f"{path}: {value!r:.100} is no duration such as 1.5s")
    sign = -1 if found[1] else 1
    nanos = int((found[3] or "").ljust(9, "0"))
    return {"seconds": sign * int(found[2]), "nanos": sign * nanos}


# As messages: from dictionaries the constructor would make others of those within.
def _struct(value: Any, path: str) -> struct_pb2.Struct:
    if not isinstance(value, Mapping):
        raise NotEncodable(f"{path}: {value!r:.100} is no mapping")
    out = struct_pb2.Struct()
    for k, v in value.items():
        out.fields[k].CopyFrom(_value(v, path))
    return out


def _list_value(value: Any, path: str) -> struct_pb2.ListValue:
    return struct_pb2.ListValue(values=[_value(v, path) for v in value])


def _value(value: Any, path: str) -> struct_pb2.Value:
    out = struct_pb2.Value()
    if value is None:
        out.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        out.bool_value = value
    elif isinstance(value, int | float):
        out.number_value = value
    elif isinstance(value, str):
        out.string_value = value
    elif isinstance(value, Mapping):
        out.struct_value.CopyFrom(_struct(value, path))
    elif isinstance(value, list | tuple):
        out.list_value.CopyFrom(_list_value(value, path))
    else:
        raise NotEncodable(f"{path}: {value!r:.100} is no JSON")
    return out


_WELL_KNOWN: Final[Mapping[str, Convert]] = {
    "google.protobuf.Duration": _duration,
    "google.protobuf.ListValue": _list_value,
    "google.protobuf.Struct": _struct,
    "google.protobuf.Value": _value,
}
