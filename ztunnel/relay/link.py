"""One TLS connection that carries HTTP/2: socket, TLS, codec, and the streams to serve.

The data path. Tunnel to application: one recv of ciphertext into the worker's raw buffer, its
records decrypted into the worker's buffer, the codec hands slices of that to the streams, which
send them. Application to tunnel: at the end of a turn `pump` lets every stream that has something
recv straight behind a reserved frame head in the worker's buffer, encrypts all of it into the raw
buffer and sends it at once. Nothing is kept per connection but an incomplete record and ciphertext
the kernel did not take, and while there is any of that, nothing more is read from applications.

OpenSSL does the handshake; then `mesh.wire.records` has the keys, and OpenSSL's part is freed.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final

from mesh.errors import BadInput
from mesh.wire.frames import H2Error
from mesh.wire.h2 import Codec
from mesh.wire.recordkey import RECORD
from mesh.wire.records import CLOSE_NOTIFY, RecordError, Records
from mesh.wire.sink import Sink
from ztunnel.relay.leg import CONNECT_TIMEOUT, error_text
from ztunnel.relay.loop import (
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
from ztunnel.relay.tls import SECRETS

WRITE: Final = 128 << 10  # plaintext per encrypted write; its records fit the raw buffer
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
        self._tls: ssl.SSLObject | None = context.wrap_bio(
            self._bio_in, self._bio_out, server_side=server
        )
        self._client_secret: bytes = b""
        self._server_secret: bytes = b""
        self._records: Records | None = None  # once the handshake is done
        self._tail: bytes = b""  # of what was received, an incomplete record
        self._recv_into: Callable[[memoryview], int] = sock.recv_into
        self._send: Callable[[bytes | memoryview], int] = sock.send
        self._out: bytes = b""  # ciphertext the kernel did not take
        self._readable: bool = False
        self._ending: bool = False  # FIN or an error comes after what can be read
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
        """The peer's certificate, verified against the roots, as ssl.getpeercert has it.

        To be asked for in `LinkOwner.on_secure`, like `alpn`: afterwards it is forgotten.
        """
        found = self._tls.getpeercert() if self._tls else None
        return dict(found) if found else {}

    def alpn(self) -> str:
        """The protocol that was agreed on, "" for none."""
        return (self._tls.selected_alpn_protocol() if self._tls else "") or ""

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
            at = len(self._tail)
            try:
                n = self._recv_into(view[at : at + CIPHERTEXT])
            except BlockingIOError:
                return
            except OSError as e:
                self.fail(*self._lost(error_text(e.errno or 0)))
                return
            if n == 0:
                self.fail(*self._lost("closed by the peer"))
                return
            if self._records is not None:
                self._decrypt(at + n)
            else:
                self._bio_in.write(view[:n])
                self._handshake()
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
        tls = self._tls
        assert tls is not None
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._keep_secrets()
            self._flush()
            return
        except (ssl.SSLError, OSError) as e:
            self._keep_secrets()
            self._flush()
            self.fail("TLS_FAILURE", f"TLS handshake failed: {tls_reason(e)}")
            return
        self._keep_secrets()
        self._flush()
        owner = self.owner
        assert owner is not None
        refusal = owner.on_secure()
        self.loop.clear_deadline(self)
        if refusal:
            self.fail("TLS_FAILURE", refusal)
        elif not self.closed:
            self._take_over(tls)

    def _keep_secrets(self) -> None:
        client, server = SECRETS.take()
        self._client_secret = client or self._client_secret
        self._server_secret = server or self._server_secret

    def _take_over(self, tls: ssl.SSLObject) -> None:
        """From here on records are ours; what came behind the handshake is the first of them."""
        cipher = tls.cipher()
        ours, theirs = self._server_secret, self._client_secret
        if not self.server:
            ours, theirs = theirs, ours
        self._client_secret = self._server_secret = b""
        try:
            if not ours or not theirs:
                raise BadInput("OpenSSL gave up no traffic secrets: is it 1.1.1 or newer?")
            self._records = Records(cipher[0] if cipher else "", theirs, ours)
        except BadInput as e:
            self.fail("TLS_FAILURE", str(e))
            return
        self.secure = True
        self._tls = None
        self.loop.later(self)
        rest = self._bio_in.read()
        self.loop.raw[: len(rest)] = rest
        self._decrypt(len(rest))

    def _decrypt(self, end: int) -> None:
        """Feed the codec with the records in the first `end` bytes of the raw buffer.

        They begin with this connection's tail, or, where that was longer than nothing, with room
        for it.
        """
        self.last_read = self.loop.now
        loop = self.loop
        records = self._records
        assert records is not None
        if self._tail:
            loop.raw[: len(self._tail)] = self._tail
            self._tail = b""
        try:
            n = records.open_untrusted(loop.raw_view, end, loop.view)
        except RecordError as e:
            self._write(records.alert(e.alert))
            self._records = None  # that was the last one
            self.fail(*self._lost(str(e)))
            return
        used = records.used
        if used < end:
            self._tail = bytes(loop.raw_view[used:end])
        if n:
            try:
                self.codec.feed_untrusted(loop.view[:n])
            except H2Error as error:  # a name of its own: mypyc gives each one type
                self._protocol_error(error)
                return
            loop.later(self)
        if records.over and not self.closed:
            self.fail(*self._lost(records.over))

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
        """Send the first n bytes of the worker's buffer."""
        loop = self.loop
        records = self._records
        assert records is not None
        size = records.seal(loop.buf, loop.view, n, loop.raw_view)
        self._write(loop.raw_view[:size])

    def _flush(self) -> None:
        """Send what OpenSSL wants to say by itself (handshake, alerts)."""
        if self._bio_out.pending:
            self._write(self._bio_out.read())

    def _write(self, data: bytes | memoryview) -> None:
        """Send; what the kernel does not take is kept."""
        if self._out:
            data = self._out + bytes(data)
        try:
            n = self._send(data)
        except BlockingIOError:
            n = 0
        except OSError as e:
            self._out = b""
            self.fail(*self._lost(error_text(e.errno or 0)))
            return
        self._out = bytes(data[n:]) if n < len(data) else b""

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
        records = self._records
        if records is not None and not self._out:
            with contextlib.suppress(OSError):
                self.sock.send(records.alert(CLOSE_NOTIFY))
        self.ready.clear()
        self._out = b""
        self.loop.close(self.sock, self.fd)
        if self.owner is not None:
            self.owner.on_lost(flag, error)


def tls_reason(error: BaseException) -> str:
    """What OpenSSL says, without its source line."""
    reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or ""
    return str(reason).replace("_", " ").lower() or str(error) or repr(error)
