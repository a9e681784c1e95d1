"""Signing: workload certificates, and the control plane's own."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from control_plane.ca.root import BACKDATE, SigningCa, key_pem, key_usage, pem
from mesh.model import SpiffeId

SERVER_LIFETIME: Final = datetime.timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long workload certificates live: when nothing is asked for, and at most."""

    default: datetime.timedelta = datetime.timedelta(hours=24)
    maximum: datetime.timedelta = datetime.timedelta(hours=24)

    def choose(self, seconds: int) -> datetime.timedelta:
        """Choose for a request's validity_duration; 0 or less asks for the default."""
        if seconds <= 0:
            return min(self.default, self.maximum)
        # The bound first: any int64 may be asked for.
        limit = self.maximum.total_seconds()
        return datetime.timedelta(seconds=min(float(seconds), limit))


def _sign(
    ca: SigningCa,
    key: ec.EllipticCurvePublicKey,
    names: Iterable[x509.GeneralName],
    lifetime: datetime.timedelta,
    now: datetime.datetime,
) -> x509.Certificate:
    # Renewal is due in the middle of a certificate's life: for a short one the backdating must
    # not move that middle into the past.
    start = now - min(BACKDATE, lifetime / 10)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer_key = ca.key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(min(now + lifetime, ca.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        # Critical because the subject is empty (RFC 5280, 4.2.1.6).
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .sign(ca.key, hashes.SHA256())
    )


def sign_workload(
    ca: SigningCa,
    key: ec.EllipticCurvePublicKey,
    identity: SpiffeId,
    lifetime: datetime.timedelta,
    now: datetime.datetime,
) -> list[str]:
    """Sign a workload certificate; returns the chain as PEM: leaf first, at the end what to trust.

    All roots that count are in the one last element: that is where ztunnels look for them.
    """
    leaf = _sign(ca, key, [x509.UniformResourceIdentifier(str(identity))], lifetime, now)
    return [*(pem(c).decode() for c in (leaf, *ca.chain)), ca.root_pem.decode()]


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """The control plane's own TLS certificate; renewed at half its life."""

    key_pem: bytes
    chain_pem: bytes
    renew_at: datetime.datetime


def sign_server(ca: SigningCa, names: Iterable[str], now: datetime.datetime) -> ServerCertificate:
    """Make a key and a certificate for DNS names and IP addresses."""
    sans: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            sans.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            sans.append(x509.DNSName(name))
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = _sign(ca, key.public_key(), sans, SERVER_LIFETIME, now)
    chain = b"".join(pem(c) for c in (leaf, *ca.chain))
    return ServerCertificate(key_pem(key), chain, now + SERVER_LIFETIME / 2)
