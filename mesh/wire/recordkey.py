"""The key of one direction of a TLS 1.3 connection: records in, records out (RFC 8446 section 5.2).

Two forms that behave alike. `PythonKey` is below and needs nothing but the `cryptography` package.
mesh/wire/_recordkey.c does the same with OpenSSL's libcrypto for a whole buffer in one call, which
takes a fifth off the cost of a relayed byte; `make_key` takes it where the relay is compiled.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from mesh.compiled import is_compiled

RECORD: Final = 16 << 10  # most plaintext of a record
HEAD: Final = 5  # type, version, length
TAG: Final = 16  # of every cipher of TLS 1.3
OVERHEAD: Final = HEAD + 1 + TAG  # 1: the content type, encrypted behind the content
MAX_LENGTH: Final = RECORD + 256  # most that a record's length field may say

CHACHA: Final = "TLS_CHACHA20_POLY1305_SHA256"
CIPHERS: Final = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", CHACHA)
APPLICATION_DATA: Final = 23  # the content type of data, and what every record claims to be

# What `open` returns beside the content type of the first record that is not data.
NO_MORE: Final = 0  # the rest is an incomplete record, or nothing
BAD_MAC: Final = -1
BAD_HEAD: Final = -2
TOO_LONG: Final = -3
NO_TYPE: Final = 256  # a record of nothing but padding

_HEAD_STRUCT: Final = struct.Struct("!BHH")
_VERSION: Final = 0x0303
_FULL_LENGTH: Final = RECORD + 1 + TAG
_FULL_HEAD: Final = _HEAD_STRUCT.pack(APPLICATION_DATA, _VERSION, _FULL_LENGTH)


class RecordKey(Protocol):
    """One direction. A key seals or opens, never both."""

    @property
    def count(self) -> int:
        """How many records went through; also makes the nonce."""

    @property
    def used(self) -> int:
        """After `open`: where the first record begins that was not consumed."""

    @property
    def written(self) -> int:
        """After `open`: where the output ends."""

    @property
    def content(self) -> int:
        """After `open` met a record that is not data: the length of that, in out[written:]."""

    def open(self, raw: memoryview, start: int, end: int, out: memoryview, at: int) -> int:
        """Decrypt the complete data records of raw[start:end] into out[at:].

        Stops behind the first that is not data, or is empty, and returns its content type (or
        NO_TYPE); else NO_MORE, BAD_MAC, BAD_HEAD or TOO_LONG. out: as much room as there is input.
        """

    def seal(self, buf: bytearray, view: memoryview, n: int, out: memoryview, at: int) -> int:
        """Encrypt view[:n] as data records into out[at:]; returns where they end.

        view: all of buf, which is longer than n: the byte behind a content may be borrowed.
        """

    def seal_small(self, kind: int, content: bytes) -> bytes:
        """Build one record of any content type."""


class PythonKey:
    """A RecordKey; the methods are documented there."""

    def __init__(self, cipher: str, key: bytes, iv: bytes) -> None:
        self.count: int = 0
        self.used: int = 0
        self.written: int = 0
        self.content: int = 0
        self._aead: AESGCM | ChaCha20Poly1305 = (
            ChaCha20Poly1305(key) if cipher == CHACHA else AESGCM(key)
        )
        self._iv_head: bytes = iv[:4]
        self._iv_tail: int = int.from_bytes(iv[4:], "big")

    def _nonce(self) -> bytes:
        tail = self._iv_tail ^ self.count
        self.count += 1
        return self._iv_head + tail.to_bytes(8, "big")

    def open(self, raw: memoryview, start: int, end: int, out: memoryview, at: int) -> int:
        i = start
        result = NO_MORE
        self.content = 0
        while end - i >= HEAD:
            length: int = raw[i + 3] << 8 | raw[i + 4]
            if raw[i] != APPLICATION_DATA or length > MAX_LENGTH or length < TAG + 1:
                result = BAD_HEAD
                break
            body = i + HEAD
            stop = body + length
            if stop > end:
                break
            n = at + length - TAG
            try:
                self._aead.decrypt_into(self._nonce(), raw[body:stop], raw[i:body], out[at:n])
            except InvalidTag:
                result = BAD_MAC
                break
            i = stop
            kind: int = 0
            while not kind and n > at:  # behind the content type there may be padding
                n -= 1
                kind = out[n]
            if n - at > RECORD:
                result = TOO_LONG
                break
            if kind != APPLICATION_DATA or n == at:
                self.content = n - at
                result = kind or NO_TYPE
                break
            at = n
        self.used = i
        self.written = at
        return result

    def seal(self, buf: bytearray, view: memoryview, n: int, out: memoryview, at: int) -> int:
        i = 0
        while i < n:
            stop = i + RECORD
            if stop <= n:
                head = _FULL_HEAD
                length = _FULL_LENGTH
            else:
                stop = n
                length = n - i + 1 + TAG
                head = _HEAD_STRUCT.pack(APPLICATION_DATA, _VERSION, length)
            start = at + HEAD
            end = start + length
            out[at:start] = head
            kept: int = buf[stop]
            buf[stop] = APPLICATION_DATA
            self._aead.encrypt_into(self._nonce(), view[i : stop + 1], head, out[start:end])
            buf[stop] = kept
            at = end
            i = stop
        return at

    def seal_small(self, kind: int, content: bytes) -> bytes:
        head = _HEAD_STRUCT.pack(APPLICATION_DATA, _VERSION, len(content) + 1 + TAG)
        return head + self._aead.encrypt(self._nonce(), content + bytes((kind,)), head)


def make_key(cipher: str, key: bytes, iv: bytes, sealing: bool) -> RecordKey:
    """The key of a direction, in the faster form if there is one."""
    if is_compiled():
        try:
            from mesh.wire._recordkey import RecordKey as NativeKey
        except ImportError:
            pass
        else:
            native: RecordKey = NativeKey(cipher, key, iv, sealing)
            return native
    return PythonKey(cipher, key, iv)
