"""Which shared libraries a file needs, read from its ELF headers (elf(5)); so that an image without
one of them is refused when it is built, not when a pod starts.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from deploy.images.errors import ImageError

MAGIC: Final = b"\x7fELF"
_64_LITTLE: Final = b"\x02\x01"
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29


@dataclass(frozen=True, slots=True)
class Dynamic:
    """needed: sonames; runpath: folders that are searched first, $ORIGIN for the file's own."""

    needed: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()


def dynamic(data: bytes | mmap.mmap, name: str) -> Dynamic:
    """Read a file's dynamic section; empty when it is static. Raises ImageError when damaged."""
    if data[4:6] != _64_LITTLE:
        raise ImageError(f"{name}: not a 64-bit little-endian ELF file")
    try:
        return _dynamic(data)
    except (struct.error, ValueError, OverflowError) as e:
        raise ImageError(f"{name}: damaged ELF headers ({e})") from e


def _dynamic(data: bytes | mmap.mmap) -> Dynamic:
    loads: list[tuple[int, int, int]] = []  # address, offset, size
    entries: list[tuple[int, int]] = []
    for kind, offset, address, size in _segments(data):
        if kind == _PT_LOAD:
            loads.append((address, offset, size))
        elif kind == _PT_DYNAMIC:
            entries = list(_entries(data[offset : offset + size]))
    strings = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    if strings is None:
        return Dynamic()
    table = _offset(loads, strings)

    def text(at: int) -> str:
        end = data.find(b"\0", table + at)
        return data[table + at : end if end >= 0 else len(data)].decode()

    needed = tuple(text(value) for tag, value in entries if tag == _DT_NEEDED)
    paths = [text(value) for tag, value in entries if tag in (_DT_RPATH, _DT_RUNPATH)]
    return Dynamic(needed, tuple(p for path in paths for p in path.split(":") if p))


def _segments(data: bytes | mmap.mmap) -> Iterator[tuple[int, int, int, int]]:
    """Type, file offset, address and file size of each program header."""
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for i in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, start + i * size)
        yield kind, offset, address, length


def _entries(section: bytes) -> Iterator[tuple[int, int]]:
    for tag, value in struct.iter_unpack("<qQ", section[: len(section) // 16 * 16]):
        if tag == _DT_NULL:
            return
        yield tag, value


def _offset(loads: list[tuple[int, int, int]], address: int) -> int:
    for start, offset, size in loads:
        if start <= address < start + size:
            return offset + address - start
    raise ValueError("the string table is in no segment")
