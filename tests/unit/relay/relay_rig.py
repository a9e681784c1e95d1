"""A relay worker under test: real process, real TLS, loopback listeners, a scripted control."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh import compiled
from mesh.model import Authorization
from ztunnel import ipc
from ztunnel.channel import Channel, ChannelClosed

HERE = Path(__file__).parent
REPO = HERE.parents[2]
FORMS = ["pure"] if compiled.library() is None else ["compiled", "pure"]
# For tests that mostly wait: time limits are the same lines in both forms.
ONE_FORM = pytest.mark.parametrize("pure", FORMS[:1], indirect=True)
OUTBOUND, PLAIN, HBONE = 1, 3, 4  # Listener of mesh/pb/zds.proto


def spiffe(account: str, domain: str = "cluster.local") -> str:
    return f"spiffe://{domain}/ns/test/sa/{account}"


class Authority:
    """A root that signs workload certificates."""

    def __init__(self, name: str = "root") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        self.cert = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.PEM)

    def issue(self, identity: str, seconds: float = 3600, roots: bytes = b"") -> ipc.Certificate:
        """A certificate; negative seconds: expired that long ago."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        end = now + datetime.timedelta(seconds=seconds)
        cert = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(end)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]),
                critical=True,
            )
            .sign(self.key, hashes.SHA256())
        )
        return ipc.Certificate(
            identity=identity,
            chain_pem=cert.public_bytes(serialization.Encoding.PEM),
            key_pem=key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            roots_pem=roots or self.pem,
            not_after=end.timestamp(),
        )


def listen(address: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family, backlog=512)


class Worker:
    """One worker process and the control process it believes to have."""

    def __init__(self, tmp: Path, pure: bool, env: dict[str, str] | None = None) -> None:
        ours, theirs = socket.socketpair()
        self.destinations = tmp / f"destinations-{time.monotonic_ns()}.json"
        self._known: dict[str, tuple[str, int]] = {}
        self._write()
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(HERE / "relay_worker.py"),
                str(theirs.fileno()),
            ],
            pass_fds=[theirs.fileno()],
            env={
                **os.environ,
                "PYTHONPATH": str(REPO),
                "AMBIT_PURE": "1" if pure else "0",
                "OPENSSL_CONF": str(REPO / "ztunnel/relay/openssl.cnf"),
                "DESTINATIONS": str(self.destinations),
                **(env or {}),
            },
        )
        theirs.close()
        self.channel = Channel(ours)
        self.events: list[Any] = []
        self.replies: list[Any] = []
        self.queries: list[ipc.RouteQuery] = []
        self.routes: Callable[[ipc.RouteQuery], ipc.Route | None] = lambda q: None
        self.peers: Callable[[ipc.PeerQuery], ipc.Peer | None] = lambda q: ipc.Peer()
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        tmp = self.destinations.with_suffix(".tmp")
        tmp.write_text(json.dumps(self._known))
        tmp.rename(self.destinations)

    def destine(self, listener: socket.socket, to: tuple[str, int]) -> None:
        """What connects to this listener was on its way to `to`."""
        self._known[str(listener.getsockname()[1])] = to
        self._write()

    def _serve(self) -> None:
        while True:
            try:
                select.select([self.channel.fileno()], [], [], 0.5)
                messages = self.channel.receive()
            except (ChannelClosed, OSError, ValueError):
                self.ended.set()
                return
            for message, _ in messages:
                self._answer(message)

    def _answer(self, message: Any) -> None:
        if isinstance(message, ipc.RouteQuery):
            self.queries.append(message)
            route = self.routes(message)
            if route is not None:
                self.send(ipc.RouteReply(message.query, route))
        elif isinstance(message, ipc.PeerQuery):
            peer = self.peers(message)
            if peer is not None:
                self.send(ipc.PeerReply(message.query, peer))
        elif isinstance(message, ipc.Reports):
            self.events.extend(message.events)
        else:
            self.replies.append(message)

    def send(self, message: Any, fds: Iterable[int] = ()) -> None:
        with self._lock, contextlib.suppress(ChannelClosed):  # noticed where it is read
            self.channel.send(message, fds)

    def add_pod(
        self,
        uid: str,
        address: str,
        listeners: dict[int, socket.socket],
        policies: tuple[Authorization, ...] = (),
        identity: str = "",
    ) -> None:
        ns = os.open("/proc/self/ns/net", os.O_RDONLY)
        peer = ipc.Peer(
            uid=uid,
            workload=uid,
            namespace="test",
            identity=identity or spiffe(uid),
            workload_type="deployment",
            canonical_service=uid,
            cluster="Kubernetes",
        )
        self.send(
            ipc.PodAdd(uid, peer, (address,), tuple(listeners), 1),
            [ns, *[s.fileno() for s in listeners.values()]],
        )
        os.close(ns)
        self.send(ipc.Policies(uid, policies))

    def wait(self, found: Callable[[], Any], seconds: float = 10.0) -> Any:
        """What `found` returns, as soon as it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = found()
            if value:
                return value
            time.sleep(0.01)
        raise AssertionError(f"not seen in {seconds} s; events: {self.events[-5:]}")

    def closed(self, direction: str = "outbound") -> list[ipc.Closed]:
        return [
            e for e in self.events if isinstance(e, ipc.Closed) and e.conn.direction == direction
        ]

    def opened(self, direction: str = "outbound") -> list[ipc.Opened]:
        return [
            e for e in self.events if isinstance(e, ipc.Opened) and e.conn.direction == direction
        ]

    def sync(self) -> None:
        """Return when the worker has read everything that was sent to it."""
        query = 1_000_000 + time.monotonic_ns() % 1_000_000_000
        self.send(ipc.DumpQuery(query))
        self.wait(lambda: [r for r in self.replies if r.query == query])
        self.replies = [r for r in self.replies if r.query != query]

    def memory(self) -> int:
        """Resident bytes."""
        with open(f"/proc/{self.process.pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def stop(self) -> None:
        with self._lock:
            self.channel.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the worker outlived its control process") from None
        self._thread.join(2)


def endpoint(
    app: tuple[str, int], tunnel: tuple[str, int], identities: tuple[str, ...], weight: int = 1
) -> ipc.Endpoint:
    authority = f"[{app[0]}]:{app[1]}" if ":" in app[0] else f"{app[0]}:{app[1]}"
    return ipc.Endpoint(
        app, True, tunnel, authority, identities, weight, ipc.Peer(identity=identities[0])
    )


class App:
    """A TCP server in threads; `handle` gets each connection, default: echo until FIN."""

    def __init__(self, handle: Callable[[socket.socket], None] | None = None) -> None:
        self.listener = listen("127.0.0.3")
        self.address: tuple[str, int] = self.listener.getsockname()
        self.handle = handle or echo
        self.accepted = 0
        self.errors: list[Exception] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            sock.settimeout(60)
            threading.Thread(target=self._one, args=(sock,), daemon=True).start()

    def _one(self, sock: socket.socket) -> None:
        with sock:
            try:
                self.handle(sock)
            except OSError as e:
                self.errors.append(e)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


VIP = ("10.96.0.1", 80)


class Mesh:
    """The usual stage: one worker, pods a and b, one outbound listener of a that leads to b."""

    def __init__(self, tmp: Path, pure: bool, env: dict[str, str] | None = None) -> None:
        self.tmp = tmp
        self.pure = pure
        self.ca = Authority()
        self.worker = Worker(tmp, pure, env)
        self.app = App()
        self.out = listen()
        self.plain = listen("127.0.0.3")
        self.hbone = listen("127.0.0.3")
        self.workers = [self.worker]
        w = self.worker
        w.send(self.ca.issue(spiffe("a")))
        w.send(self.ca.issue(spiffe("b")))
        w.add_pod("a", "127.0.0.2", {OUTBOUND: self.out})
        w.add_pod("b", "127.0.0.3", {PLAIN: self.plain, HBONE: self.hbone})
        w.destine(self.out, VIP)
        w.destine(self.plain, self.app.address)
        self.lead((self.to_b(),))
        w.sync()

    def to_b(self, identity: str = "", authority: tuple[str, int] | None = None) -> ipc.Endpoint:
        tunnel: tuple[str, int] = self.hbone.getsockname()
        return endpoint(authority or self.app.address, tunnel, (identity or spiffe("b"),))

    def lead(self, endpoints: tuple[ipc.Endpoint, ...], **other: Any) -> None:
        """From now on connections of a go there."""
        route = ipc.Route(endpoints, ipc.ServiceRef("b", "test", "b.test.svc"), **other)
        self.worker.routes = lambda query: route
        self.worker.send(ipc.Forget())
        self.worker.sync()

    def connect(self, timeout: float = 10) -> socket.socket:
        """As pod a's application, to the service."""
        return socket.create_connection(self.out.getsockname(), timeout)

    def is_refused(self, data: bytes = b"") -> bool:
        """A connection of pod a is reset before anything comes back."""
        return refuses(self.out, data)

    def stop(self) -> None:
        for each in self.workers:
            each.stop()
        self.app.close()
        for sock in (self.out, self.plain, self.hbone):
            sock.close()


def is_reset(sock: socket.socket) -> bool:
    """The connection is reset (not merely ended) before anything arrives on it."""
    try:
        return sock.recv(1) is None
    except ConnectionResetError:
        return True


def refuses(listener: socket.socket, data: bytes = b"") -> bool:
    """A connection to it is reset, maybe before connect() has looked, before anything comes."""
    try:
        with socket.create_connection(listener.getsockname(), 15) as sock:
            sock.sendall(data)
            return is_reset(sock)
    except (ConnectionResetError, BrokenPipeError):
        return True


def read_all(sock: socket.socket) -> bytes:
    out = bytearray()
    while data := sock.recv(1 << 18):
        out += data
    return bytes(out)
