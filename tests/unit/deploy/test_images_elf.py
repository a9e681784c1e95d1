"""Reading what a shared library needs, out of good and damaged files."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.images import elf
from deploy.images.errors import ImageError

LOAD, DYNAMIC = 1, 2
NEEDED, STRTAB, RUNPATH, NULL = 1, 5, 29, 0
BASE = 0x1000  # address of the file's first byte once loaded


def library(needed: list[str], runpath: str = "") -> bytes:
    """A 64-bit file of two segments: all of it loaded at BASE, and its dynamic section."""
    strings = b"\0"
    entries = []
    for tag, text in [*((NEEDED, n) for n in needed), *([(RUNPATH, runpath)] if runpath else [])]:
        entries.append((tag, len(strings)))
        strings += text.encode() + b"\0"
    where = 64 + 2 * 56
    size = 16 * (len(entries) + 2)
    entries += [(STRTAB, BASE + where + size), (NULL, 0)]
    section = b"".join(struct.pack("<qQ", *e) for e in entries)
    total = where + size + len(strings)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQ", 3, 62, 1, 0, 64, 0)
    head += struct.pack("<IHHHHHH", 0, 64, 56, 2, 0, 0, 0)
    segments = struct.pack("<IIQQQQQQ", LOAD, 4, 0, BASE, BASE, total, total, 8)
    at = BASE + where
    segments += struct.pack("<IIQQQQQQ", DYNAMIC, 4, where, at, at, size, size, 8)
    return head + segments + section + strings


def test_what_it_needs_and_where_it_looks_first() -> None:
    """Sonames in the file's order."""
    found = elf.dynamic(library(["libc.so.6", "libm.so.6"], "$ORIGIN/../libs:/opt"), "x")
    assert found == elf.Dynamic(("libc.so.6", "libm.so.6"), ("$ORIGIN/../libs", "/opt"))


def test_a_static_program_needs_nothing() -> None:
    """As Go's are."""
    data = bytearray(library([]))
    struct.pack_into("<H", data, 56, 1)  # only the first of its segments
    assert elf.dynamic(bytes(data), "x") == elf.Dynamic()


def test_another_machine_s_file_is_refused() -> None:
    """32 bits."""
    with pytest.raises(ImageError, match="x: not a 64-bit"):
        elf.dynamic(b"\x7fELF\x01\x01" + bytes(60), "x")


@given(st.data())
def test_a_damaged_file_is_an_error_and_nothing_else(data: st.DataObject) -> None:
    """Cut anywhere, or with bytes changed."""
    whole = bytearray(library(["libc.so.6", "libm.so.6"], "$ORIGIN"))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(6, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(6, len(whole)))])
    with contextlib.suppress(ImageError):
        elf.dynamic(cut, "x")
