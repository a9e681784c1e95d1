"""The other node, played by the h2 library over blocking TLS: for what our own side never does."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
from relay_rig import Authority, listen

from ztunnel import ipc

Hook = Callable[["Session", h2.events.Event], None]


class Session:
    """One accepted connection."""

    def __init__(self, sock: ssl.SSLSocket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.closing = False
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.lock = threading.Lock()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            self.sock.sendall(data)


class Peer:
    """Accepts HBONE as `certificate` says and lets `hook` answer the events."""

    def __init__(
        self,
        ca: Authority,
        certificate: ipc.Certificate,
        hook: Hook,
        settings: dict[int, int] | None = None,
    ) -> None:
        self.listener = listen("127.0.0.3")
        self.address: tuple[str, int] = self.listener.getsockname()
        self.hook = hook
        self.settings = settings or {}
        self.sessions: list[Session] = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.load_verify_locations(cadata=ca.pem.decode())
        self.context.set_alpn_protocols(["h2"])
        with tempfile.NamedTemporaryFile() as file:
            file.write(certificate.chain_pem + certificate.key_pem)
            file.flush()
            self.context.load_cert_chain(file.name)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._session, args=(raw,), daemon=True).start()

    def _session(self, raw: socket.socket) -> None:
        with contextlib.suppress(OSError), self.context.wrap_socket(raw, server_side=True) as tls:
            session = Session(tls, len(self.sessions))
            self.sessions.append(session)
            session.h2.initiate_connection()
            if self.settings:
                session.h2.update_settings(self.settings)
            session.flush()
            while not session.closing and (data := tls.recv(65536)):
                for event in session.h2.receive_data(data):
                    self.hook(session, event)
                session.flush()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def echo(session: Session, event: h2.events.Event) -> None:
    """The usual server: 200, then everything back."""
    if isinstance(event, h2.events.RequestReceived):
        session.h2.send_headers(event.stream_id, [(":status", "200")])
    elif isinstance(event, h2.events.DataReceived):
        session.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        session.h2.send_data(event.stream_id, event.data)
    elif isinstance(event, h2.events.StreamEnded):
        session.h2.end_stream(event.stream_id)
