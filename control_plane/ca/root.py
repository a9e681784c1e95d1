"""Signing certificates and the roots they lead to: made, read from PEM, and checked. No I/O."""

from __future__ import annotations

import datetime
import itertools
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from mesh.errors import ConfigError

ROOT_LIFETIME: Final = datetime.timedelta(days=3650)
BACKDATE: Final = datetime.timedelta(minutes=2)  # peers' clocks may be behind ours
CA_CERT: Final = "ca-cert.pem"
CA_KEY: Final = "ca-key.pem"
ROOT_CERT: Final = "root-cert.pem"
CERT_CHAIN: Final = "cert-chain.pem"

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class SigningCa:
    """What signs, and what peers are told to trust.

    chain: certificates between a leaf and the root, the signing one first. root: where it leads
    to. roots: every root that counts, for there are several while one replaces another.
    """

    certificate: x509.Certificate
    key: SigningKey = field(compare=False, repr=False)  # the certificate's, and nobody else's
    chain: tuple[x509.Certificate, ...]
    root: x509.Certificate
    roots: tuple[x509.Certificate, ...]

    @property
    def root_pem(self) -> bytes:
        """What peers must trust: one certificate, or several one after the other."""
        return bundle_pem(self.roots)


class Piece(NamedTuple):
    """PEM text, and what to call it in an error."""

    name: str
    data: bytes


def pem(certificate: x509.Certificate) -> bytes:
    """Encode one certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def bundle_pem(certificates: tuple[x509.Certificate, ...]) -> bytes:
    """Encode several."""
    return b"".join(pem(c) for c in certificates)


def key_pem(key: SigningKey) -> bytes:
    """Encode a private key, unencrypted PKCS#8."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def fingerprint(certificate: x509.Certificate) -> str:
    """Name a certificate by its content."""
    return certificate.fingerprint(hashes.SHA256()).hex()[:32]


def certificates_in(piece: Piece) -> tuple[x509.Certificate, ...]:
    """Read PEM certificates, each once; raises ConfigError when there is none."""
    try:
        return tuple(dict.fromkeys(x509.load_pem_x509_certificates(piece.data)))
    except (ValueError, UnsupportedAlgorithm) as e:
        raise ConfigError(f"{piece.name}: not PEM certificates") from e


def _key_in(piece: Piece) -> SigningKey:
    try:
        key = serialization.load_pem_private_key(piece.data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise ConfigError(f"{piece.name}: not an unencrypted PEM private key") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(f"{piece.name}: neither an EC nor an RSA key")
    return key


def _issued(child: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def read_ca(
    cert: Piece, key: Piece, roots: Piece, chain: Piece | None, now: datetime.datetime
) -> SigningCa:
    """Put a signing CA together from PEM, refusing what could not work; raises ConfigError.

    Of several certificates in `cert` the one of the key signs. `roots` may hold more than the root
    it leads to; of those, expired ones are left out.
    """
    signing_key = _key_in(key)
    candidates = certificates_in(cert)
    public = signing_key.public_key()
    certificate = next((c for c in candidates if c.public_key() == public), None)
    if certificate is None:
        raise ConfigError(f"{key.name} is not the key of {cert.name}: put the matching pair there")
    _check_is_ca(certificate, cert.name)
    trusted = certificates_in(roots)
    between: tuple[x509.Certificate, ...] = ()
    if certificate not in trusted:
        more = certificates_in(chain) if chain is not None and chain.data.strip() else ()
        extra = dict.fromkeys((*candidates, *more))
        between = (certificate, *(c for c in extra if c != certificate and c not in trusted))
    root = _root_of(between[-1] if between else certificate, trusted, cert.name)
    for child, parent in itertools.pairwise((*between, root)):
        if not _issued(child, parent):
            raise _not_issued(cert.name, child, parent)
    for what in (*between, root):
        if not what.not_valid_before_utc <= now <= what.not_valid_after_utc:
            raise ConfigError(
                f"{cert.name}: {what.subject.rfc4514_string() or 'its chain'} is valid from "
                f"{what.not_valid_before_utc:%Y-%m-%d} to {what.not_valid_after_utc:%Y-%m-%d}"
            )
    alive = tuple(c for c in trusted if c == root or now <= c.not_valid_after_utc)
    return SigningCa(certificate, signing_key, between, root, alive)


def _check_is_ca(certificate: x509.Certificate, name: str) -> None:
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_ca = False
    if not is_ca:
        raise ConfigError(f"{name} is not a CA certificate (basicConstraints CA:TRUE)")


def _root_of(
    last: x509.Certificate, trusted: tuple[x509.Certificate, ...], name: str
) -> x509.Certificate:
    """Find the root that the last certificate of a chain leads to."""
    if last in trusted:
        return last
    found = next((root for root in trusted if _issued(last, root)), None)
    if found is None:
        raise _not_issued(name, last, trusted[0])
    return found


def _not_issued(name: str, child: x509.Certificate, parent: x509.Certificate) -> ConfigError:
    return ConfigError(
        f"{name}: {child.subject.rfc4514_string()} is not issued by "
        f"{parent.subject.rfc4514_string()}: {CERT_CHAIN} must lead to a root in {ROOT_CERT}"
    )


def new_root(organization: str, now: datetime.datetime) -> SigningCa:
    """Make a self-signed root.

    The subject names it apart from its predecessor: not every TLS library finds the right one of
    two issuers of the same name.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, f"root {now:%Y-%m-%d %H:%M:%S}"),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return SigningCa(certificate, key, (), certificate, (certificate,))


def key_usage(ca: bool) -> x509.KeyUsage:
    """Build the key usage of a CA, or of a TLS end entity with an EC key."""
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
