"""Struct layouts as the compiler laid them out, and packing by them.

The loader describes bcc's ctypes of a map once; from then on that description (JSON, kept in the
`meta` map) is all that user space needs. Nothing here mirrors C by hand.
"""

from __future__ import annotations

import ctypes as c
import sys
from dataclasses import dataclass
from typing import Any


def describe(ctype: Any) -> dict[str, Any]:
    """Flatten a ctypes type: {"size": n, "fields": {"a.b": [offset, element size, count]}}."""
    fields: dict[str, list[int]] = {}
    _walk(ctype, "", 0, fields)
    return {"size": c.sizeof(ctype), "fields": fields}


def _walk(ctype: Any, name: str, offset: int, out: dict[str, list[int]]) -> None:
    if hasattr(ctype, "_fields_"):
        for field in ctype._fields_:
            member = getattr(ctype, field[0])
            _walk(field[1], f"{name}.{field[0]}".strip("."), offset + member.offset, out)
    elif hasattr(ctype, "_length_"):
        if hasattr(ctype._type_, "_fields_"):
            for i in range(ctype._length_):
                _walk(ctype._type_, f"{name}.{i}", offset + i * c.sizeof(ctype._type_), out)
        else:
            out[name] = [offset, c.sizeof(ctype._type_), ctype._length_]
    else:
        out[name] = [offset, c.sizeof(ctype), 1]


@dataclass(frozen=True, slots=True)
class Layout:
    """One struct."""

    size: int
    fields: dict[str, list[int]]

    def pack(self, **values: int | bytes | tuple[int, ...]) -> bytes:
        """Build the struct; names use __ for dots; bytes are copied as they are, zero-padded."""
        raw = bytearray(self.size)
        for name, value in values.items():
            offset, size, count = self.fields[name.replace("__", ".")]
            if isinstance(value, bytes):
                if len(value) > size * count:
                    raise ValueError(f"{name}: {len(value)} bytes do not fit {size * count}")
                raw[offset : offset + len(value)] = value
                continue
            items = (value,) if isinstance(value, int) else value
            if len(items) > count:
                raise ValueError(f"{name}: {len(items)} values, at most {count}")
            for i, item in enumerate(items):
                at = offset + i * size
                raw[at : at + size] = item.to_bytes(size, sys.byteorder)
        return bytes(raw)

    def bytes_of(self, raw: bytes, name: str) -> bytes:
        """A field as it lies in memory."""
        offset, size, count = self.fields[name]
        return raw[offset : offset + size * count]

    def ints(self, raw: bytes, name: str) -> tuple[int, ...]:
        """A field's elements."""
        offset, size, count = self.fields[name]
        return tuple(
            int.from_bytes(raw[offset + i * size : offset + (i + 1) * size], sys.byteorder)
            for i in range(count)
        )
