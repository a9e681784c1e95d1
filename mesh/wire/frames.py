"""HTTP/2 frames (RFC 9113): numbers, limits, and how a frame is put together."""

from __future__ import annotations

import struct
from typing import Final

from mesh.errors import BadInput

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Frame types, RFC 9113 section 6.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

# Flags.
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

# Settings, RFC 9113 section 6.5.2.
HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

# Error codes, RFC 9113 section 7.
NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
SETTINGS_TIMEOUT: Final = 4
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
CONNECT_ERROR: Final = 10
ENHANCE_YOUR_CALM: Final = 11
INADEQUATE_SECURITY: Final = 12

ERROR_NAMES: Final = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
)

# Ours, as Istio's ztunnel announces them.
STREAM_WINDOW: Final = 4 << 20
CONNECTION_WINDOW: Final = 16 << 20
FRAME_SIZE: Final = 1 << 20
SERVER_STREAMS: Final = 200
CLIENT_HEADER_LIST: Final = 16 << 10
SERVER_HEADER_LIST: Final = 64 << 10

DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME_SIZE: Final = 16_384
MAX_WINDOW: Final = (1 << 31) - 1
MAX_STREAM_ID: Final = (1 << 31) - 1
HEAD: Final = 9  # bytes of a frame header

# Flood limits between two calls of `tick`. Generous to real peers; a peer that passes one is told
# ENHANCE_YOUR_CALM. The first bounds frames that cost us an answer or do nothing at all (SETTINGS,
# PING, PRIORITY, unknown types, DATA and CONTINUATION without content).
CONTROL_BUDGET: Final = 2_000
RESET_BUDGET: Final = 20_000
UNANSWERED_RESET_BUDGET: Final = 1_000  # streams reset before we answered: "rapid reset"
CONTINUATIONS: Final = 32
OUT_LIMIT: Final = 1 << 20  # bytes of control frames that wait for a peer that does not read

HEAD_STRUCT: Final = struct.Struct("!HBBBL")
U32_STRUCT: Final = struct.Struct("!L")
SETTING_STRUCT: Final = struct.Struct("!HL")
GOAWAY_STRUCT: Final = struct.Struct("!LL")

TYPE_NAMES: Final = (
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
)


def error_name(code: int) -> str:
    """Name of an error code, or its number."""
    return ERROR_NAMES[code] if 0 <= code < len(ERROR_NAMES) else f"error {code}"


class H2Error(BadInput):
    """The peer broke the protocol; `code` is what GOAWAY tells it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{error_name(code)}: {text}")
        self.code = code


def frame_head(length: int, kind: int, flags: int, sid: int) -> bytes:
    """Nine bytes of a frame header."""
    return HEAD_STRUCT.pack(length >> 8, length & 0xFF, kind, flags, sid)


def frame(kind: int, flags: int, sid: int, payload: bytes) -> bytes:
    """Build a whole frame."""
    return frame_head(len(payload), kind, flags, sid) + payload


def u32(payload: bytes, at: int) -> int:
    """Big-endian 32 bits at an offset."""
    return payload[at] << 24 | payload[at + 1] << 16 | payload[at + 2] << 8 | payload[at + 3]
