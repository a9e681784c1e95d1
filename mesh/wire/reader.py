"""Reads frames out of bytes as they come, however they are cut. The lower half of `mesh.wire.h2`.

Payloads of DATA pass through in slices of the caller's buffer; frames that mean nothing are
skipped as they pass; all others are gathered, up to limits, and dispatched whole, header blocks
with their CONTINUATIONs put together.
"""

from __future__ import annotations

from typing import Final

from mesh.wire.frames import (
    CONTINUATION,
    CONTINUATIONS,
    DATA,
    DEFAULT_FRAME_SIZE,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FRAME_SIZE,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEAD,
    HEAD_STRUCT,
    HEADERS,
    MAX_STREAM_ID,
    PADDED,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    TYPE_NAMES,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    H2Error,
)

_GATHERED: Final = frozenset(
    (HEADERS, CONTINUATION, SETTINGS, GOAWAY, RST_STREAM, WINDOW_UPDATE, PING)
)


class FrameReader:
    """Incremental reader; `Codec` fills in what frames mean."""

    def __init__(self, server: bool, header_limit: int) -> None:
        self.settled: bool = False  # the peer's first SETTINGS came
        self._header_limit = header_limit
        self._preface: int = len(PREFACE) if server else 0  # bytes of it still to come
        self._held = bytearray()  # an incomplete frame that is not DATA, or part of a head
        self._need: int = HEAD  # how many bytes _held must have
        self._kind: int = DATA  # of the frame being streamed through
        self._left: int = 0  # its payload bytes to come
        self._pad: int = 0  # of those, padding at the end
        self._pad_due: bool = False  # the next byte is the pad length
        self._block = bytearray()  # header block being gathered
        self._block_sid: int = 0  # 0: none
        self._block_end: bool = False
        self._block_frames: int = 0

    # ---- what the codec does with them -------------------------------------------------------

    def data_head(self, length: int, end: bool, sid: int) -> None:
        """A DATA frame of this length (padding included) begins."""
        raise NotImplementedError

    def data_chunk(self, chunk: memoryview) -> None:
        """Some of its payload, at least one byte."""
        raise NotImplementedError

    def data_padding(self, n: int) -> None:
        """That many bytes of its length are not payload."""
        raise NotImplementedError

    def data_over(self) -> None:
        """The DATA frame is complete."""
        raise NotImplementedError

    def dispatch(self, kind: int, flags: int, sid: int, payload: bytes) -> None:
        """A complete frame of another kind."""
        raise NotImplementedError

    def header_block(self, sid: int, block: bytes, end: bool) -> None:
        """A complete header block."""
        raise NotImplementedError

    def spend(self) -> None:
        """Count a frame that means no progress; raises H2Error when there are too many."""
        raise NotImplementedError

    # ---- reading -----------------------------------------------------------------------------

    def feed_untrusted(self, data: memoryview) -> None:
        """Read received bytes and call the sink. Raises H2Error, after which nothing may be fed."""
        i = 0
        size = len(data)
        if self._preface:
            i = self._feed_preface(data)
        while i < size:
            if self._left or self._pad_due:
                i = self._feed_through(data, i, size)
            elif self._held:
                i = self._feed_held(data, i, size)
            elif size - i < HEAD:
                self._held += data[i:size]
                self._need = HEAD
                i = size
            else:
                hi, lo, kind, flags, sid = HEAD_STRUCT.unpack_from(data, i)
                length: int = hi << 8 | lo
                if self._starts(length, kind, flags, sid & MAX_STREAM_ID):
                    i += HEAD
                elif size - i - HEAD < length:
                    self._held += data[i:size]
                    self._need = HEAD + length
                    i = size
                else:
                    i += HEAD + length
                    self._complete(kind, flags, sid & MAX_STREAM_ID, bytes(data[i - length : i]))

    def _feed_preface(self, data: memoryview) -> int:
        n = min(self._preface, len(data))
        at = len(PREFACE) - self._preface
        if bytes(data[:n]) != PREFACE[at : at + n]:
            raise H2Error(PROTOCOL_ERROR, "no HTTP/2 connection preface")
        self._preface -= n
        return n

    def _feed_held(self, data: memoryview, i: int, size: int) -> int:
        take = min(self._need - len(self._held), size - i)
        self._held += data[i : i + take]
        if len(self._held) < self._need:
            return i + take
        hi, lo, kind, flags, sid = HEAD_STRUCT.unpack_from(self._held)
        length: int = hi << 8 | lo
        sid &= MAX_STREAM_ID
        if self._need == HEAD:
            if self._starts(length, kind, flags, sid):
                self._held.clear()
                return i + take
            self._need = HEAD + length
            if length:
                return i + take
        payload = bytes(self._held[HEAD:])
        self._held.clear()
        self._complete(kind, flags, sid, payload)
        return i + take

    def _starts(self, length: int, kind: int, flags: int, sid: int) -> bool:
        """Judge a frame's head. True: its payload streams through; False: it is to be gathered."""
        if self._block_sid and (kind != CONTINUATION or sid != self._block_sid):
            raise H2Error(PROTOCOL_ERROR, "a header block was interrupted")
        if not self.settled and kind != SETTINGS:
            raise H2Error(PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if length > FRAME_SIZE:
            raise H2Error(FRAME_SIZE_ERROR, f"a frame of {length} bytes, announced {FRAME_SIZE}")
        if kind == DATA:
            self._start_data(length, flags, sid)
            return True
        if kind in _GATHERED:
            self._check_length(length, kind)
            return False
        if kind == PUSH_PROMISE:
            raise H2Error(PROTOCOL_ERROR, "PUSH_PROMISE, which we switched off")
        # PRIORITY and unknown types mean nothing to us.
        self.spend()
        self._kind = kind
        self._left = length
        self._pad = 0
        return True

    def _check_length(self, length: int, kind: int) -> None:
        """Bound what is gathered."""
        if kind in (HEADERS, CONTINUATION):
            if length + len(self._block) > self._header_limit:
                raise H2Error(ENHANCE_YOUR_CALM, f"a header block over {self._header_limit} bytes")
        elif kind in (SETTINGS, GOAWAY):
            if length > DEFAULT_FRAME_SIZE:
                raise H2Error(FRAME_SIZE_ERROR, f"{TYPE_NAMES[kind]} of {length} bytes")
        elif length != (8 if kind == PING else 4):
            raise H2Error(FRAME_SIZE_ERROR, f"{TYPE_NAMES[kind]} of {length} bytes")

    def _start_data(self, length: int, flags: int, sid: int) -> None:
        self.data_head(length, bool(flags & END_STREAM), sid)
        self._kind = DATA
        self._left = length
        self._pad = 0
        if flags & PADDED:
            if not length:
                raise H2Error(FRAME_SIZE_ERROR, "padded DATA without a pad length")
            self._pad_due = True
        elif not length:
            self.data_over()

    def _feed_through(self, data: memoryview, i: int, size: int) -> int:
        """Pass on what is there of a DATA payload, or skip it."""
        if self._pad_due:
            self._pad_due = False
            self._pad = data[i]
            self._left -= 1
            i += 1
            if self._pad > self._left:
                raise H2Error(PROTOCOL_ERROR, "more padding than payload")
            self.data_padding(self._pad + 1)
        n = self._left - self._pad
        if n > 0:
            if n > size - i:
                n = size - i
            if n:
                self._left -= n
                if self._kind == DATA:
                    self.data_chunk(data[i : i + n])
            i += n
        if self._left == self._pad:
            n = min(self._pad, size - i)
            self._left -= n
            self._pad -= n
            i += n
        if not self._left and self._kind == DATA:
            self.data_over()
        return i

    def _on_headers(self, flags: int, sid: int, payload: bytes) -> None:
        if sid == 0:
            raise H2Error(PROTOCOL_ERROR, "HEADERS on stream 0")
        start = 0
        stop = len(payload)
        if flags & PADDED:
            if not payload:
                raise H2Error(FRAME_SIZE_ERROR, "padded HEADERS without a pad length")
            start = 1
            stop -= payload[0]
        if flags & WITH_PRIORITY:
            start += 5
        if start > stop:
            raise H2Error(PROTOCOL_ERROR, "HEADERS with more padding than payload")
        block = payload[start:stop]
        if flags & END_HEADERS:
            self.header_block(sid, block, bool(flags & END_STREAM))
            return
        self._block += block
        self._block_sid = sid
        self._block_end = bool(flags & END_STREAM)
        self._block_frames = 0

    def _on_continuation(self, flags: int, sid: int, payload: bytes) -> None:
        if not self._block_sid:
            raise H2Error(PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block_frames += 1
        if self._block_frames > CONTINUATIONS:
            raise H2Error(ENHANCE_YOUR_CALM, f"more than {CONTINUATIONS} CONTINUATION frames")
        self._block += payload
        if flags & END_HEADERS:
            block = bytes(self._block)
            self._block.clear()
            self._block_sid = 0
            self.header_block(sid, block, self._block_end)

    def _complete(self, kind: int, flags: int, sid: int, payload: bytes) -> None:
        if kind == HEADERS:
            self._on_headers(flags, sid, payload)
        elif kind == CONTINUATION:
            self._on_continuation(flags, sid, payload)
        else:
            self.dispatch(kind, flags, sid, payload)
