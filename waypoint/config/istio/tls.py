"""tls of a DestinationRule: TLS from the waypoint to the application itself.

Whatever is wrong with it, it stays TLS with a verified peer: nothing here falls back to plaintext.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from waypoint.config.istio.read import Fields
from waypoint.config.traffic import BackendTls

_FILES: Final = ("clientCertificate", "privateKey", "caCertificates")
_NO_FILES: Final = (
    "not supported: a waypoint has no files of yours; put the certificates into a Secret"
    " and name it in credentialName"
)
_NOT_NEEDED: Final = (
    "ISTIO_MUTUAL is not needed: traffic between pods of the mesh has mutual TLS already (HBONE),"
    " and no certificate of the mesh is shown to anything else"
)
# kubernetes.io/tls and cert-manager, then Istio's generic secrets.
_CERTIFICATE_KEYS: Final = ("tls.crt", "cert")
_PRIVATE_KEYS: Final = ("tls.key", "key")
_CA_KEYS: Final = ("ca.crt", "cacert")
_PREFIX: Final = "kubernetes://"

Data = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Tls:
    """What a tls block says. `mode` "none" is DISABLE and ISTIO_MUTUAL: no TLS of its own."""

    path: str
    mode: Literal["none", "simple", "mutual"]
    credential: str = ""
    sni: str = ""
    subject_names: tuple[str, ...] = ()
    verify: bool = True


def read_tls(f: Fields) -> Tls:
    """Read a tls block."""
    mode = f.choice("mode", "DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL")
    # An unset mode is DISABLE (proto3); one that is wrong was meant to be TLS.
    if mode in ("DISABLE", "ISTIO_MUTUAL") or not f.has("mode"):
        if mode == "ISTIO_MUTUAL":
            f.report.skip(f.at("mode"), _NOT_NEEDED)
        for name in (*_FILES, "credentialName", "sni", "subjectAltNames", "insecureSkipVerify"):
            f.raw(name)
        f.raw("caCrl")
        f.done()
        return Tls(f.path, "none")
    f.skip(_NO_FILES, *_FILES)
    f.skip("not supported: revoked certificates are not refused", "caCrl")
    credential = f.text("credentialName").removeprefix(_PREFIX)
    if "://" in credential or "/" in credential:
        f.bad("credentialName", "must be the name of a Secret in the rule's own namespace")
        credential = ""
    if mode == "MUTUAL" and not credential:
        f.bad("credentialName", "MUTUAL needs a Secret with tls.crt, tls.key and ca.crt")
    found = Tls(
        path=f.path,
        mode="mutual" if mode == "MUTUAL" else "simple",
        credential=credential,
        sni=f.text("sni"),
        subject_names=f.texts("subjectAltNames"),
        verify=f.boolean("insecureSkipVerify") is not True,
    )
    f.done()
    return found


def _first(data: Data, names: tuple[str, ...]) -> bytes:
    return next((data[name] for name in names if data.get(name)), b"")


def _authorities(data: Data) -> tuple[str, str]:
    """Return the CA certificates of a Secret as text, or why they cannot be used."""
    raw = _first(data, _CA_KEYS)
    if not raw:
        return "", ""
    try:
        return _text(raw, x509.load_pem_x509_certificates(raw)), ""
    except (ValueError, UnsupportedAlgorithm):
        return "", "ca.crt is not a PEM certificate"


def _text(raw: bytes, certificates: list[x509.Certificate]) -> str:
    """Only the certificates: what stands around them is none of Envoy's business."""
    return "".join(c.public_bytes(Encoding.PEM).decode() for c in certificates)


def _pair(data: Data) -> tuple[str, str, str]:
    """Return certificate chain and key of a Secret as text, or why they cannot be used."""
    raw, raw_key = _first(data, _CERTIFICATE_KEYS), _first(data, _PRIVATE_KEYS)
    if not raw or not raw_key:
        return "", "", "has no tls.crt and tls.key"
    try:
        chain = x509.load_pem_x509_certificates(raw)
        key = load_pem_private_key(raw_key, None)
        same = key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        ) == chain[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        text = raw_key.decode("ascii")
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "", "", "tls.crt or tls.key cannot be read as PEM"
    if not same:
        return "", "", "tls.key does not belong to tls.crt"
    return _text(raw, chain), text, ""


def resolve_tls(tls: Tls, secret: Data | None) -> tuple[BackendTls | None, str]:
    """Fill in the Secret of a tls block; returns the settings and what is wrong with them.

    Without a usable client certificate none is shown (the backend refuses it, if it needs one);
    without a usable CA the system's roots count.
    """
    if tls.mode == "none":
        return None, ""
    why = ""
    authorities = certificate = key = ""
    if tls.credential and secret is None:
        why = f"no Secret {tls.credential!r} in the rule's namespace"
    elif secret is not None:
        authorities, why = _authorities(secret)
        if tls.mode == "mutual":
            certificate, key, more = _pair(secret)
            why = why or (f"the Secret {more}" if more.startswith("has") else more)
    settings = BackendTls(
        mode="mutual" if certificate else "simple",
        sni=tls.sni,
        subject_names=tls.subject_names,
        ca=authorities,
        certificate=certificate,
        secret=key,
        verify=tls.verify,
    )
    return settings, f"{tls.path}.credentialName: {why}" if why else ""
