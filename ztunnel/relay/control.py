"""The worker's end of the channel to the control process: what it is told, what it asks."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any, Final

from mesh.errors import BadInput
from ztunnel import ipc
from ztunnel.channel import Channel, ChannelClosed, ChannelFull
from ztunnel.relay.capture import Capture
from ztunnel.relay.client import ClientTunnel
from ztunnel.relay.context import Asker, Context, Settings
from ztunnel.relay.loop import EPOLLIN, EPOLLOUT, EPOLLRDHUP, Handler, Loop
from ztunnel.relay.netns import NetNs
from ztunnel.relay.outbound import Outbound, OutboundListener
from ztunnel.relay.pod import (
    INBOUND_HBONE,
    INBOUND_PLAIN,
    OUTBOUND_V4,
    OUTBOUND_V6,
    Listener,
    Pod,
)
from ztunnel.relay.server import HboneListener, PlainListener, ServerTunnel, judge_again
from ztunnel.relay.tls import Credentials

log = logging.getLogger("ambit.relay")

TUNNEL_TICK: Final = 1.0


class Served:
    """A pod and its outbound side."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.outbound = Outbound(pod)


class Control(Handler):
    """Speaks with the control process; a ticker of the loop."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        settings: Settings,
        captures: dict[int, Capture],
    ) -> None:
        super().__init__()
        self.loop = loop
        self.fd: int = sock.fileno()
        self.channel = Channel(sock)
        self.captures = captures
        self.context = Context(loop, settings, _Asker(self))
        self.served: dict[str, Served] = {}
        self._query: int = 0
        self._routes: dict[int, Served] = {}
        self._peers: dict[int, str] = {}
        self._next_tick: float = loop.now + TUNNEL_TICK
        self._drain_until: float = 0.0
        loop.add(self.fd, self, EPOLLIN | EPOLLRDHUP)
        loop.tickers.append(self)

    # ---- loop --------------------------------------------------------------------------------

    def on_event(self, events: int) -> None:
        """See Handler."""
        try:
            if events & EPOLLOUT:
                self.channel.flush()
                if not self.channel.pending:
                    self.loop.modify(self.fd, EPOLLIN | EPOLLRDHUP)
            for message, fds in self.channel.receive():
                self._on_message(message, fds)
        except ChannelClosed:
            self.loop.stopped = True
        except BadInput as e:
            log.error("the control process and this worker do not understand each other: %s", e)
            self.loop.stopped = True

    def on_turn(self) -> None:
        """See Handler."""

    def on_deadline(self) -> None:
        """See Handler: a tick. Reports, tunnels' health, the end of a drain."""
        reporter = self.context.reporter
        events = reporter.take() + reporter.sweep()
        if events:
            self.send(ipc.Reports(events, self.loop.open_count))
        if self.loop.now >= self._next_tick:
            self._next_tick = self.loop.now + TUNNEL_TICK
            for served in self.served.values():
                for tunnel in list(served.pod.tunnels):
                    tunnel.tick()
        if self._drain_until:
            idle = not reporter.flows and not any(s.pod.tunnels for s in self.served.values())
            if idle or self.loop.now >= self._drain_until:
                self._end_drain()

    def on_crash(self, error: BaseException) -> None:
        """See Handler: the message that failed is lost, the worker goes on."""

    def send(self, message: object) -> None:
        """Send to the control process, or stop when it is gone or does not read."""
        try:
            self.channel.send(message)
        except (ChannelClosed, ChannelFull) as e:
            log.error("%s; this worker ends", e)
            self.loop.stopped = True
            return
        if self.channel.pending:
            self.loop.modify(self.fd, EPOLLIN | EPOLLRDHUP | EPOLLOUT)

    # ---- questions ---------------------------------------------------------------------------

    def ask_route(self, pod: str, address: str, port: int) -> int:
        """See Asker."""
        self._query += 1
        self._routes[self._query] = self.served[pod]
        self.send(ipc.RouteQuery(self._query, pod, address, port))
        return self._query

    def ask_peer(self, pod: str, address: str) -> None:
        """See Asker."""
        self._query += 1
        self._peers[self._query] = address
        self.send(ipc.PeerQuery(self._query, pod, address))

    # ---- messages ----------------------------------------------------------------------------

    def _on_message(self, message: Any, fds: list[int]) -> None:
        if isinstance(message, ipc.PodAdd):
            self._pod_add(message, fds)
            return
        for fd in fds:
            os.close(fd)
        if isinstance(message, ipc.RouteReply):
            served = self._routes.pop(message.query, None)
            if served is not None:
                served.outbound.answer(message.query, message.route)
        elif isinstance(message, ipc.PeerReply):
            address = self._peers.pop(message.query, "")
            if address:
                self.context.answer_peer(address, message.peer)
        elif isinstance(message, ipc.Forget):
            self.context.forget()
            for each in self.served.values():
                each.outbound.forget()
        elif isinstance(message, ipc.DumpQuery):
            self._dump(message.query)
        else:
            self._on_change(message)

    def _on_change(self, message: Any) -> None:
        if isinstance(message, ipc.Policies):
            served = self.served.get(message.uid)
            if served is not None:
                served.pod.set_policies(message.policies)
                judge_again(served.pod)
        elif isinstance(message, ipc.Certificate):
            self._certificate(message)
        elif isinstance(message, ipc.PodDel):
            self._pod_del(message.uid)
        elif isinstance(message, ipc.Drain):
            self._drain(message.seconds)
        else:
            log.error("a message this worker does not know: %s", type(message).__name__)

    def _certificate(self, message: ipc.Certificate) -> None:
        try:
            new = Credentials(message)
        except (BadInput, OSError, ValueError) as e:  # ssl.SSLError is an OSError
            log.error("the certificate of %s cannot be used: %s", message.identity, e)
            return
        old = self.context.credentials.get(message.identity)
        self.context.credentials[message.identity] = new
        if old is not None:
            old.current = False
            for served in self.served.values():
                for tunnel in list(served.pod.tunnels):
                    if isinstance(tunnel, ClientTunnel) and tunnel.credentials is old:
                        tunnel.leave()

    def _pod_add(self, added: ipc.PodAdd, fds: list[int]) -> None:
        if len(fds) != len(added.roles) + 1:
            log.error("pod %s came with %d descriptors, not %d", added.uid, len(fds), 1)
            for fd in fds:
                os.close(fd)
            return
        listeners = [socket.socket(fileno=fd) for fd in fds[1:]]
        known = self.served.get(added.uid)
        if known is not None:
            os.close(fds[0])
            known.pod.describe(added)
            if added.policies is not None:
                known.pod.set_policies(added.policies)
                judge_again(known.pod)
            for old in known.pod.listeners:
                old.stop()
            known.pod.listeners.clear()
            self._listen(known, added, listeners)
            return
        capture = self.captures.get(added.redirect)
        if capture is None:
            log.error(
                "pod %s: a way of redirecting that is not known: %d", added.uid, added.redirect
            )
            capture = next(iter(self.captures.values()))
        served = Served(Pod(self.context, NetNs(fds[0]), added, capture))
        if added.policies is not None:
            served.pod.set_policies(added.policies)
        self.served[added.uid] = served
        self._listen(served, added, listeners)

    def _listen(self, served: Served, added: ipc.PodAdd, socks: list[socket.socket]) -> None:
        pod = served.pod
        for role, sock in zip(added.roles, socks, strict=True):
            if self.context.draining:
                sock.close()
                continue
            listener: Listener | None = None
            if role in (OUTBOUND_V4, OUTBOUND_V6):
                listener = OutboundListener(pod, sock, served.outbound)
            elif role == INBOUND_PLAIN and added.inbound:
                listener = PlainListener(pod, sock)
            elif role == INBOUND_HBONE:
                listener = HboneListener(pod, sock)
            if listener is None:
                sock.close()
            else:
                pod.listeners.append(listener)

    def _pod_del(self, uid: str) -> None:
        served = self.served.pop(uid, None)
        if served is not None:
            served.outbound.close()
            served.pod.close()
            identity = served.pod.peer.identity
            if not any(s.pod.peer.identity == identity for s in self.served.values()):
                self.context.credentials.pop(identity, None)  # no key is kept without its pod
            for query in [q for q, s in self._routes.items() if s is served]:
                del self._routes[query]

    def _dump(self, query: int) -> None:
        found: dict[str, list[tuple[ipc.Connection, int, int]]] = {}
        for uid, served in self.served.items():
            rows = found[uid] = []
            for flow in served.pod.flows:
                conn = flow.resolve(True)
                if conn is not None:
                    rows.append((conn, flow.sent, flow.recv))
        self.send(ipc.DumpReply(query, found))

    # ---- drain -------------------------------------------------------------------------------

    def _drain(self, seconds: float) -> None:
        self.context.draining = True
        self._drain_until = self.loop.now + max(seconds, 0.0)
        for served in self.served.values():
            for listener in served.pod.listeners:
                listener.stop()
            served.pod.listeners.clear()
            for tunnel in list(served.pod.tunnels):
                if isinstance(tunnel, ServerTunnel):
                    tunnel.drain()
                elif isinstance(tunnel, ClientTunnel):
                    tunnel.leave()

    def _end_drain(self) -> None:
        for flow in list(self.context.reporter.flows):
            if flow.owner is not None:
                flow.owner.abort("-", "ztunnel shuts down")
        for served in self.served.values():
            for tunnel in list(served.pod.tunnels):
                tunnel.link.fail("-", "ztunnel shuts down")
        events = self.context.reporter.take()
        if events:
            self.send(ipc.Reports(events, 0))
        self.loop.stopped = True


class _Asker(Asker):
    def __init__(self, control: Control) -> None:
        self._control = control

    def ask_route(self, pod: str, address: str, port: int) -> int:
        return self._control.ask_route(pod, address, port)

    def ask_peer(self, pod: str, address: str) -> None:
        self._control.ask_peer(pod, address)
