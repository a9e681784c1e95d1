"""Inbound: HBONE from other nodes, plaintext from outside the mesh, to the pod's application."""

from __future__ import annotations

import errno
import socket
from typing import Final

from mesh.errors import BadInput
from mesh.model import SpiffeId
from mesh.ports import INBOUND_HBONE, INBOUND_PLAIN, OUTBOUND, PROBE_PORT
from mesh.wire import baggage, hbone
from mesh.wire.frames import CANCEL, MAX_STREAM_ID, NO_ERROR
from mesh.wire.sink import H2Stream
from ztunnel import ipc
from ztunnel.relay.capture import family_of, normal
from ztunnel.relay.leg import CONNECT_TIMEOUT, error_text, reset_on_close
from ztunnel.relay.link import Link
from ztunnel.relay.pipe import Pipe
from ztunnel.relay.pod import Listener, Pod
from ztunnel.relay.report import Flow
from ztunnel.relay.stream import Stream
from ztunnel.relay.tls import ALPN, Credentials, identity_untrusted
from ztunnel.relay.tunnel import Tunnel

OWN_PORTS: Final = (OUTBOUND, INBOUND_PLAIN, INBOUND_HBONE)
HANDSHAKES: Final = 512  # of one pod at a time: each holds buffers before it has proved anything
POLICY_CHANGED: Final = "connection closed due to policy change"
POLICY_REJECTED: Final = "connection closed due to policy rejection"
SOURCES: Final = 16  # descriptions of a tunnel's source that are kept; there is one, normally
DRAIN_PAUSE: Final = 1.0  # between the two GOAWAYs, for streams that are on their way


class InboundFlow(Flow):
    """An inbound connection; who its source is may have to be asked for."""

    def __init__(
        self,
        pod: Pod,
        src: tuple[str, int],
        dst: tuple[str, int],
        hbone: tuple[str, int] | None,
        identity: SpiffeId | None,
        said: bytes = b"",
        sources: dict[bytes, tuple[ipc.Peer, ipc.Peer]] | None = None,
    ) -> None:
        super().__init__(pod.context.loop.now)
        self.pod = pod
        self.src = src
        self.dst = dst
        self.hbone = hbone
        self.identity = identity
        self.said = said  # the source's baggage
        self.sources = sources  # what earlier connections of one tunnel found out
        pod.context.peer(pod.uid, src[0])  # ask early, the report comes later

    def resolve(self, final: bool) -> ipc.Connection | None:
        """See Flow."""
        if self.conn is not None:
            return self.conn
        source = self.pod.context.peer(self.pod.uid, self.src[0])
        if source is None:
            if not final:
                return None
            source = ipc.Peer()
        self.conn = ipc.Connection(
            pod=self.pod.uid,
            direction="inbound",
            src=self.src,
            dst=self.dst,
            original=self.dst,
            hbone=self.hbone,
            secure=self.identity is not None,
            source=self._source(source),
            destination=self.pod.peer,
        )
        return self.conn

    def _source(self, known: ipc.Peer) -> ipc.Peer:
        if self.sources is None:
            return described(known, self.identity, self.said)
        found = self.sources.get(self.said)
        if found is not None and found[0] is known:
            return found[1]
        if len(self.sources) >= SOURCES:
            self.sources.clear()
        source = described(known, self.identity, self.said)
        self.sources[self.said] = (known, source)
        return source


def described(known: ipc.Peer, identity: SpiffeId | None, said: bytes) -> ipc.Peer:
    """What is known of a peer; its identity is the proved one, gaps are filled by its baggage."""
    proved = str(identity) if identity is not None else ""
    if not proved:
        return without_identity(known)
    if known.workload and known.identity == proved:
        return known
    try:
        pairs = baggage.parse_untrusted(said)
    except BadInput:
        pairs = {}
    return ipc.Peer(
        uid=known.uid,
        workload=known.workload or pairs.get("workload", ""),
        pod=known.pod,
        namespace=identity.namespace if identity is not None else "",
        identity=proved,
        workload_type=pairs.get("type", known.workload_type),
        canonical_service=known.canonical_service or pairs.get(baggage.SERVICE, ""),
        canonical_revision=known.canonical_revision or pairs.get(baggage.VERSION, ""),
        cluster=known.cluster or pairs.get(baggage.CLUSTER, ""),
        region=known.region or pairs.get(baggage.REGION, ""),
        zone=known.zone or pairs.get(baggage.ZONE, ""),
    )


def without_identity(p: ipc.Peer) -> ipc.Peer:
    """A peer that proved nothing, whoever usually is at its address."""
    if not p.identity:
        return p
    return ipc.Peer(
        uid=p.uid,
        workload=p.workload,
        pod=p.pod,
        namespace=p.namespace,
        workload_type=p.workload_type,
        canonical_service=p.canonical_service,
        canonical_revision=p.canonical_revision,
        cluster=p.cluster,
        region=p.region,
        zone=p.zone,
    )


def denied(policy: str, reason: str) -> str:
    """Error text of a refusal."""
    detail = policy or reason
    return f"{POLICY_REJECTED}: {detail}" if detail else POLICY_REJECTED


class ServerStream(Stream):
    """The application's side of one CONNECT."""

    def begin(self, address: tuple[str, int], end: bool) -> None:
        """Connect to the application; bytes that come meanwhile wait."""
        self.fin = end
        code = self.connect(address)
        if code == 0:
            self.on_connected()
            self.settle()
        elif code != errno.EINPROGRESS:
            self.on_connect_failed(code)

    def on_connected(self) -> None:
        """See Leg: answer 200."""
        tunnel = self.tunnel
        assert isinstance(tunnel, ServerTunnel)
        tunnel.answer(self.h2)
        self.reporter.opened(self.flow)

    def on_connect_failed(self, code: int) -> None:
        """See Leg: answer 503."""
        tunnel = self.tunnel
        if isinstance(tunnel, ServerTunnel):
            tunnel.refuse(self.h2, hbone.UNAVAILABLE)
        what = (
            f"no answer in {CONNECT_TIMEOUT:g} s" if code == errno.ETIMEDOUT else error_text(code)
        )
        self.end(True, "CONNECT", f"connection to the application failed: {what}", CANCEL)


class ServerTunnel(Tunnel):
    """An HBONE connection that another node opened to this pod."""

    def __init__(
        self,
        pod: Pod,
        link: Link,
        credentials: Credentials,
        src: tuple[str, int],
        local: tuple[str, int],
    ) -> None:
        super().__init__(pod.context.loop, link, True)
        self.pod = pod
        self.credentials = credentials
        self.src = src
        self.local = local
        self.identity: SpiffeId | None = None
        self._drain_due: float = 0.0
        self._sources: dict[bytes, tuple[ipc.Peer, ipc.Peer]] = {}

    # ---- connection --------------------------------------------------------------------------

    def on_secure(self) -> str:
        """See LinkOwner."""
        try:
            identity = identity_untrusted(self.link.certificate())
        except BadInput as e:
            return str(e)
        if identity.trust_domain != self.credentials.spiffe.trust_domain:
            return (
                f"client {identity} is of another trust domain than"
                f" {self.credentials.spiffe.trust_domain}"
            )
        if self.link.alpn() != ALPN:
            return "the client did not agree on HTTP/2 (ALPN h2)"
        self.identity = identity
        return ""

    def on_lost(self, flag: str, error: str) -> None:
        """See LinkOwner. A connection that never became a tunnel is reported as refused."""
        super().on_lost(flag, error)
        self.pod.tunnels.pop(self, None)
        if self.identity is None and not self.pod.gone:
            flow = InboundFlow(self.pod, self.src, self.local, self.src, None)
            self.pod.context.reporter.closed(flow, flag, error)

    def drain(self) -> None:
        """Ask the client to go elsewhere, at first without refusing what is on its way."""
        if self.link.secure and not self._drain_due:
            self.codec.goaway(NO_ERROR, "", MAX_STREAM_ID)
            self._drain_due = self.loop.now + DRAIN_PAUSE
            self.loop.later(self.link)

    def tick(self) -> None:
        """See Tunnel."""
        super().tick()
        if self._drain_due and self.loop.now >= self._drain_due and not self.lost:
            if self.codec.goaway_sent == MAX_STREAM_ID:
                self.codec.goaway(NO_ERROR)
                self.loop.later(self.link)
            if not self.codec.streams:
                self.link.close_when_written()

    # ---- streams -----------------------------------------------------------------------------

    def answer(self, stream: H2Stream) -> None:
        """200: bytes may flow."""
        said = self.pod.baggage if self.pod.context.settings.response_baggage else b""
        self.codec.respond(stream, hbone.response_block(hbone.OK, said), False)
        self.loop.later(self.link)

    def refuse(self, stream: H2Stream, status: int) -> None:
        """Answer, and want no more of what the client may be sending."""
        if not stream.gone and not self.lost:
            self.codec.respond(stream, hbone.response_block(status, b""), True)
            self.codec.reset(stream, NO_ERROR)
            self.loop.later(self.link)

    def on_request(self, stream: H2Stream, headers: list[tuple[bytes, bytes]], end: bool) -> None:
        """See Sink: one connection to the application."""
        pod = self.pod
        try:
            connect = hbone.connect_untrusted(headers)
        except BadInput as e:
            self.refuse(stream, hbone.BAD_REQUEST)
            self._report_refused(self.local, b"", "-", f"bad request: {e}")
            return
        port = connect.port
        dst = (connect.address, port)
        if port == PROBE_PORT:
            self.refuse(stream, hbone.BAD_REQUEST)
            return
        if connect.address not in pod.addresses or port in OWN_PORTS:
            why = "is a port of the mesh" if port in OWN_PORTS else "is not this pod's"
            self.refuse(stream, hbone.BAD_REQUEST)
            text = f"CONNECT to {hbone.join(connect.address, port)}, which {why}"
            self._report_refused(dst, connect.baggage, "-", text)
            return
        # The address is the one this connection proves; only the port is taken from what it says.
        port_said = hbone.forwarded_port(connect.forwarded, self.src[0])
        client = (self.src[0], port_said or self.src[1])
        flow = InboundFlow(
            pod, client, dst, self.src, self.identity, connect.baggage, self._sources
        )
        decision = pod.judge(self.identity, client[0], dst[0], port)
        for policy in decision.dry_run:
            pod.context.reporter.dry_run(flow, policy)
        if not decision.allowed:
            self.refuse(stream, hbone.UNAUTHORIZED)
            pod.context.reporter.closed(flow, "DENY", denied(decision.policy, decision.reason))
            return
        self._connect_application(stream, flow, end)

    def _connect_application(self, stream: H2Stream, flow: InboundFlow, end: bool) -> None:
        pod = self.pod
        try:
            sock = pod.context.new_socket(pod.ns, family_of(flow.dst[0]), False)
        except OSError as e:
            self.refuse(stream, hbone.UNAVAILABLE)
            pod.context.reporter.closed(flow, "CONNECT", f"no socket in the pod: {e.strerror}")
            return
        pod.capture.impersonate(sock, flow.src)
        app = ServerStream(self.loop, sock, pod.context.reporter, flow)
        app.bind(self, stream)
        pod.begin(flow)
        app.begin(flow.dst, end)

    def _report_refused(self, dst: tuple[str, int], said: bytes, flag: str, error: str) -> None:
        flow = InboundFlow(self.pod, self.src, dst, self.src, self.identity, said)
        self.pod.context.reporter.closed(flow, flag, error)


class HboneListener(Listener):
    """15008 of a pod."""

    def on_accept(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """See Listener."""
        pod = self.pod
        src = (normal(peer[0]), peer[1])
        name = sock.getsockname()
        local = (normal(name[0]), name[1])
        credentials = pod.context.credentials.get(pod.peer.identity)
        if credentials is None or pod.handshakes() >= HANDSHAKES:
            reset_on_close(sock)
            sock.close()
            error = "too many unfinished handshakes" if credentials else "no certificate yet"
            flow = InboundFlow(pod, src, local, src, None)
            pod.context.reporter.closed(flow, "IDENTITY_ERROR", error)
            return
        link = Link(self.loop, sock, credentials.server, True)
        pod.tunnels[ServerTunnel(pod, link, credentials, src, local)] = None
        link.start_server()


class PlainListener(Listener):
    """15006 of a pod: whatever came to it without HBONE."""

    def on_accept(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """See Listener."""
        pod = self.pod
        context = pod.context
        src = (normal(peer[0]), peer[1])
        dst = pod.capture.inbound(sock)
        if dst is not None and dst[1] == PROBE_PORT:
            sock.close()
            return
        flow = InboundFlow(pod, src, dst or (normal(sock.getsockname()[0]), 0), None, None)
        if dst is None or dst[1] in OWN_PORTS or dst[0] not in pod.addresses:
            reset_on_close(sock)
            sock.close()
            context.reporter.closed(flow, "-", "not a captured connection to this pod")
            return
        decision = pod.judge(None, src[0], dst[0], dst[1])
        for policy in decision.dry_run:
            context.reporter.dry_run(flow, policy)
        if not decision.allowed:
            reset_on_close(sock)
            sock.close()
            context.reporter.closed(flow, "DENY", denied(decision.policy, decision.reason))
            return
        try:
            app = context.new_socket(pod.ns, family_of(dst[0]), False)
        except OSError as e:
            reset_on_close(sock)
            sock.close()
            context.reporter.closed(flow, "CONNECT", f"no socket in the pod: {e.strerror}")
            return
        pod.capture.impersonate(app, src)
        pod.begin(flow)
        Pipe(self.loop, context.reporter, flow, sock, app, False).start(dst, [], False)


def judge_again(pod: Pod) -> None:
    """Policies changed: cut what is no longer allowed."""
    for flow in list(pod.flows):
        if not isinstance(flow, InboundFlow) or flow.owner is None:
            continue
        decision = pod.judge(flow.identity, flow.src[0], flow.dst[0], flow.dst[1])
        for policy in decision.dry_run:
            pod.context.reporter.dry_run(flow, policy)
        if not decision.allowed:
            flow.owner.abort("DENY", POLICY_CHANGED)
