"""TLS contexts of an identity, and what a peer's certificate proves."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Final

from mesh.errors import BadInput
from mesh.model import SpiffeId
from ztunnel import ipc

ALPN: Final = "h2"
_CLIENT_SECRET: Final = b"CLIENT_TRAFFIC_SECRET_0"
_SERVER_SECRET: Final = b"SERVER_TRAFFIC_SECRET_0"
_MOST: Final = 64 << 10  # a pipe's size: what there can be to read at once


class SecretTap:
    """Where OpenSSL says the traffic secrets of a handshake, for `mesh.wire.records`.

    OpenSSL gives them up through its key log alone, and Python's ssl module writes that to a
    path; the path is a pipe that ends in this very process. A handshake's lines are taken right
    after the call that made them, by the one thread there is, so that they are this handshake's.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.path: str = f"/proc/self/fd/{self._write}"

    def take(self) -> tuple[bytes, bytes]:
        """The client's and the server's secret, b"" for what the last step did not bring."""
        try:
            text = os.read(self._read, _MOST)
        except BlockingIOError:
            return b"", b""
        client = server = b""
        for line in text.splitlines():
            fields = line.split(b" ")  # label, client random, secret
            if len(fields) == 3 and fields[0] == _CLIENT_SECRET:
                client = bytes.fromhex(fields[2].decode("ascii"))
            elif len(fields) == 3 and fields[0] == _SERVER_SECRET:
                server = bytes.fromhex(fields[2].decode("ascii"))
        return client, server


SECRETS: Final = SecretTap()  # of this worker


class Credentials:
    """One certificate of an identity, ready to be used at both ends of a tunnel."""

    def __init__(self, certificate: ipc.Certificate) -> None:
        self.identity: str = certificate.identity
        self.spiffe = SpiffeId.parse_untrusted(certificate.identity)
        self.not_after: float = certificate.not_after
        self.current: bool = True  # False: a newer one is there; no new use
        self.client = _context(certificate, False)
        self.server = _context(certificate, True)


def _context(certificate: ipc.Certificate, server: bool) -> ssl.SSLContext:
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    ctx.minimum_version = ssl.TLSVersion.TLSv1_3
    ctx.check_hostname = False  # identity is the SPIFFE ID, checked by the caller
    ctx.verify_mode = ssl.CERT_REQUIRED
    ctx.load_verify_locations(cadata=certificate.roots_pem.decode("ascii"))
    ctx.set_alpn_protocols([ALPN])
    ctx.options |= ssl.OP_NO_TICKET
    ctx.keylog_filename = SECRETS.path
    if server:
        ctx.num_tickets = 0
    with _Secret(certificate.chain_pem) as chain, _Secret(certificate.key_pem) as key:
        ctx.load_cert_chain(chain, key)
    return ctx


class _Secret:
    """A file that only this process sees, for an API that takes only paths."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.fd = -1

    def __enter__(self) -> str:
        self.fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
        os.write(self.fd, self.content)
        return f"/proc/self/fd/{self.fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def identity_untrusted(certificate: Mapping[str, object]) -> SpiffeId:
    """The one SPIFFE ID of a verified certificate (as ssl.getpeercert). Raises BadInput."""
    names = certificate.get("subjectAltName", ())
    uris = [v for k, v in names if k == "URI"] if isinstance(names, tuple) else []
    if len(uris) != 1:
        raise BadInput(f"the peer's certificate has {len(uris)} URI names, not one SPIFFE ID")
    return SpiffeId.parse_untrusted(uris[0])
