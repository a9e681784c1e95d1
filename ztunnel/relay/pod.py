"""A pod as a worker serves it: its namespace, listeners, policies, and what is open."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

from mesh.authz import Decision, PolicySet, Subject
from mesh.model import Authorization, SpiffeId
from mesh.wire import baggage
from ztunnel import ipc
from ztunnel.relay.capture import Capture
from ztunnel.relay.context import CACHE, Context
from ztunnel.relay.loop import EPOLLIN, Handler
from ztunnel.relay.netns import NetNs
from ztunnel.relay.report import Flow
from ztunnel.relay.tunnel import Tunnel

ACCEPTS: Final = 32  # connections of one listener per turn; then others have theirs

# Listener roles, `Listener` of mesh/pb/zds.proto.
OUTBOUND_V4: Final = 1
OUTBOUND_V6: Final = 2
INBOUND_PLAIN: Final = 3
INBOUND_HBONE: Final = 4

_NO_POLICIES: Final = Decision(False, "", "the policies of this pod are not known yet")


class Pod:
    """See the module's text."""

    def __init__(self, context: Context, ns: NetNs, added: ipc.PodAdd, capture: Capture) -> None:
        self.context = context
        self.ns = ns
        self.uid: str = added.uid
        self.peer: ipc.Peer = added.peer
        self.own: tuple[str, ...] = added.addresses
        self.addresses: frozenset[str] = frozenset(added.addresses)
        self.capture = capture
        self.gone: bool = False
        self.listeners: list[Listener] = []
        self.flows: dict[Flow, None] = {}
        self.tunnels: dict[Tunnel, None] = {}
        self._policies: PolicySet | None = None
        self._decisions: dict[tuple[SpiffeId | None, str, str, int], Decision] = {}
        self.baggage: bytes = b""
        self.describe(added)

    def describe(self, added: ipc.PodAdd) -> None:
        """Take over what is known of it."""
        p = added.peer
        self.peer = p
        self.own = added.addresses
        self.addresses = frozenset(added.addresses)
        self.baggage = baggage.build(
            p.cluster,
            p.namespace,
            p.workload_type,
            p.workload,
            p.canonical_service,
            p.canonical_revision,
            p.region,
            p.zone,
        )

    def set_policies(self, policies: Iterable[Authorization]) -> None:
        """Replace its effective policies; the caller judges again what is open."""
        self._policies = PolicySet(policies)
        self._decisions.clear()

    def judge(self, identity: SpiffeId | None, src: str, dst: str, port: int) -> Decision:
        """Decide one inbound connection. Refused until the policies are known."""
        if self._policies is None:
            return _NO_POLICIES
        key = (identity, src, dst, port)
        decision = self._decisions.get(key)
        if decision is None:
            if len(self._decisions) >= CACHE:
                self._decisions.clear()
            decision = self._policies.judge(Subject(identity, src, dst, port))
            self._decisions[key] = decision
        return decision

    def begin(self, flow: Flow) -> None:
        """A connection of this pod."""
        self.flows[flow] = None
        flow.home = self.flows
        self.context.reporter.add(flow)

    def address_like(self, address: str) -> str:
        """The pod's own address of the same family, if it has one."""
        v6 = ":" in address
        for own in self.own:
            if (":" in own) == v6:
                return own
        return address

    def handshakes(self) -> int:
        """How many inbound connections have not proved who they are."""
        if len(self.tunnels) < 64:
            return 0  # not worth counting
        return sum(1 for t in self.tunnels if not t.link.secure)

    def close(self) -> None:
        """Close everything at once."""
        self.gone = True
        for listener in self.listeners:
            listener.stop()
        self.listeners.clear()
        for flow in list(self.flows):
            if flow.owner is not None:
                flow.owner.abort("-", "the pod was deleted")
        for tunnel in list(self.tunnels):
            tunnel.link.fail("-", "the pod was deleted")
        self.ns.close()


class Listener(Handler):
    """Accepts; subclasses know what for."""

    def __init__(self, pod: Pod, sock: socket.socket) -> None:
        super().__init__()
        self.pod = pod
        self.context = pod.context
        self.loop = pod.context.loop
        self.sock = sock
        self.fd: int = sock.fileno()
        self.stopped: bool = False
        sock.setblocking(False)
        self.context.tune(sock)
        self.loop.add(self.fd, self, EPOLLIN)

    def on_accept(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """A connection, non-blocking. May raise OSError: it is then closed."""
        raise NotImplementedError

    def on_event(self, events: int) -> None:
        """See Handler. Level-triggered: what is left comes again next turn."""
        for _ in range(ACCEPTS):
            if self.stopped:
                return
            try:
                sock, address = self.sock.accept()
            except BlockingIOError:
                return
            except OSError:
                return  # the connection is gone again, or no descriptors: the next turn tries
            try:
                sock.setblocking(False)
                self.on_accept(sock, (address[0], address[1]))
            except OSError:
                sock.close()

    def on_turn(self) -> None:
        """See Handler."""

    def on_deadline(self) -> None:
        """See Handler."""

    def on_crash(self, error: BaseException) -> None:
        """See Handler: one connection could not be taken; the listener goes on."""

    def stop(self) -> None:
        """Take no more. The agent holds the same listener: nobody is refused by this."""
        if not self.stopped:
            self.stopped = True
            self.loop.remove(self.fd)
            self.sock.close()
