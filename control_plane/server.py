"""The TLS gRPC server that xDS and CA share."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Collection
from typing import Final

import grpc
from cryptography import x509

from control_plane.ca.authority import ServerCertificate, sign_server
from control_plane.ca.current import CurrentCa
from mesh.errors import ConfigError

Clock = Callable[[], datetime.datetime]

_OPTIONS: Final = (
    # The largest request is a reconnecting proxy's list of all versions it has.
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 1000),
    # Proxies that vanished without a word are found within 40 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A token is checked when a stream opens: streams end, so that it is checked again.
    # Reconnecting costs nothing that is known already.
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 10_000),
    # A second server on the same port must fail, not share it.
    ("grpc.so_reuseport", 0),
)


class ServingCertificate:
    """The server's certificate, made anew when half its life is over or another CA signs."""

    def __init__(self, ca: CurrentCa, sans: Collection[str], clock: Clock) -> None:
        self._ca = ca
        self._sans = sans
        self._clock = clock
        self._lock = threading.Lock()  # gRPC asks from its own threads
        self._current: ServerCertificate | None = None
        self._signer: x509.Certificate | None = None

    def _renewed(self) -> ServerCertificate | None:
        """Return a new certificate when one is due."""
        with self._lock:
            now, ca = self._clock(), self._ca.ca
            same = self._signer == ca.certificate
            if same and self._current is not None and now < self._current.renew_at:
                return None
            self._current, self._signer = sign_server(ca, self._sans, now), ca.certificate
            return self._current

    def _configuration(self) -> grpc.ServerCertificateConfiguration | None:
        new = self._renewed()
        if new is None:
            return None
        return grpc.ssl_server_certificate_configuration([(new.key_pem, new.chain_pem)])

    def credentials(self) -> grpc.ServerCredentials:
        """Build credentials that ask for a newer certificate at every handshake."""
        # None from the second argument means "no newer one", which the stubs do not know.
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),  # type: ignore[arg-type]
            self._configuration,  # type: ignore[arg-type]
            require_client_authentication=False,
        )


def make_server() -> grpc.aio.Server:
    """Make a server without services or ports."""
    return grpc.aio.server(options=list(_OPTIONS))


def add_port(
    server: grpc.aio.Server, listen: tuple[str, int], credentials: grpc.ServerCredentials
) -> int:
    """Bind; returns the port. Raises ConfigError when the address cannot be had."""
    host, port = listen
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return server.add_secure_port(address, credentials)
    except RuntimeError as e:
        raise ConfigError(
            f"--listen {address}: cannot be bound; is another control plane running,"
            " or is the address not this machine's?"
        ) from e
