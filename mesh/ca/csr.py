"""Keys, signing requests, and the chains that come back. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.ca.held import Certificate, CertificateFacts, Held
from mesh.errors import BadInput


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """A fresh private key and the request to certify it, both PEM."""

    key_pem: bytes
    csr_pem: str


def new_request(identity: str) -> SigningRequest:
    """Make a P-256 key and a CSR with the identity as its URI SAN and no subject."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(names, critical=True)  # RFC 5280 4.1.2.6: the subject is empty
        .sign(key, hashes.SHA256())
    )
    return SigningRequest(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        csr.public_bytes(serialization.Encoding.PEM).decode(),
    )


def held_untrusted(
    identity: str, key_pem: bytes, answer: Iterable[str], more_roots: bytes = b""
) -> Held:
    """Read a CA's answer: leaf first, then intermediates, at the end its root or roots.

    more_roots: trusted besides (PEM), for the time of a root rotation. Raises BadInput when the
    answer is not a certificate of this key and identity, or when it brings no root to trust.
    """
    try:
        certificates = x509.load_pem_x509_certificates("\n".join(answer).encode())
        trusted = x509.load_pem_x509_certificates(more_roots) if more_roots else []
        leaf = certificates[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        same_key = _public(leaf.public_key()) == _public(
            serialization.load_pem_private_key(key_pem, None).public_key()
        )
    except (ValueError, x509.ExtensionNotFound) as e:
        raise BadInput(f"the CA's answer for {identity} is no certificate chain: {e}") from e
    if uris != [identity] or not same_key:
        raise BadInput(f"the CA's answer for {identity} is a certificate of {uris} or another key")
    end = len(certificates)
    while end > 1 and certificates[end - 1].issuer == certificates[end - 1].subject:
        end -= 1
    roots = list(dict.fromkeys([*certificates[end:], *trusted]))
    if not roots:
        raise BadInput(f"the CA's answer for {identity} has no root certificate at its end")
    chain = tuple(_facts(c) for c in certificates[:end])
    root_facts = tuple(_facts(c) for c in roots)
    return Held(
        Certificate(
            identity,
            "".join(c.pem for c in chain).encode(),
            key_pem,
            "".join(c.pem for c in root_facts).encode(),
            chain[0].not_after,
        ),
        chain[0].not_before,
        chain,
        root_facts,
    )


def _public(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("not an elliptic curve key")
    return key.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def _facts(c: x509.Certificate) -> CertificateFacts:
    return CertificateFacts(
        c.public_bytes(serialization.Encoding.PEM).decode(),
        str(c.serial_number),
        c.not_valid_before_utc.timestamp(),
        c.not_valid_after_utc.timestamp(),
    )
