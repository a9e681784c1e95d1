"""One TLS connection that carries HTTP/2: socket, OpenSSL, codec, and the streams to serve.

The data path. Tunnel to application: one recv of ciphertext into the worker's raw buffer, into
OpenSSL's memory BIO, one SSL_read per record into the worker's buffer, the codec hands slices of
that to the streams, which send them. Application to tunnel: at the end of a turn `pump` lets every
stream that has something recv straight behind a reserved frame head in the worker's buffer, and
encrypts and sends all of them at once. Nothing is kept per connection but ciphertext the kernel
did not take, and while there is any, nothing more is read from the applications.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from mesh.wire.frames import H2Error
from mesh.wire.h2 import Codec
from mesh.wire.sink import Sink
from ztunnel.relay.leg import CONNECT_TIMEOUT, error_text
from ztunnel.relay.loop import (
    BUFFER,
    CIPHERTEXT,
    END_EVENTS,
    EPOLLERR,
    EPOLLHUP,
    EPOLLOUT,
    READ_EVENTS,
    Handler,
    Loop,
)
from ztunnel.relay.stream import Stream

RECORD: Final = 16 << 10  # most plaintext of a TLS record
RECORD_HEAD: Final = 5  # type, version, length
WRITE: Final = 128 << 10  # plaintext per encrypted write: bounds its output BIO
ROUNDS: Final = 8  # reads, or writes, of one connection per turn; then others have theirs
HANDSHAKE_TIMEOUT: Final = 10.0


class LinkOwner(Sink):
    """The tunnel: knows what the link's connection is for."""

    def on_secure(self) -> str:
        """The handshake is done. Returns why the peer is not acceptable, or ""."""
        raise NotImplementedError

    def on_lost(self, flag: str, error: str) -> None:
        """The connection is gone, whatever the reason; called once, the socket is closed."""
        raise NotImplementedError


class Link(Handler):
    """See the module's text."""

    def __init__(
        self, loop: Loop, sock: socket.socket, context: ssl.SSLContext, server: bool
    ) -> None:
        super().__init__()
        self.loop = loop
        self.sock = sock
        self.fd: int = sock.fileno()
        self.server = server
        self.owner: LinkOwner | None = None
        self.connecting: bool = False
        self.secure: bool = False  # handshake done, peer accepted
        self.closed: bool = False
        self.last_read: float = loop.now
        self.ready: deque[Stream] = deque()  # streams whose application socket has something
        self._bio_in = ssl.MemoryBIO()
        self._bio_out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._bio_in, self._bio_out, server_side=server)
        # With a buffer it returns a count; typeshed knows only the form that returns bytes.
        self._tls_read = cast(Callable[[int, memoryview], int], self._tls.read)
        self._tls_write: Callable[[memoryview], int] = self._tls.write
        self._bio_out_read: Callable[[], bytes] = self._bio_out.read
        self._bio_in_write: Callable[[memoryview], int] = self._bio_in.write
        self._recv_into: Callable[[memoryview], int] = sock.recv_into
        self._send: Callable[[bytes], int] = sock.send
        self._out: bytes = b""  # ciphertext the kernel did not take
        self._records: int = 0  # complete ones that OpenSSL has not been asked for
        self._record_left: int = 0  # bytes to come of the one under way
        self._record_head: bytes = b""  # of the next one, when it came in pieces
        self._readable: bool = False
        self._ending: bool = False  # FIN or an error comes after what can be read
        self._over: str = ""  # why no more will come
        self._closing: bool = False  # close when what is to be written is out
        self._close_flag: str = "-"
        self._close_error: str = ""

    def attach(self, owner: LinkOwner, codec: Codec) -> None:
        """Complete construction: the tunnel refers to its link and the other way round."""
        self.owner = owner
        self.codec = codec

    def start_server(self) -> None:
        """The socket is accepted: wait for the client's hello."""
        self.loop.set_deadline(self, HANDSHAKE_TIMEOUT)
        self.loop.add(self.fd, self)

    def start_client(self, address: tuple[str, int]) -> None:
        """Connect, then shake hands."""
        self.connecting = True
        code = self.sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self.fail("CONNECT", f"connection failed: {error_text(code)}")
            return
        self.loop.set_deadline(self, CONNECT_TIMEOUT)
        self.loop.add(self.fd, self)

    def certificate(self) -> dict[str, object]:
        """The peer's certificate, verified against the roots, as ssl.getpeercert has it."""
        found = self._tls.getpeercert()
        return dict(found) if found else {}

    def alpn(self) -> str:
        """The protocol that was agreed on, "" for none."""
        return self._tls.selected_alpn_protocol() or ""

    def wants_write(self) -> bool:
        """The kernel's buffer is full."""
        return bool(self._out)

    # ---- events ------------------------------------------------------------------------------

    def on_event(self, events: int) -> None:
        """See Handler."""
        if self.closed:
            return
        if self.connecting:
            if not events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
                return
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self.fail("CONNECT", f"connection failed: {error_text(code)}")
                return
            self.connecting = False
            self.loop.set_deadline(self, HANDSHAKE_TIMEOUT)
            self._handshake()
        elif self._out and events & EPOLLOUT:
            self._write(b"")
            if not self._out and not self.closed:
                self.loop.later(self)
        if events & END_EVENTS:
            self._ending = True
        if events & READ_EVENTS and not self.closed:
            self._read()

    def on_turn(self) -> None:
        """See Handler."""
        if self.closed:
            return
        if self._readable:
            self._read()
        if not self.closed:
            self.pump()

    def on_deadline(self) -> None:
        """See Handler: connecting or shaking hands took too long."""
        if self.connecting:
            self.fail(
                "NETWORK_POLICY",
                f"no answer in {CONNECT_TIMEOUT:g} s: is the pod's ztunnel running, and does no"
                " NetworkPolicy block port 15008?",
            )
        elif not self.secure:
            self.fail("TLS_FAILURE", f"TLS handshake not done in {HANDSHAKE_TIMEOUT:g} s")
        else:
            self._finish_close()

    def on_crash(self, error: BaseException) -> None:
        """See Handler."""
        self.fail("-", f"internal error: {error!r}")

    # ---- reading -----------------------------------------------------------------------------

    def _read(self) -> None:
        """Take in what the kernel has, up to ROUNDS buffers."""
        view = self.loop.raw_view
        self._readable = False
        for _ in range(ROUNDS):
            try:
                n = self._recv_into(view)
            except BlockingIOError:
                return
            except OSError as e:
                self.fail(*self._lost(error_text(e.errno or 0)))
                return
            if n == 0:
                self.fail(*self._lost("closed by the peer"))
                return
            self._count_records(n)
            self._bio_in_write(view[:n])
            if not self.secure:
                self._handshake()
            if self.secure and not self.closed:
                self._decrypt()
            if self.closed or (n < CIPHERTEXT and not self._ending):
                return
        self._readable = True
        self.loop.later(self)

    def _lost(self, what: str) -> tuple[str, str]:
        """Flag and text for a connection that ended by itself.

        In TLS 1.3 a client is through before the server has judged its certificate: what ends it
        before the first frame came is a refusal, too.
        """
        if not self.secure:
            return "TLS_FAILURE", f"TLS handshake failed: {what}"
        if not self.codec.settled:
            alert = "alert" in what
            return (
                "TLS_FAILURE" if alert else "H2_HANDSHAKE_FAILURE",
                f"refused by the other end: {what}" if alert else f"no HTTP/2 answer: {what}",
            )
        return "-", f"tunnel connection lost: {what}"

    def _handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except (ssl.SSLError, OSError) as e:
            self._flush()
            self.fail("TLS_FAILURE", f"TLS handshake failed: {tls_reason(e)}")
            return
        owner = self.owner
        assert owner is not None
        refusal = owner.on_secure()
        self.loop.clear_deadline(self)
        if refusal:
            self._flush()
            self.fail("TLS_FAILURE", refusal)
            return
        self.secure = True
        self.loop.later(self)

    def _decrypt(self) -> None:
        """Everything OpenSSL holds, a buffer at a time, into the codec."""
        self.last_read = self.loop.now
        while True:
            self._over = ""
            at = self._read_records()
            if at:
                try:
                    self.codec.feed_untrusted(self.loop.view[:at])
                except H2Error as e:
                    self._protocol_error(e)
                    return
                self.loop.later(self)
            if self.closed:
                return
            if self._over:
                self.fail(*self._lost(self._over))
                return
            if at < BUFFER:
                return

    def _count_records(self, n: int) -> None:
        """See which TLS records the n bytes just received complete (RFC 8446 section 5.1).

        Each lets one SSL_read succeed. Asking once more, to be told that the rest is still to
        come, costs more than decrypting a small record: OpenSSL's error becomes an exception.
        """
        raw = self.loop.raw
        i = 0
        while i < n:
            if self._record_left:
                step = min(self._record_left, n - i)
                self._record_left -= step
                i += step
                if not self._record_left:
                    self._records += 1
                continue
            if not self._record_head and n - i >= RECORD_HEAD:
                self._record_left = raw[i + 3] << 8 | raw[i + 4]
                i += RECORD_HEAD
                continue
            self._record_head += raw[i : i + 1]
            i += 1
            if len(self._record_head) == RECORD_HEAD:
                self._record_left = self._record_head[3] << 8 | self._record_head[4]
                self._record_head = b""

    def _read_records(self) -> int:
        """Decrypt complete records into the worker's buffer, until that is full."""
        view = self.loop.view
        read = self._tls_read
        at = 0
        try:
            while at < BUFFER and self._records:
                self._records -= 1
                n = read(RECORD, view[at : at + RECORD])
                if n == 0:
                    self._over = "closed by the peer"
                    break
                at += n
        except ssl.SSLWantReadError:
            self._records = 0  # some of them belonged to the handshake
        except (ssl.SSLError, OSError) as e:
            self._over = tls_reason(e)
        return at

    def _protocol_error(self, error: H2Error) -> None:
        """Tell the peer what it did, then close."""
        self.codec.goaway(error.code, str(error))
        self.pump()
        self.fail("H2_HANDSHAKE_FAILURE" if not self.codec.settled else "-", str(error))

    # ---- writing -----------------------------------------------------------------------------

    def want(self, stream: Stream) -> None:
        """This stream may have something to send: look at the end of the turn."""
        if not stream.in_ready:
            stream.in_ready = True
            self.ready.append(stream)
        self.loop.later(self)

    def pump(self) -> None:
        """Write control frames and whatever the ready streams have, encrypted, in one go."""
        if not self.secure or self._out or self.closed:
            return
        codec = self.codec
        ready = self.ready
        rounds = 0
        while True:
            at = self._put_control()
            for _ in range(len(ready)):
                if at >= WRITE - RECORD or codec.send_window <= 0:
                    break
                stream = ready.popleft()
                stream.in_ready = False
                at = stream.fill(codec, self.loop.buf, self.loop.view, at, WRITE)
            if not at:
                break
            self._encrypt(at)
            rounds += 1
            if self._out or self.closed:
                return
            if not codec.out and (not ready or codec.send_window <= 0):
                break
            if rounds >= ROUNDS:
                self.loop.later(self)
                return
        if self._closing and not codec.out:
            self._finish_close()

    def _put_control(self) -> int:
        out = self.codec.out
        n = len(out)
        if not n:
            return 0
        if n > WRITE:
            n = WRITE
            self.loop.buf[:n] = out[:n]
            del out[:n]
        else:
            self.loop.buf[:n] = out
            out.clear()
        return n

    def _encrypt(self, n: int) -> None:
        try:
            self._tls_write(self.loop.view[:n])
        except (ssl.SSLError, OSError) as e:
            self.fail(*self._lost(tls_reason(e)))
            return
        self._write(self._bio_out_read())

    def _flush(self) -> None:
        """Send what OpenSSL wants to say by itself (handshake, alerts)."""
        if self._bio_out.pending:
            self._write(self._bio_out.read())

    def _write(self, data: bytes) -> None:
        if self._out:
            data = self._out + data
        try:
            n = self._send(data)
        except BlockingIOError:
            n = 0
        except OSError as e:
            self._out = b""
            self.fail(*self._lost(error_text(e.errno or 0)))
            return
        self._out = data[n:] if n < len(data) else b""

    # ---- closing -----------------------------------------------------------------------------

    def close_when_written(self, flag: str = "-", error: str = "") -> None:
        """Close after what is queued has gone out, or after a second if the peer does not read."""
        if not self._closing and not self.closed:
            self._closing = True
            self._close_flag = flag
            self._close_error = error
            if self.secure:
                self.loop.set_deadline(self, 1.0)
                self.loop.later(self)
            else:
                self._finish_close()

    def _finish_close(self) -> None:
        self.fail(self._close_flag, self._close_error)

    def fail(self, flag: str, error: str) -> None:
        """Close now and tell the owner, once."""
        if self.closed:
            return
        self.closed = True
        self.loop.clear_deadline(self)
        if self.secure and not self._out:
            # unwrap writes our close_notify, then wants the peer's, for which nobody waits.
            with contextlib.suppress(ssl.SSLError, OSError, ValueError):
                self._tls.unwrap()
            with contextlib.suppress(OSError):
                self.sock.send(self._bio_out.read())
        self.ready.clear()
        self._out = b""
        self.loop.close(self.sock, self.fd)
        if self.owner is not None:
            self.owner.on_lost(flag, error)


def tls_reason(error: BaseException) -> str:
    """What OpenSSL says, without its source line."""
    reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or ""
    return str(reason).replace("_", " ").lower() or str(error) or repr(error)
