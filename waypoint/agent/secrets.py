"""What Envoy is given by SDS: its certificate with its key, and the roots of its peers. No I/O."""

from __future__ import annotations

import hashlib
from typing import Final

from envoy.extensions.transport_sockets.tls.v3 import secret_pb2

from mesh.ca.held import Certificate
from mesh.xds.delta import Request, Resource, Response

SECRET: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
OWN: Final = "default"
ROOTS: Final = "ROOTCA"

Secrets = dict[str, Resource]


def secrets(certificate: Certificate) -> Secrets:
    """Build both secrets; their versions change with their content alone."""
    own, roots = secret_pb2.Secret(name=OWN), secret_pb2.Secret(name=ROOTS)
    own.tls_certificate.certificate_chain.inline_bytes = certificate.chain_pem
    own.tls_certificate.private_key.inline_bytes = certificate.key_pem
    roots.validation_context.trusted_ca.inline_bytes = certificate.roots_pem
    made: Secrets = {}
    for secret in (own, roots):
        payload = secret.SerializeToString(deterministic=True)
        version = hashlib.sha256(payload).hexdigest()[:16]
        made[secret.name] = Resource(secret.name, version, SECRET, payload)
    return made


class SecretStream:
    """One stream of Envoy that asks for secrets. Before there are any, it waits."""

    def __init__(self) -> None:
        self._wanted: dict[str, str] = {}  # version that Envoy has, "" for none
        self._nonce = 0
        self.error = ""  # why Envoy refused the newest

    def request(self, request: Request, known: Secrets) -> Response | None:
        """Take what Envoy says; returns what to answer."""
        if request.nonce == str(self._nonce):
            self.error = request.error
        for name in request.unsubscribe:
            self._wanted.pop(name, None)
        for name in request.subscribe:
            self._wanted[name] = request.initial_versions.get(name, "")
        unknown = tuple(n for n in request.subscribe if known and n not in known)
        return self._answer(known, unknown)

    def changed(self, known: Secrets) -> Response | None:
        """Take newer secrets; returns what to send."""
        return self._answer(known, ())

    def _answer(self, known: Secrets, unknown: tuple[str, ...]) -> Response | None:
        due = [
            known[n] for n, has in self._wanted.items() if n in known and known[n].version != has
        ]
        if not due and not unknown:
            return None
        for resource in due:
            self._wanted[resource.name] = resource.version
        self._nonce += 1
        return Response(SECRET, str(self._nonce), tuple(due), unknown)
