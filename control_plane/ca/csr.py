"""Certificate signing requests: what a proxy may ask for."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mesh.errors import BadInput
from mesh.model import SpiffeId

MAX_CSR: Final = 16 << 10  # a P-256 request with one URI is below 1 KiB


def _load(text: str) -> x509.CertificateSigningRequest:
    if len(text) > MAX_CSR:
        raise BadInput(f"the CSR is longer than {MAX_CSR} bytes")
    try:
        csr = x509.load_pem_x509_csr(text.encode())
        if not csr.is_signature_valid:
            raise BadInput("the CSR's signature does not match its key")
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise BadInput(f"not a PEM certificate request: {str(e)[:200]}") from e
    return csr


def _check_names(csr: x509.CertificateSigningRequest, identity: SpiffeId) -> None:
    """Nothing is copied from a request but the key; one that wants other names is mistaken."""
    extra = [a for a in csr.subject if a.oid != NameOID.ORGANIZATION_NAME]
    if extra:
        raise BadInput(
            f"the CSR's subject must be empty, not {csr.subject.rfc4514_string()[:200]!r}"
        )
    for extension in csr.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise BadInput("the CSR asks for a CA certificate")
        if not isinstance(value, x509.SubjectAlternativeName):
            continue
        names = list(value)
        if names and names != [x509.UniformResourceIdentifier(str(identity))]:
            shown = ", ".join(str(getattr(n, "value", n)) for n in names)[:300]
            raise BadInput(f"the CSR asks for {shown}; the caller may have {identity} and no more")


def check_csr_untrusted(text: str, identity: SpiffeId) -> ec.EllipticCurvePublicKey:
    """Check a PEM request for one identity and return its P-256 key; raises BadInput."""
    csr = _load(text)
    try:
        key = csr.public_key()
        _check_names(csr, identity)
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as e:
        raise BadInput(f"the CSR cannot be read: {str(e)[:200]}") from e
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadInput("the CSR's key must be ECDSA P-256")
    return key
