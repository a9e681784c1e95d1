"""Certificates and keys that users hand over: read before Envoy has to.

One that Envoy cannot read makes it refuse the whole resource that it is in.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

_MAX_BYTES: Final = 1 << 20

# The certificate of a CA that signed nothing, and whose key nobody has: where the CA that a user
# named is not there, this one stands for it, and every handshake fails.
NOBODY: Final = """-----BEGIN CERTIFICATE-----
MIIBTjCB9aADAgECAgEBMAoGCCqGSM49BAMCMBwxGjAYBgNVBAMMEXRydXN0ZWQg
Ynkgbm9ib2R5MCAXDTIwMDEwMTAwMDAwMFoYDzk5OTkxMjMxMjM1OTU5WjAcMRow
GAYDVQQDDBF0cnVzdGVkIGJ5IG5vYm9keTBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABOCgAEE9tSU2evapmgbsCQhj25O/JZb46G7YPMEMLj/mJdJnOsK0CUTTp4Bz
WB+A1uF8kIuHGDzXp9Y8obqRuhqjJjAkMBIGA1UdEwEB/wQIMAYBAf8CAQAwDgYD
VR0PAQH/BAQDAgEGMAoGCCqGSM49BAMCA0gAMEUCIQCBg48ReLbFvdkWu8xfsmyH
gA5YYvguxMePWnbaITt7AAIgL+f5R44nEHmptIhjeSdEQ5hcMK54X1LB7/7agrnQ
2ek=
-----END CERTIFICATE-----
"""


def _text(certificates: list[x509.Certificate]) -> str:
    """Only the certificates: what stands around them is none of Envoy's business."""
    return "".join(c.public_bytes(Encoding.PEM).decode() for c in certificates)


def read_certificates(raw: bytes) -> str:
    """Read certificates in PEM; "" if these are none."""
    if len(raw) > _MAX_BYTES:
        return ""
    try:
        return _text(x509.load_pem_x509_certificates(raw))
    except (ValueError, UnsupportedAlgorithm):
        return ""


def read_pair(raw: bytes, raw_key: bytes) -> tuple[str, str, str]:
    """Read a certificate chain and its key in PEM; returns both, and what is wrong with them."""
    if len(raw) + len(raw_key) > _MAX_BYTES:
        return "", "", f"longer than {_MAX_BYTES} bytes"
    try:
        chain = x509.load_pem_x509_certificates(raw)
        key = load_pem_private_key(raw_key, None)
        own, certified = (
            k.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            for k in (key.public_key(), chain[0].public_key())
        )
        text = raw_key.decode("ascii")
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "", "", "the certificate or its key cannot be read as PEM"
    if own != certified:
        return "", "", "the key does not belong to the certificate"
    return _text(chain), text, ""
