"""The client end of HBONE: tunnels to other nodes, the pool they are kept in, and the
application's side of a stream, which may have to be tried again elsewhere.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, cast

from mesh.errors import BadInput
from mesh.wire import hbone
from mesh.wire.frames import CANCEL, NO_ERROR, REFUSED_STREAM, error_name
from mesh.wire.sink import H2Stream
from ztunnel import ipc
from ztunnel.relay.capture import family_of
from ztunnel.relay.link import Link
from ztunnel.relay.pod import Pod
from ztunnel.relay.stream import Stream
from ztunnel.relay.tls import ALPN, Credentials, identity_untrusted
from ztunnel.relay.tunnel import Tunnel

if TYPE_CHECKING:
    from ztunnel.relay.outbound import Dial

# Bytes sent along before the other end has answered: they are kept, to be sent again elsewhere
# if it answers that it did not pass them on. No more is read from the application until then.
EARLY: Final = 64 << 10

# A waypoint's Envoy serves a connection in one thread, and so does all that it sends on from there:
# over one connection, requests of a pod would pass node proxies and waypoint in step, in batches
# that keep one CPU busy at a time. From SHARE streams on there is another one, up to WIDTH in all.
SHARE: Final = 4
WIDTH: Final = 2

PoolKey = tuple[str, tuple[str, ...], tuple[str, int]]


class ClientStream(Stream):
    """The client application's side of one CONNECT."""

    def __init__(self, dial: Dial) -> None:
        super().__init__(dial.pod.context.loop, dial.sock, dial.pod.context.reporter, dial.flow)
        self.dial = dial
        self.answered: bool = False
        self.early: list[bytes] = []
        self.early_size: int = 0
        self.replay: list[bytes] = []  # of `early`, what the present tunnel has not been given
        self.loop.add(self.fd, self)

    def take(self, view: memoryview) -> int:
        """See Stream. Keeps what is read before the answer."""
        if self.answered:
            return self.sock.recv_into(view)
        if self.replay:
            piece = self.replay[0]
            n = min(len(piece), len(view))
            view[:n] = piece[:n]
            if n < len(piece):
                self.replay[0] = piece[n:]
            else:
                self.replay.pop(0)
            return n
        if self.early_size >= EARLY:
            raise BlockingIOError
        n = self.sock.recv_into(view[: EARLY - self.early_size])
        if n:
            self.early.append(bytes(view[:n]))
            self.early_size += n
        return n

    def assign(self, tunnel: ClientTunnel, block: bytes) -> None:
        """Open a stream for it on a tunnel, which may still be connecting."""
        h2 = H2Stream(self)
        self.bind(tunnel, h2)
        self.replay = list(self.early)
        self.flow.sent = 0
        self.eof = False
        tunnel.codec.open(h2, block)
        if self.early_size:
            self.readable = True
        if self.readable:
            tunnel.link.want(self)
        self.loop.later(tunnel.link)

    def on_answer(self, status: int) -> None:
        """The other end connected to the application there, or did not."""
        if status == hbone.OK:
            self.answered = True
            if self.early_size >= EARLY or self.replay:
                # Reading stopped for want of the answer; a replay is never left over here, since
                # an answer to a stream whose bytes are still queued makes no difference to them.
                self.readable = True
            self.reporter.opened(self.flow)
            if self.readable and self.link is not None:
                self.link.want(self)
            return
        name = hbone.STATUS_TEXT.get(status, "")
        error = f"http status: {status} {name}".rstrip()
        if status == hbone.UNAUTHORIZED:
            self.end(True, "DENY", f"{error}: a policy of the destination refused it", CANCEL)
        elif status == hbone.UNAVAILABLE:
            self.retry("CONNECT", f"{error}: the application there could not be connected to")
        else:
            self.end(True, "CONNECT", error, CANCEL)

    def retry(self, flag: str, error: str) -> None:
        """Nobody has seen its bytes: try another endpoint, or give up with this error."""
        self._leave()
        if not self.dial.again(self):
            self.end(True, flag, error, CANCEL)

    def move(self, flag: str, error: str) -> None:
        """The connection takes no more streams and has not seen this one: take another."""
        self._leave()
        if not self.dial.move(self):
            self.end(True, flag, error, CANCEL)

    def _leave(self) -> None:
        """Part from the tunnel without touching the application's socket."""
        tunnel = self.tunnel
        if tunnel is not None:
            self.tunnel = None
            self.link = None
            tunnel.forget(self, 0, CANCEL)

    def on_peer_reset(self, code: int, by_peer: bool) -> None:
        """See Stream."""
        if code == REFUSED_STREAM and by_peer and not self.answered:
            self.move("CONNECT", "the other end refuses more streams")
        elif not self.answered:
            what = f"stream reset before an answer: {error_name(code)}"
            self.end(True, "CONNECT", what, CANCEL)
        else:
            super().on_peer_reset(code, by_peer)

    def on_tunnel_lost(self, flag: str, error: str) -> None:
        """See Stream. Tried again if the other end cannot have passed on any of its bytes."""
        if self.answered:
            super().on_tunnel_lost(flag, error)
            return
        tunnel = cast("ClientTunnel", self.tunnel)
        reached = tunnel.codec.settled
        if reached and self.early_size:
            self.end(True, flag, error, CANCEL)
        else:
            self.retry(flag, error)


class ClientTunnel(Tunnel):
    """A pooled HBONE connection to one address, from one identity to a set of them."""

    def __init__(
        self,
        pod: Pod,
        link: Link,
        credentials: Credentials,
        identities: tuple[str, ...],
        home: list[ClientTunnel],
        limit: int,
    ) -> None:
        super().__init__(pod.context.loop, link, False)
        self.pod = pod
        self.credentials = credentials
        self.identities = identities
        self.home = home
        self.leaving: bool = False  # takes no new streams
        self.unused_since: float = 0.0  # 0: in use
        self.limit: int = limit

    def free(self) -> bool:
        """May a stream be put on it."""
        return (
            not self.leaving
            and not self.lost
            and self.credentials.current
            and len(self.codec.streams) < self.limit
        )

    def on_secure(self) -> str:
        """See LinkOwner."""
        try:
            identity = str(identity_untrusted(self.link.certificate()))
        except BadInput as e:
            return str(e)
        if identity not in self.identities:
            wanted = " or ".join(self.identities) or "nobody"
            return f"identity verification failed: peer is {identity}, expected {wanted}"
        if self.link.alpn() != ALPN:
            return "the server did not agree on HTTP/2 (ALPN h2)"
        return ""

    def on_response(self, stream: H2Stream, headers: list[tuple[bytes, bytes]], end: bool) -> None:
        """See Sink."""
        s = cast(ClientStream, stream.user)
        status = hbone.status_untrusted(headers)
        s.on_answer(status)
        if status == hbone.OK and end and not s.closed:
            s.finish()

    def on_settings(self) -> None:
        """See Sink."""
        self.limit = min(self.pod.context.settings.streams, self.codec.max_streams)

    def on_goaway(self, last: int, code: int, debug: bytes) -> None:
        """See Sink. What the peer has not seen goes on another connection."""
        self.leave()
        text = f"GOAWAY {error_name(code)} {debug[:80].decode('ascii', 'replace')}".rstrip()
        for each in list(self.codec.streams.values()):
            if each.sid > last:
                s = cast(ClientStream, each.user)
                s.move("CONNECT" if code == NO_ERROR else "-", text)

    def on_stream_gone(self) -> None:
        """See Tunnel."""
        if not self.codec.streams:
            self.unused_since = self.loop.now
            if self.leaving or not self.credentials.current:
                self.shut()

    def leave(self) -> None:
        """Take no new streams; close when the last is over."""
        if not self.leaving:
            self.leaving = True
            if self in self.home:
                self.home.remove(self)
            if not self.codec.streams and not self.lost:
                self.shut()

    def tick(self) -> None:
        """See Tunnel."""
        super().tick()
        if self.lost:
            return
        if time.time() >= self.credentials.not_after:
            # Nothing new is carried under an expired certificate; what was let in with a valid
            # one goes on: a rotation never cuts a connection.
            self.leave()
        elif not self.codec.streams:
            unused = self.loop.now - self.unused_since if self.unused_since else 0.0
            if not self.credentials.current or unused >= self.pod.context.settings.pool_release:
                self.leave()
        else:
            self.unused_since = 0.0

    def on_lost(self, flag: str, error: str) -> None:
        """See LinkOwner."""
        self.leaving = True
        if self in self.home:
            self.home.remove(self)
        self.pod.tunnels.pop(self, None)
        super().on_lost(flag, error)


class Pool:
    """The tunnels of one pod."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self._tunnels: dict[PoolKey, list[ClientTunnel]] = {}
        self._limits: dict[PoolKey, int] = {}  # streams that peers allowed before

    def get(self, endpoint: ipc.Endpoint, credentials: Credentials) -> ClientTunnel:
        """A tunnel with room for a stream, made if need be. Raises OSError."""
        key = (credentials.identity, endpoint.identities, endpoint.tunnel_address)
        tunnels = self._tunnels.get(key)
        if tunnels is None:
            tunnels = self._tunnels[key] = []
        best: ClientTunnel | None = None
        for tunnel in tunnels:
            if tunnel.free():
                if best is None or len(tunnel.codec.streams) < len(best.codec.streams):
                    best = tunnel
            elif tunnel.codec.settled:
                self._limits[key] = tunnel.limit
        wide = endpoint.spread and len(tunnels) < WIDTH
        if best is not None and (not wide or len(best.codec.streams) < SHARE):
            return best
        self._prune()
        pod = self.pod
        self._tunnels[key] = tunnels
        sock = pod.context.new_socket(pod.ns, family_of(endpoint.tunnel_address[0]), True)
        link = Link(pod.context.loop, sock, credentials.client, False)
        limit = self._limits.get(key, pod.context.settings.streams)
        tunnel = ClientTunnel(pod, link, credentials, endpoint.identities, tunnels, limit)
        tunnels.append(tunnel)
        pod.tunnels[tunnel] = None
        link.start_client(endpoint.tunnel_address)
        return tunnel

    def _prune(self) -> None:
        """Forget keys without tunnels, now and then."""
        if len(self._tunnels) > 256:
            for key in [k for k, v in self._tunnels.items() if not v]:
                del self._tunnels[key]
                self._limits.pop(key, None)


def trace_ids() -> bytes:
    """Random ids for a traceparent."""
    return os.urandom(24)
