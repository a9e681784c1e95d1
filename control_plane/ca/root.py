"""The signing certificate: made once and kept in the data folder, or plugged in by the operator."""

from __future__ import annotations

import datetime
import itertools
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from mesh.errors import ConfigError

log = logging.getLogger(__name__)

ROOT_LIFETIME: Final = datetime.timedelta(days=3650)
BACKDATE: Final = datetime.timedelta(minutes=2)  # peers' clocks may be behind ours
ROOT_CERT: Final = "root-cert.pem"
_ROOT_KEY: Final = "root-key.pem"

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class SigningCa:
    """What signs. `chain`: certificates between a leaf and the root, the signing one first."""

    certificate: x509.Certificate
    key: SigningKey
    chain: tuple[x509.Certificate, ...]
    root: x509.Certificate

    @property
    def root_pem(self) -> bytes:
        """What peers must trust."""
        return pem(self.root)


def pem(certificate: x509.Certificate) -> bytes:
    """Encode one certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: SigningKey) -> bytes:
    """Encode a private key, unencrypted PKCS#8."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def write_atomic(path: Path, data: bytes, mode: int) -> None:
    """Replace a file as a whole, on disk before it is seen; never readable with a wider mode."""
    tmp = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        tmp.rename(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from e


def _load_certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except (ValueError, UnsupportedAlgorithm) as e:
        raise ConfigError(f"{path}: not PEM certificates") from e


def _load_key(path: Path) -> SigningKey:
    if path.exists() and path.stat().st_mode & 0o077:
        log.warning("%s was readable by others; set to 0600", path)
        path.chmod(0o600)
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise ConfigError(f"{path}: not an unencrypted PEM private key") from e
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(f"{path}: neither an EC nor an RSA key")
    return key


def _check(ca: SigningCa, cert_path: Path, key_path: Path, now: datetime.datetime) -> None:
    """Refuse a signing certificate that could not work, saying why."""
    cert = ca.certificate
    if cert.public_key() != ca.key.public_key():
        raise ConfigError(f"{key_path} is not the key of {cert_path}: put the matching pair there")
    try:
        is_ca = cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_ca = False
    if not is_ca:
        raise ConfigError(f"{cert_path} is not a CA certificate (basicConstraints CA:TRUE)")
    for what in (*ca.chain, ca.root):
        if not what.not_valid_before_utc <= now <= what.not_valid_after_utc:
            raise ConfigError(
                f"{cert_path}: {what.subject.rfc4514_string() or 'its chain'} is valid from "
                f"{what.not_valid_before_utc:%Y-%m-%d} to {what.not_valid_after_utc:%Y-%m-%d}"
            )
    path = [*ca.chain, ca.root]
    for child, parent in itertools.pairwise(path):
        try:
            child.verify_directly_issued_by(parent)
        except (InvalidSignature, ValueError, TypeError) as e:
            raise ConfigError(
                f"{cert_path}: {child.subject.rfc4514_string()} is not issued by "
                f"{parent.subject.rfc4514_string()}: cert-chain.pem must lead from it to the root"
            ) from e


def _create(data: Path, organization: str, now: datetime.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization[:64])])
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
    # The key first: a certificate without its key would be worse than none.
    write_atomic(data / _ROOT_KEY, key_pem(key), 0o600)
    write_atomic(data / ROOT_CERT, pem(certificate), 0o644)
    log.info("made a new root certificate, %s, valid 10 years", data / ROOT_CERT)


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


def load_or_create(data: Path, organization: str, now: datetime.datetime) -> SigningCa:
    """Load the self-signed root of a data folder, making one the first time."""
    cert_path, key_path = data / ROOT_CERT, data / _ROOT_KEY
    if not key_path.exists():
        if cert_path.exists():
            raise ConfigError(
                f"{key_path} is missing beside {cert_path}: restore it, or remove {cert_path} to"
                " start a new root (every proxy must then be given the new one)"
            )
        _create(data, organization, now)
    elif not cert_path.exists():
        raise ConfigError(
            f"{cert_path} is missing beside {key_path}: restore it, or remove {key_path} to"
            " start a new root (every proxy must then be given the new one)"
        )
    (certificate, *_) = _load_certificates(cert_path)
    ca = SigningCa(certificate, _load_key(key_path), (), certificate)
    _check(ca, cert_path, key_path, now)
    return ca


def load_plugged(folder: Path, data: Path, now: datetime.datetime) -> SigningCa:
    """Load an operator's CA: ca-cert.pem, ca-key.pem, root-cert.pem, and cert-chain.pem if need be.

    The names are those of Istio's `cacerts` secret. The root is copied to the data folder, where
    proxies are given it from.
    """
    cert_path, key_path = folder / "ca-cert.pem", folder / "ca-key.pem"
    (certificate, *_) = _load_certificates(cert_path)
    (root, *_) = _load_certificates(folder / ROOT_CERT)
    chain_path = folder / "cert-chain.pem"
    chain = _load_certificates(chain_path) if chain_path.exists() else []
    between = [c for c in chain if c not in (certificate, root)]
    path = () if certificate == root else (certificate, *between)
    ca = SigningCa(certificate, _load_key(key_path), path, root)
    _check(ca, cert_path, key_path, now)
    write_atomic(data / ROOT_CERT, ca.root_pem, 0o644)
    return ca
