"""What the parts of a worker share: loop, reports, credentials, settings, and the questions that
only the control process can answer.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

from mesh.errors import ConfigError
from mesh.ports import PACKET_MARK
from ztunnel import ipc
from ztunnel.relay.loop import Loop
from ztunnel.relay.netns import NetNs
from ztunnel.relay.report import Reporter
from ztunnel.relay.tls import Credentials

SO_MARK: Final = 36  # asm-generic/socket.h
CACHE: Final = 8192  # routes, peers, decisions: cleared when full


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    """A duration: seconds, with or without the letter that Istio's variables carry."""
    text = env.get(name, "")
    if not text:
        return default
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1], 0.0)
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError as e:
        raise ConfigError(f"{name}={text!r}: write seconds, or 90s, 5m, 1h") from e
    if value <= 0:
        raise ConfigError(f"{name}={text!r}: it must be more than 0")
    return value


def _count(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "")
    if not text:
        return default
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{name}={text!r}: write a number of at least 1")
    return int(text)


class Settings:
    """What the operator may change; names as Istio's ztunnel has them where it has them."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.streams: int = _count(env, "POOL_MAX_STREAMS_PER_CONNECTION", 100)
        self.pool_release: float = _seconds(env, "POOL_UNUSED_RELEASE_TIMEOUT", 300.0)
        self.idle: float = _seconds(env, "RELAY_IDLE_TIMEOUT", 3600.0)
        self.half_open: float = _seconds(env, "RELAY_HALF_OPEN_TIMEOUT", 300.0)
        self.keepalive: bool = env.get("KEEPALIVE_ENABLED", "true") != "false"
        self.keepalive_time: int = int(_seconds(env, "KEEPALIVE_TIME", 180.0))
        self.keepalive_interval: int = int(_seconds(env, "KEEPALIVE_INTERVAL", 180.0))
        self.keepalive_retries: int = _count(env, "KEEPALIVE_RETRIES", 9)
        self.mark: int = _count(env, "PACKET_MARK", PACKET_MARK)
        self.response_baggage: bool = env.get("ENABLE_RESPONSE_BAGGAGE", "true") != "false"

    @classmethod
    def of_process(cls) -> Settings:
        """From the environment."""
        return cls(os.environ)


class Asker:
    """Asks the control process; answers come back through the worker's control channel."""

    def ask_route(self, pod: str, address: str, port: int) -> int:
        """Returns the number under which the answer will come."""
        raise NotImplementedError

    def ask_peer(self, pod: str, address: str) -> None:
        """The answer appears in `Context.peers`."""
        raise NotImplementedError


class Context:
    """See the module's text."""

    def __init__(self, loop: Loop, settings: Settings, asker: Asker) -> None:
        self.loop = loop
        self.settings = settings
        self.asker = asker
        self.reporter = Reporter(loop, settings.idle, settings.half_open)
        self.credentials: dict[str, Credentials] = {}
        self.peers: dict[str, ipc.Peer] = {}
        self.peers_asked: dict[str, None] = {}
        self.draining: bool = False
        self._marking: bool = True

    def peer(self, pod: str, address: str) -> ipc.Peer | None:
        """Who is at this address, or None while the control process is being asked."""
        found = self.peers.get(address)
        if found is None and address not in self.peers_asked:
            self.peers_asked[address] = None
            self.asker.ask_peer(pod, address)
        return found

    def answer_peer(self, address: str, peer: ipc.Peer) -> None:
        """Keep an answer."""
        self.peers_asked.pop(address, None)
        if len(self.peers) >= CACHE:
            self.peers.clear()
        self.peers[address] = peer

    def forget(self) -> None:
        """The model changed."""
        self.peers.clear()
        self.peers_asked.clear()

    def tune(self, sock: socket.socket) -> None:
        """TCP_NODELAY and keepalive. Set on a listener, accepted sockets have them too."""
        s = self.settings
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if s.keepalive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, s.keepalive_time)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, s.keepalive_interval)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, s.keepalive_retries)

    def new_socket(self, ns: NetNs, family: int, remote: bool) -> socket.socket:
        """A non-blocking TCP socket inside a pod's namespace. Raises OSError.

        remote: it leaves the pod. One to the pod's own application needs no keepalive: if that
        dies, this very kernel knows.
        """
        ns.enter()
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setblocking(False)
            if self._marking:
                self._mark(sock)
            if remote:
                self.tune(sock)
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            sock.close()
            raise
        return sock

    def _mark(self, sock: socket.socket) -> None:
        """The mark keeps the nftables fallback from capturing what the relay itself sends."""
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, self.settings.mark)
        except PermissionError:
            self._marking = False
