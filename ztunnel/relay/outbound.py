"""Outbound: what the pod's applications connect to, captured, routed, tunnelled or passed on."""

from __future__ import annotations

import errno
import random
import socket
from typing import Final

from mesh.ports import INBOUND_HBONE, INBOUND_PLAIN, OUTBOUND, PROBE_V4, PROBE_V6
from mesh.wire import hbone
from mesh.wire.frames import CANCEL
from ztunnel import ipc
from ztunnel.relay.capture import family_of, normal
from ztunnel.relay.client import ClientStream, Pool, trace_ids
from ztunnel.relay.context import CACHE
from ztunnel.relay.leg import CONNECT_TIMEOUT, error_text, reset_on_close
from ztunnel.relay.loop import Handler
from ztunnel.relay.pipe import Pipe
from ztunnel.relay.pod import Listener, Pod
from ztunnel.relay.report import Flow

ROUTE_WAIT: Final = 5.0  # seconds for the control process to know where something goes
WAITING: Final = 4096  # connections of one pod that wait for that
RETRIES: Final = 1  # other endpoints tried
MOVES: Final = 3  # connections that may turn a stream away unseen

_LOOP_PORTS: Final = (OUTBOUND, INBOUND_PLAIN)
_PROBES: Final = (PROBE_V4, PROBE_V6)
_NOBODY: Final = ipc.Peer()
_LOCAL: Final = ("127.0.0.1", "::1")


class Dial:
    """One captured connection on its way to an endpoint."""

    def __init__(
        self, outbound: Outbound, sock: socket.socket, client: tuple[str, int], to: tuple[str, int]
    ) -> None:
        self.outbound = outbound
        self.pod = outbound.pod
        self.sock = sock
        self.client = client
        self.original = to
        self.flow = Flow(outbound.pod.context.loop.now)
        self.route = ipc.Route()
        self.endpoint: ipc.Endpoint | None = None
        self._tried: list[ipc.Endpoint] = []
        self._moves: int = 0

    # ---- the first try -----------------------------------------------------------------------

    def go(self, route: ipc.Route) -> None:
        """The route is known."""
        self.route = route
        if route.error:
            self.refuse(route.flag, route.error)
        elif route.passthrough:
            self._describe(self.original, None, _NOBODY)
            self.pod.begin(self.flow)
            self._pipe(self.original, [], False)
        else:
            endpoint = self._pick()
            if endpoint is None:
                self.refuse("-", "no healthy upstream")
                return
            self.pod.begin(self.flow)
            self._dial(endpoint, None)

    def refuse(self, flag: str, error: str) -> None:
        """Reset the client and report."""
        reset_on_close(self.sock)
        self.sock.close()
        if self.flow.conn is None:
            self._describe(self.original, None, _NOBODY)
        self.pod.context.reporter.closed(self.flow, flag, error)

    def _pick(self) -> ipc.Endpoint | None:
        """By weight, at random, among those not tried yet."""
        choice = [e for e in self.route.endpoints if e not in self._tried]
        if not choice:
            return None
        if len(choice) == 1:
            return choice[0]
        weights = [e.weight for e in choice]
        if sum(weights) <= 0:
            return random.choice(choice)
        return random.choices(choice, weights)[0]

    def _describe(
        self, dst: tuple[str, int], tunnel: tuple[str, int] | None, peer: ipc.Peer
    ) -> None:
        self.flow.conn = ipc.Connection(
            pod=self.pod.uid,
            direction="outbound",
            src=self.client,
            dst=dst,
            original=self.original,
            hbone=tunnel,
            secure=tunnel is not None,
            source=self.pod.peer,
            destination=peer,
            service=self.route.service,
        )

    def _dial(self, endpoint: ipc.Endpoint, stream: ClientStream | None) -> None:
        """Go to an endpoint. stream: the client's side, when it was tried elsewhere before."""
        self.endpoint = endpoint
        self._tried.append(endpoint)
        if endpoint.hbone:
            self._describe(endpoint.address, endpoint.tunnel_address, endpoint.peer)
            self._tunnel(endpoint, stream or ClientStream(self))
            return
        self._describe(endpoint.address, None, endpoint.peer)
        if stream is None:
            self._pipe(endpoint.address, [], False)
        else:
            stream.closed = True  # its socket lives on in the pipe
            self.pod.context.loop.remove(stream.fd)
            self._pipe(endpoint.address, stream.early, stream.eof)

    def _tunnel(self, endpoint: ipc.Endpoint, stream: ClientStream) -> None:
        pod = self.pod
        credentials = pod.context.credentials.get(pod.peer.identity)
        if credentials is None:
            text = f"no certificate for {pod.peer.identity} yet; see the certificates in `ambit`"
            stream.end(True, "IDENTITY_ERROR", text, CANCEL)
            return
        try:
            tunnel = self.outbound.pool.get(endpoint, credentials)
        except OSError as e:
            stream.retry("CONNECT", f"connection failed: {e.strerror}")
            return
        if tunnel.lost:  # refused at once
            stream.retry("CONNECT", f"connection to {hbone.join(*endpoint.tunnel_address)} failed")
            return
        prefix = self.outbound.prefix(endpoint.authority)
        service = self.route.service
        host = service.hostname if service is not None else ""
        stream.assign(tunnel, hbone.request_block(prefix, self.client, host, trace_ids()))

    def _pipe(self, address: tuple[str, int], early: list[bytes], eof: bool) -> None:
        pod = self.pod
        try:
            far = pod.context.new_socket(pod.ns, family_of(address[0]), True)
        except OSError as e:
            self.refuse("CONNECT", f"no socket in the pod: {e.strerror}")
            return
        self.flow.sent = sum([len(p) for p in early])
        OutboundPipe(self, far).start(address, early, eof)

    # ---- further tries -----------------------------------------------------------------------

    def again(self, stream: ClientStream) -> bool:
        """An endpoint failed before any byte was passed on: try another. False: none is left."""
        if len(self._tried) > RETRIES or self.route.service is None or self.pod.gone:
            return False
        endpoint = self._pick()
        if endpoint is None:
            return False
        self._dial(endpoint, stream)
        return True

    def move(self, stream: ClientStream) -> bool:
        """The same endpoint over another connection."""
        self._moves += 1
        if self._moves > MOVES or self.endpoint is None or self.pod.gone:
            return False
        self._tunnel(self.endpoint, stream)
        return True

    def pipe_again(self) -> bool:
        """As `again`, after a plain connect failed; the client's socket is still unwatched."""
        if len(self._tried) > RETRIES or self.route.service is None or self.pod.gone:
            return False
        endpoint = self._pick()
        if endpoint is None:
            return False
        self._dial(endpoint, None)
        return True


class OutboundPipe(Pipe):
    """Plain TCP to an endpoint or to where the client asked."""

    def __init__(self, dial: Dial, far: socket.socket) -> None:
        context = dial.pod.context
        super().__init__(context.loop, context.reporter, dial.flow, dial.sock, far, True)
        self.dial = dial

    def on_connect_failed(self, code: int) -> None:
        """See Pipe."""
        if not self.far.pending_size and not self.near.eof and self.dial.outbound.may_retry:
            self.far.close(False)
            self.done = True
            if self.dial.pipe_again():
                return
            self.done = False
        what = (
            f"no answer in {CONNECT_TIMEOUT:g} s" if code == errno.ETIMEDOUT else error_text(code)
        )
        to = hbone.join(*(self.dial.flow.conn.dst if self.dial.flow.conn else self.dial.original))
        self.end(True, "CONNECT", f"connection to {to} failed: {what}")


class RouteWait(Handler):
    """Connections to one destination that wait for its route."""

    def __init__(self, outbound: Outbound, key: tuple[str, int]) -> None:
        super().__init__()
        self.outbound = outbound
        self.key = key
        self.dials: list[Dial] = []

    def on_event(self, events: int) -> None:
        """See Handler: it has no descriptor."""

    def on_turn(self) -> None:
        """See Handler."""

    def on_deadline(self) -> None:
        """See Handler."""
        self.outbound.give_up(self, "timed out waiting for workload from xds")

    def on_crash(self, error: BaseException) -> None:
        """See Handler."""
        self.outbound.give_up(self, f"internal error: {error!r}")


class Outbound:
    """The outbound side of a pod."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.pool = Pool(pod)
        self.may_retry: bool = True
        self._routes: dict[tuple[str, int], ipc.Route] = {}
        self._waits: dict[int, RouteWait] = {}
        self._by_key: dict[tuple[str, int], RouteWait] = {}
        self._waiting: int = 0
        self._prefixes: dict[str, bytes] = {}

    def prefix(self, authority: str) -> bytes:
        """The part of a request's headers that is the same for one authority."""
        found = self._prefixes.get(authority)
        if found is None:
            if len(self._prefixes) >= CACHE:
                self._prefixes.clear()
            found = hbone.request_prefix(authority, self.pod.baggage)
            self._prefixes[authority] = found
        return found

    def forget(self) -> None:
        """The model changed."""
        self._routes.clear()
        self._prefixes.clear()

    def accept(self, sock: socket.socket, client: tuple[str, int]) -> None:
        """A captured connection. Raises OSError."""
        pod = self.pod
        to = pod.capture.outbound(sock)
        if to is not None and to[0] in _PROBES:
            sock.close()
            return
        dial = Dial(self, sock, client, to or (client[0], 0))
        if to is None:
            dial.refuse("-", "not a captured connection: it has no original destination")
        elif self._is_loop(to):
            dial.refuse("-", f"a connection to ztunnel itself: {hbone.join(*to)}")
        else:
            route = self._routes.get(to)
            if route is not None:
                dial.go(route)
            else:
                self._ask(dial)

    def _is_loop(self, to: tuple[str, int]) -> bool:
        ours = to[0] in self.pod.addresses or to[0] in _LOCAL
        return ours and (to[1] in _LOOP_PORTS or to[1] == INBOUND_HBONE)

    def _ask(self, dial: Dial) -> None:
        if self._waiting >= WAITING:
            dial.refuse("-", f"{WAITING} connections are waiting for routes already")
            return
        context = self.pod.context
        wait = self._by_key.get(dial.original)
        if wait is None:
            wait = RouteWait(self, dial.original)
            self._by_key[dial.original] = wait
            query = context.asker.ask_route(self.pod.uid, dial.original[0], dial.original[1])
            self._waits[query] = wait
            context.loop.set_deadline(wait, ROUTE_WAIT)
        wait.dials.append(dial)
        self._waiting += 1

    def answer(self, query: int, route: ipc.Route) -> bool:
        """A route came. False: it was not asked for here."""
        wait = self._waits.pop(query, None)
        if wait is None:
            return False
        if self._by_key.get(wait.key) is wait:
            del self._by_key[wait.key]
        if len(self._routes) >= CACHE:
            self._routes.clear()
        self._routes[wait.key] = route
        self.pod.context.loop.clear_deadline(wait)
        self._waiting -= len(wait.dials)
        for dial in wait.dials:
            dial.go(route)
        wait.dials.clear()
        return True

    def give_up(self, wait: RouteWait, error: str) -> None:
        """Refuse what waits; an answer that comes later is kept for others."""
        if self._by_key.get(wait.key) is wait:
            del self._by_key[wait.key]
        self._waiting -= len(wait.dials)
        for dial in wait.dials:
            dial.refuse("-", error)
        wait.dials.clear()

    def close(self) -> None:
        """The pod is gone."""
        self.may_retry = False
        for wait in list(self._by_key.values()):
            self.pod.context.loop.clear_deadline(wait)
            self.give_up(wait, "the pod was deleted")


class OutboundListener(Listener):
    """15001 of a pod."""

    def __init__(self, pod: Pod, sock: socket.socket, outbound: Outbound) -> None:
        super().__init__(pod, sock)
        self.outbound = outbound

    def on_accept(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """See Listener. The client's own address is one of the pod's, not the loopback's."""
        address = normal(peer[0])
        if address in _LOCAL:
            address = self.pod.address_like(address)
        self.outbound.accept(sock, (address, peer[1]))
