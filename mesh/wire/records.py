"""TLS 1.3 records (RFC 8446 section 5) of a connection whose handshake OpenSSL has done.

Theory of operation
-------------------
OpenSSL shakes hands, verifies and names the peer, and gives up the two traffic secrets; from then
on `Records` turns plaintext into records and back, as a kernel with kTLS does. The reason is what
lies between a record and a socket when OpenSSL does it: two memory BIOs, four copies and a call
for every record. Here records are decrypted from the buffer they were received into straight to
the buffer that the HTTP/2 codec reads, and encrypted straight into the buffer that is sent.

Ciphers are OpenSSL's (`mesh.wire.recordkey`). What is decided here: keys and their renewal in both
directions, alerts, and what a peer may still say after the handshake: application data, KeyUpdate,
session tickets (thrown away) and alerts. Anything else ends the connection with the alert that
RFC 8446 asks for.

No socket and no clock. Every error is a `RecordError`, a BadInput, after which nothing more may be
opened.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from mesh.errors import BadInput
from mesh.wire.recordkey import (
    APPLICATION_DATA,
    BAD_MAC,
    CIPHERS,
    HEAD,
    NO_MORE,
    OVERHEAD,
    RECORD,
    TOO_LONG,
    RecordKey,
    make_key,
)

# Content types.
ALERT: Final = 21
HANDSHAKE: Final = 22

# Handshake messages that may come after the handshake.
NEW_SESSION_TICKET: Final = 4
KEY_UPDATE: Final = 24

# Alerts, RFC 8446 section 6.
CLOSE_NOTIFY: Final = 0
UNEXPECTED_MESSAGE: Final = 10
BAD_RECORD_MAC: Final = 20
RECORD_OVERFLOW: Final = 22
ILLEGAL_PARAMETER: Final = 47
DECODE_ERROR: Final = 50
USER_CANCELED: Final = 90
_ALERTS: Final = {
    10: "unexpected message",
    20: "bad record mac",
    22: "record overflow",
    40: "handshake failure",
    42: "bad certificate",
    43: "unsupported certificate",
    44: "certificate revoked",
    45: "certificate expired",
    46: "certificate unknown",
    47: "illegal parameter",
    48: "unknown ca",
    49: "access denied",
    50: "decode error",
    51: "decrypt error",
    70: "protocol version",
    71: "insufficient security",
    80: "internal error",
    109: "missing extension",
    110: "unsupported extension",
    112: "unrecognized name",
    116: "certificate required",
    120: "no application protocol",
}

# AES-GCM is good for 2^24.5 full records under one key (RFC 8446 section 5.5).
KEY_LIMIT: Final = 1 << 24
MESSAGE_LIMIT: Final = 16 << 10  # a handshake message that is gathered; tickets are far smaller
# KeyUpdates and empty records cost us more than the peer: so many without any data, then it ends.
IDLE_LIMIT: Final = 32

_LABEL: Final = b"tls13 "

Hash = SHA256 | SHA384


class RecordError(BadInput):
    """The peer broke the record protocol; `alert` is what it is to be told."""

    def __init__(self, alert: int, text: str) -> None:
        super().__init__(text)
        self.alert = alert


def expand_label(algorithm: Hash, secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 section 7.1)."""
    full = _LABEL + label
    info = struct.pack("!HB", length, len(full)) + full + b"\0"
    return HKDFExpand(algorithm=algorithm, length=length, info=info).derive(secret)


class Half:
    """The keys of one direction, generation by generation."""

    def __init__(self, cipher: str, secret: bytes, sealing: bool) -> None:
        """cipher: its name as in RFC 8446. Raises BadInput for one that is none of TLS 1.3."""
        if cipher not in CIPHERS:
            raise BadInput(f"{cipher or 'none'} is not a cipher of TLS 1.3 that is known here")
        self._cipher = cipher
        self._algorithm: Hash = SHA384() if cipher.endswith("SHA384") else SHA256()
        self._sealing = sealing
        self._secret = secret
        self.make: Callable[[str, bytes, bytes, bool], RecordKey] = make_key
        self.key: RecordKey = self._make()

    def _make(self) -> RecordKey:
        size = 16 if self._cipher == "TLS_AES_128_GCM_SHA256" else 32
        key = expand_label(self._algorithm, self._secret, b"key", size)
        iv = expand_label(self._algorithm, self._secret, b"iv", 12)
        return self.make(self._cipher, key, iv, self._sealing)

    def update(self) -> None:
        """Go on to the next generation (RFC 8446 section 7.2)."""
        size = self._algorithm.digest_size
        self._secret = expand_label(self._algorithm, self._secret, b"traffic upd", size)
        self.key = self._make()


class Records:
    """Both directions of one connection; see the module's text."""

    def __init__(self, cipher: str, reading: bytes, writing: bytes) -> None:
        """reading, writing: application traffic secrets of the peer and of this side."""
        self._in = Half(cipher, reading, False)
        self._out = Half(cipher, writing, True)
        self.over: str = ""  # why nothing more will come: the peer closed, or its alert
        self.used: int = 0  # bytes that the last `open_untrusted` consumed
        self.key_limit: int = KEY_LIMIT  # records after which our keys are renewed
        self._answer: bool = False  # the peer wants our keys renewed as well
        self._message = bytearray()  # of the handshake protocol, incomplete
        self._idle: int = 0  # records in a row without application data

    # ---- reading -----------------------------------------------------------------------------

    def open_untrusted(self, raw: memoryview, end: int, out: memoryview) -> int:
        """Decrypt the complete records of raw[:end] into `out`; returns how many bytes that are.

        out: at least as long as `end`. `used` says where the first incomplete record begins (at
        most HEAD + MAX_LENGTH - 1 bytes follow it), `over` whether it was the last. Raises
        RecordError.
        """
        i = 0
        at = 0
        while True:
            key = self._in.key
            found = key.open(raw, i, end, out, at)
            i = key.used
            if key.written > at:
                self._idle = 0
                if self._message:
                    raise RecordError(UNEXPECTED_MESSAGE, "data inside a handshake message")
                at = key.written
            if found == NO_MORE:
                break
            if found < 0:
                self._refuse(found, bytes(raw[i : i + HEAD]))
            self._other(found, bytes(out[at : at + key.content]))
            if self.over:
                break
        self.used = i
        return at

    def _refuse(self, why: int, head: bytes) -> None:
        """head: of the record, where it is the head that is wrong."""
        if why == BAD_MAC:
            raise RecordError(
                BAD_RECORD_MAC, "a TLS record does not decrypt: it was changed on the way"
            )
        if why == TOO_LONG:
            raise RecordError(RECORD_OVERFLOW, f"a TLS record of over {RECORD} bytes")
        if head[0] != APPLICATION_DATA:
            raise RecordError(UNEXPECTED_MESSAGE, f"a TLS record of type {head[0]} in the clear")
        length = head[3] << 8 | head[4]
        if length > RECORD:
            raise RecordError(RECORD_OVERFLOW, f"a TLS record of {length} bytes")
        raise RecordError(DECODE_ERROR, f"a TLS record of {length} bytes, too short to be one")

    def _other(self, kind: int, content: bytes) -> None:
        """A record that is not data, or has none."""
        self._idle += 1
        if self._idle > IDLE_LIMIT:
            raise RecordError(UNEXPECTED_MESSAGE, f"{IDLE_LIMIT} TLS records without data")
        if kind == ALERT:
            self._alert(content)
        elif kind == HANDSHAKE and content:
            self._handshake(content)
        elif kind != APPLICATION_DATA:
            raise RecordError(UNEXPECTED_MESSAGE, f"an encrypted TLS record of type {kind}")

    def _alert(self, content: bytes) -> None:
        if len(content) != 2:
            raise RecordError(DECODE_ERROR, f"a TLS alert of {len(content)} bytes")
        code = content[1]
        if code == CLOSE_NOTIFY:
            self.over = "closed by the peer"
        elif code != USER_CANCELED:  # that one only announces a close_notify
            self.over = f"TLS alert: {_ALERTS.get(code, f'number {code}')}"

    def _handshake(self, content: bytes) -> None:
        """Go through messages: type, three bytes of length, body."""
        held = self._message
        held += content
        while len(held) >= 4:
            length = held[1] << 16 | held[2] << 8 | held[3]
            if length + 4 > MESSAGE_LIMIT:
                raise RecordError(ILLEGAL_PARAMETER, f"a handshake message of {length} bytes")
            if len(held) < 4 + length:
                return
            kind = held[0]
            if kind == KEY_UPDATE:
                # What follows in the same record would be under the old keys.
                if length != 1 or held[4] > 1 or len(held) != 5:
                    raise RecordError(ILLEGAL_PARAMETER, "a malformed KeyUpdate")
                self._answer = self._answer or held[4] == 1
                self._in.update()
            elif kind != NEW_SESSION_TICKET:
                raise RecordError(UNEXPECTED_MESSAGE, f"a handshake message of type {kind}")
            del held[: 4 + length]

    # ---- writing -----------------------------------------------------------------------------

    @staticmethod
    def room(n: int) -> int:
        """How long the output of `seal` can get for n bytes."""
        return n + (n // RECORD + 2) * OVERHEAD + 8

    def seal(self, buf: bytearray, view: memoryview, n: int, out: memoryview) -> int:
        """Encrypt view[:n] into `out`, which has `room(n)`; returns the length.

        view: all of buf, which is longer than n; the byte behind a record's content is borrowed
        for its content type.
        """
        at = 0
        if self._answer or self._out.key.count >= self.key_limit:
            at = self._key_update(out)
        return self._out.key.seal(buf, view, n, out, at)

    def _key_update(self, out: memoryview) -> int:
        self._answer = False
        sealed = self._out.key.seal_small(HANDSHAKE, bytes((KEY_UPDATE, 0, 0, 1, 0)))
        out[: len(sealed)] = sealed
        self._out.update()
        return len(sealed)

    def alert(self, code: int) -> bytes:
        """The last record of this side: CLOSE_NOTIFY, or what the peer did."""
        level = 1 if code == CLOSE_NOTIFY else 2
        return self._out.key.seal_small(ALERT, bytes((level, code)))
