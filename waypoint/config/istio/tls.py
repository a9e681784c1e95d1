"""tls of a DestinationRule: TLS from the waypoint to the application itself.

Where anything is wrong with it, connections fail: nothing here falls back to plaintext, or trusts
more than was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from waypoint.config.pem import NOBODY, read_certificates, read_pair
from waypoint.config.reading import Fields
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
    wrong: str = ""  # why nothing may be trusted by it


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
    f.skip("not supported, and without it revoked certificates would be trusted", "caCrl")
    credential = f.text("credentialName").removeprefix(_PREFIX)
    wrong = ""
    if "/" in credential:
        wrong = "must be the name of a Secret in the rule's own namespace"
        credential = ""
    elif mode == "MUTUAL" and not credential:
        wrong = "MUTUAL needs a Secret with tls.crt, tls.key and ca.crt"
    if wrong:
        f.bad("credentialName", f"{wrong}: connections fail")
    elif not mode or any(f.has(name) for name in (*_FILES, "caCrl")):
        wrong = "the block cannot be done as it is written"
        f.report.bad(f.path, f"{wrong}: connections fail")
    found = Tls(
        path=f.path,
        mode="mutual" if mode == "MUTUAL" else "simple",
        credential=credential,
        sni=f.text("sni"),
        subject_names=f.texts("subjectAltNames"),
        verify=f.boolean("insecureSkipVerify") is not True,
        wrong=wrong,
    )
    f.done()
    return found


def _first(data: Data, names: tuple[str, ...]) -> bytes:
    return next((data[name] for name in names if data.get(name)), b"")


def _pair(data: Data) -> tuple[str, str, str]:
    """Return certificate chain and key of a Secret as text, or why they cannot be used."""
    raw, raw_key = _first(data, _CERTIFICATE_KEYS), _first(data, _PRIVATE_KEYS)
    if not raw or not raw_key:
        return "", "", "it has no tls.crt and tls.key"
    return read_pair(raw, raw_key)


def resolve_tls(tls: Tls, secret: Data | None) -> tuple[BackendTls | None, str]:
    """Fill in the Secret of a tls block; returns the settings and what is wrong with them.

    Where anything is wrong, no backend is trusted: connections fail.
    """
    if tls.mode == "none":
        return None, ""
    why = tls.wrong
    authorities = certificate = key = ""
    if tls.credential and secret is None:
        why = why or f"there is no Secret {tls.credential!r} in the rule's namespace"
    elif secret is not None:
        raw = _first(secret, _CA_KEYS)
        authorities = read_certificates(raw)
        if raw and not authorities:
            why = why or "its ca.crt is not a PEM certificate"
        if tls.mode == "mutual":
            certificate, key, wrong = _pair(secret)
            why = why or wrong
    settings = BackendTls(
        mode="mutual" if certificate else "simple",
        sni=tls.sni,
        subject_names=tls.subject_names,
        ca=NOBODY if why else authorities,
        certificate=certificate,
        secret=key,
        verify=tls.verify or bool(why),
    )
    said = why and not tls.wrong
    return settings, f"{tls.path}.credentialName: {why}: connections fail" if said else ""
