"""HPACK (RFC 7541) without state: the representations that touch no dynamic table.

HBONE sends few headers, most of them the same on every stream of a pod. Written as literals
without indexing they encode to bytes that can be kept and joined, and the other end reads them
without tables. What is not of that form goes to the `hpack` library (see `mesh.wire.h2`).
"""

from __future__ import annotations

from typing import Final

# Names of the static table that HBONE uses (RFC 7541 appendix A).
AUTHORITY: Final = 1
METHOD: Final = 2
STATUS: Final = 8

_STATIC: Final[dict[int, bytes]] = {
    1: b":authority",
    2: b":method",
    4: b":path",
    6: b":scheme",
    8: b":status",
}
_OK: Final = (b":status", b"200")


def _length(n: int) -> bytes:
    """A string length: 7-bit prefix, no Huffman coding (RFC 7541 section 5.1, 5.2)."""
    if n < 127:
        return bytes((n,))
    out = bytearray((127,))
    n -= 127
    while n >= 128:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def literal(name: bytes, value: bytes) -> bytes:
    """Encode a header as a literal without indexing, new name."""
    return b"\0" + _length(len(name)) + name + _length(len(value)) + value


def literal_known(index: int, value: bytes) -> bytes:
    """Encode a header as a literal without indexing, name from the static table (below 15)."""
    return bytes((index,)) + _length(len(value)) + value


def status(code: int) -> bytes:
    """Encode `:status`."""
    return b"\x88" if code == 200 else literal_known(STATUS, b"%d" % code)


def decode_literals(block: bytes) -> list[tuple[bytes, bytes]] | None:
    """Decode a block of literals without indexing, plain strings shorter than 2^14, or None.

    None: something else is in it, or it is broken; the full decoder must judge it. Blocks that
    are accepted here leave a decoder's dynamic table as it was, so both may be mixed.
    """
    out: list[tuple[bytes, bytes]] = []
    i = 0
    size = len(block)
    while i < size:
        first = block[i]
        i += 1
        if first == 0x88:
            out.append(_OK)
            continue
        index = first & 0x0F
        if first > 0x1F or index == 15:  # indexed, incremental, table update, long index
            return None
        if index:
            known = _STATIC.get(index)
            if known is None:
                return None
            name = known
        else:
            n, i = _string(block, i, size)
            if n < 0:
                return None
            name = block[i : i + n]
            i += n
        n, i = _string(block, i, size)
        if n < 0:
            return None
        out.append((name, block[i : i + n]))
        i += n
    return out


def _string(block: bytes, i: int, size: int) -> tuple[int, int]:
    """Length of a plain string and where it starts; -1: Huffman-coded, too long or cut short."""
    if i >= size:
        return -1, i
    n = block[i]
    i += 1
    if n > 127:
        return -1, i
    if n == 127:
        if i >= size:
            return -1, i
        more = block[i]
        i += 1
        n += more & 127
        if more > 127:
            if i >= size or block[i] > 127:
                return -1, i
            n += block[i] << 7
            i += 1
    if i + n > size:
        return -1, i
    return n, i
