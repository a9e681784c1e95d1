"""One plain TCP socket of a relayed connection.

A leg writes at once what it is given, keeps what the kernel did not take (bounded by whoever gives
it: windows, or a paused reader), sends FIN after that, and tells its subclass when it is readable.
It reads nothing itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections import deque
from typing import Final

from ztunnel.relay.loop import END_EVENTS, EPOLLERR, EPOLLHUP, EPOLLOUT, READ_EVENTS, Loop
from ztunnel.relay.report import Owner

_LINGER_RESET: Final = struct.pack("ii", 1, 0)
CONNECT_TIMEOUT: Final = 10.0


def error_text(code: int) -> str:
    """Words for an errno."""
    return os.strerror(code)


class Leg(Owner):
    """See the module's text."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        super().__init__()
        self.loop = loop
        self.sock = sock
        self.fd: int = sock.fileno()
        self.readable: bool = False  # the kernel may have bytes (or FIN, or an error) for us
        self.ending: bool = False  # FIN or an error comes after what can be read: no edge will tell
        self.failed: bool = False  # the kernel signalled an error; reading will say which
        self.eof: bool = False  # FIN was read
        self.connecting: bool = False
        self.closed: bool = False
        self.fin: bool = False  # no more will be written; FIN goes out after what is pending
        self.fin_sent: bool = False
        self.pending: deque[bytes] = deque()
        self.pending_size: int = 0

    # ---- for subclasses ----------------------------------------------------------------------

    def on_readable(self) -> None:
        """`readable` became true."""
        raise NotImplementedError

    def on_connected(self) -> None:
        """The connect that was begun is through."""
        raise NotImplementedError

    def on_connect_failed(self, code: int) -> None:
        """It failed with this errno. The leg is not closed yet."""
        raise NotImplementedError

    def on_drained(self, n: int) -> None:
        """That many pending bytes went out."""
        raise NotImplementedError

    def on_broken(self, error: OSError) -> None:
        """The socket failed (reset by its peer, most often). The leg is not closed yet."""
        raise NotImplementedError

    def on_fin_sent(self) -> None:
        """FIN went out, after all that was pending."""
        raise NotImplementedError

    def ends_with_fin(self) -> bool:
        """Close follows at once when FIN is sent: then close() sends it, one call less."""
        raise NotImplementedError

    # ---- connecting --------------------------------------------------------------------------

    def connect(self, address: tuple[str, int]) -> int:
        """Begin to connect; the socket is non-blocking. Returns 0 when done, EINPROGRESS, or errno.

        A connect within the machine is through as soon as the kernel call returns, but only a
        second call says so: that saves a turn of the loop.
        """
        code = self.sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            code = self.sock.connect_ex(address)
            if code == errno.EALREADY:
                code = errno.EINPROGRESS
            elif code == errno.EISCONN:
                code = 0
        self.connecting = code == errno.EINPROGRESS
        if code == 0 or self.connecting:
            self.loop.add(self.fd, self)
        if self.connecting:
            self.loop.set_deadline(self, CONNECT_TIMEOUT)
        return code

    def _connect_event(self) -> None:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.connecting = False
        self.loop.clear_deadline(self)
        if code:
            self.on_connect_failed(code)
            return
        self.on_connected()
        self.settle()

    def settle(self) -> None:
        """After connecting: write what waited for it."""
        if self.closed or self.connecting:
            return
        if self.pending_size:
            self._drain()
        else:
            self._after_drain()

    # ---- events ------------------------------------------------------------------------------

    def on_event(self, events: int) -> None:
        """See Handler."""
        if self.closed:
            return
        if self.connecting:
            if events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
                self._connect_event()
            if self.closed or self.connecting:
                return
        if self.pending_size and events & EPOLLOUT:
            self._drain()
            if self.closed:
                return
        if events & END_EVENTS:
            self.ending = True
            if events & EPOLLERR:
                self.failed = True
        if events & READ_EVENTS:
            self.readable = True
            self.on_readable()

    def on_deadline(self) -> None:
        """See Handler: the connect took too long."""
        if self.connecting and not self.closed:
            self.connecting = False
            self.on_connect_failed(errno.ETIMEDOUT)

    # ---- writing -----------------------------------------------------------------------------

    def write(self, data: memoryview) -> int:
        """Write, or keep. Returns how many bytes the kernel took; the rest comes by on_drained."""
        n = 0
        if not self.pending_size and not self.connecting:
            try:
                n = self.sock.send(data)
            except BlockingIOError:
                n = 0
            except OSError as e:
                self.on_broken(e)
                return 0
            if n == len(data):
                return n
        rest = bytes(data[n:] if n else data)
        self.pending.append(rest)
        self.pending_size += len(rest)
        return n

    def finish(self) -> None:
        """Nothing more will be written."""
        self.fin = True
        if not self.pending_size and not self.connecting:
            self._send_fin()

    def _drain(self) -> None:
        done = 0
        try:
            while self.pending:
                head = self.pending[0]
                n = self.sock.send(head)
                done += n
                self.pending_size -= n
                if n < len(head):
                    self.pending[0] = head[n:]
                    break
                self.pending.popleft()
        except BlockingIOError:
            pass
        except OSError as e:
            self.on_broken(e)
            return
        if done:
            self.on_drained(done)
        if not self.closed:
            self._after_drain()

    def _after_drain(self) -> None:
        if self.pending_size:
            return
        if self.fin and not self.fin_sent:
            self._send_fin()

    def _send_fin(self) -> None:
        self.fin_sent = True
        if not self.ends_with_fin():
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as e:
                if e.errno != errno.ENOTCONN:
                    self.on_broken(e)
                    return
        self.on_fin_sent()

    # ---- closing -----------------------------------------------------------------------------

    def close(self, reset: bool) -> None:
        """Close the socket; reset: its peer sees RST rather than FIN."""
        if self.closed:
            return
        self.closed = True
        self.loop.clear_deadline(self)
        self.pending.clear()
        self.pending_size = 0
        if reset:
            reset_on_close(self.sock)
        self.loop.close(self.sock, self.fd)


def reset_on_close(sock: socket.socket) -> None:
    """Make close() send RST, so that the peer sees a failure and not an end of data."""
    # It fails when the network closed it meanwhile: nothing is left to tell anybody.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
