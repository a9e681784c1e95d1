"""The framed channel between control process and relay workers: messages of ipc.py, and fds.

A frame is a 4-byte big-endian length and a byte counting its file descriptors, then the pickle.
Descriptors travel by SCM_RIGHTS with the frame's first byte; the kernel may hand them over with
earlier bytes, never later ones, so they are queued and each frame takes as many as it counts.

Both ends are our own processes, yet only the classes of ipc.py and what they hold are unpickled.
"""

from __future__ import annotations

import contextlib
import enum
import io
import operator
import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Final

from mesh import model
from mesh.errors import BadInput, MeshError
from ztunnel import ipc

_HEADER: Final = struct.Struct(">IB")
MAX_FDS: Final = 16  # of one frame; a pod has five
MAX_PENDING: Final = 64 << 20  # unsent bytes: the other end has not read for very long
_READ: Final = 256 << 10
_READS_PER_CALL: Final = 8  # of a busy peer, before other work gets its turn
# linux/net/scm.h: SCM_MAX_FD is 253.
_ANCILLARY: Final = socket.CMSG_SPACE(253 * 4)


class ChannelClosed(MeshError):
    """The other end is gone."""


class ChannelFull(MeshError):
    """The other end does not read."""


class Channel:
    """One end. Never blocks: what cannot be sent waits in `pending` until `flush`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self._in = bytearray()
        self._fds: deque[int] = deque()
        self._eof = False
        self.pending = 0  # bytes that wait; > 0: watch for writability and call flush

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._sock.fileno()

    def send(self, message: object, fds: Iterable[int] = ()) -> None:
        """Send or queue a message; the fds stay the caller's (queued ones are duplicated).

        Raises ChannelClosed, and ChannelFull when more than MAX_PENDING bytes wait.
        """
        held = list(fds)
        if len(held) > MAX_FDS:
            raise ValueError(f"{len(held)} file descriptors in one message, at most {MAX_FDS}")
        body = encode(message)
        frame = memoryview(_HEADER.pack(len(body), len(held)) + body)
        if self.pending + len(frame) > MAX_PENDING:
            raise ChannelFull(f"{self.pending} bytes wait in the channel and nobody reads them")
        if not self._out:
            sent = self._transmit(frame, held)
            if sent == len(frame):
                return
            frame, held = frame[sent:], [] if sent else held
        self._out.append((frame, [os.dup(fd) for fd in held]))
        self.pending += len(frame)

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it; raises ChannelClosed."""
        while self._out:
            frame, held = self._out[0]
            sent = self._transmit(frame, held)
            if not sent:
                return
            _close(held)
            self.pending -= sent
            if sent < len(frame):
                self._out[0] = (frame[sent:], [])
                return
            self._out.popleft()

    def _transmit(self, data: memoryview, fds: list[int]) -> int:
        try:
            if fds:
                return socket.send_fds(self._sock, [data], fds)
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as e:
            raise ChannelClosed(f"the channel's other end is gone: {e.strerror}") from e

    def receive(self) -> list[tuple[Any, list[int]]]:
        """Take what has come: (message, its fds, now the caller's) each.

        May leave bytes unread (level-triggered pollers come back). Raises ChannelClosed when the
        other end is gone and everything it sent was returned, BadInput when it breaks the framing.
        """
        if self._eof:
            raise ChannelClosed("the channel's other end has closed it")
        self._read()
        messages = []
        try:
            while (frame := self._frame()) is not None:
                messages.append(frame)
        except BadInput:
            for _, fds in messages:
                _close(fds)
            raise
        if self._eof and not messages:
            raise ChannelClosed("the channel's other end has closed it")
        return messages

    def _read(self) -> None:
        for _ in range(_READS_PER_CALL):
            try:
                data, ancillary, flags, _address = self._sock.recvmsg(
                    _READ, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, ancillary, flags = b"", [], 0
            for level, kind, raw in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    self._fds.extend(struct.unpack(f"{len(raw) // 4}i", raw[: len(raw) // 4 * 4]))
            if flags & socket.MSG_CTRUNC:
                raise BadInput("the channel lost file descriptors: the process has too many open")
            if not data:
                self._eof = True
                return
            self._in += data

    def _frame(self) -> tuple[Any, list[int]] | None:
        if len(self._in) < _HEADER.size:
            return None
        length, count = _HEADER.unpack_from(self._in)
        if length > ipc.MAX_MESSAGE or count > MAX_FDS:
            raise BadInput(f"a channel frame of {length} bytes and {count} file descriptors")
        end = _HEADER.size + length
        if len(self._in) < end:
            return None
        if count > len(self._fds):
            raise BadInput(
                f"a channel frame counts {count} file descriptors, {len(self._fds)} came"
            )
        message = decode_untrusted(bytes(memoryview(self._in)[_HEADER.size : end]))
        del self._in[:end]
        return message, [self._fds.popleft() for _ in range(count)]

    def close(self) -> None:
        """Close the socket and everything that was to be sent or was not fetched."""
        for _, held in self._out:
            _close(held)
        _close(self._fds)
        self._out.clear()
        self._fds.clear()
        self.pending = 0
        self._eof = True
        self._sock.close()


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


# ---- pickling --------------------------------------------------------------------------------


def _classes(module: Any, names: Iterable[str]) -> list[type]:
    found = (getattr(module, name) for name in names)
    return [c for c in found if isinstance(c, type)]


_CLASSES: Final = [
    c for c in _classes(ipc, vars(ipc)) if is_dataclass(c) and c.__module__ == ipc.__name__
] + [ipc.Certificate, *_classes(model, model.__all__)]
_ALLOWED: Final = {(c.__module__, c.__qualname__): c for c in _CLASSES}


def _reducer(cls: type) -> Callable[[Any], tuple[type, tuple[Any, ...]]]:
    # A slotted frozen dataclass pickles through Python code for every field; this is attrgetter
    # and the constructor.
    names = [f.name for f in fields(cls)]
    if not names:
        return lambda value: (cls, ())
    get = operator.attrgetter(*names)
    if len(names) == 1:
        return lambda value: (cls, (get(value),))
    return lambda value: (cls, get(value))


_DISPATCH: Final = {c: _reducer(c) for c in _CLASSES if is_dataclass(c)}
# By its own choice an enum member pickles as a call of builtins.getattr (Python 3.11), which the
# other end must never allow: here it is the class and the value.
_ENUMS: Final = {
    c: lambda member: (type(member), (member.value,)) for c in _CLASSES if issubclass(c, enum.Enum)
}


class _Pickler(pickle.Pickler):
    dispatch_table = {**_DISPATCH, **_ENUMS}  # noqa: RUF012 (pickle's own class attribute)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        found = _ALLOWED.get((module_name, global_name))
        if found is None:
            raise BadInput(f"a channel message names {module_name}.{global_name}"[:300])
        return found


def encode(message: object) -> bytes:
    """Pickle a message; ValueError over MAX_MESSAGE bytes."""
    out = io.BytesIO()
    _Pickler(out, protocol=5).dump(message)
    body = out.getvalue()
    if len(body) > ipc.MAX_MESSAGE:
        raise ValueError(f"a {type(message).__name__} of {len(body)} bytes is too long")
    return body


def decode_untrusted(body: bytes) -> Any:
    """Unpickle a message of ipc.py; raises BadInput."""
    try:
        message = _Unpickler(io.BytesIO(body)).load()
    except BadInput:
        raise
    except Exception as e:  # unpickling hostile bytes raises nearly anything
        raise BadInput(f"a channel message does not unpickle: {e}"[:300]) from e
    if type(message) not in _DISPATCH:
        raise BadInput(f"a channel message is a {type(message).__name__}")
    return message
