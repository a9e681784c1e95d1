"""The CA's Secrets as data: what is in them, and what each step of a rotation makes of them. Pure.

cacerts           the operator's CA, when there is one: ca-cert.pem, ca-key.pem, root-cert.pem,
                  cert-chain.pem (or tls.crt, tls.key, ca.crt)
istio-ca-secret   the self-signed root otherwise; during a rotation also its successor
"""

from __future__ import annotations

import base64
import binascii
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from control_plane.ca.root import (
    CA_CERT,
    CA_KEY,
    CERT_CHAIN,
    ROOT_CERT,
    Piece,
    SigningCa,
    bundle_pem,
    fingerprint,
    key_pem,
    new_root,
    pem,
    read_ca,
)
from control_plane.ca.rotation import TIME, Ledger, is_ending, read_time
from control_plane.kubernetes.naming import LABELS, SELF_SIGNED
from mesh.errors import ConfigError

Object = dict[str, Any]
TYPE: Final = "istio.io/ca-root"
NEXT_CERT: Final = "next-ca-cert.pem"
NEXT_KEY: Final = "next-ca-key.pem"
_TLS_NAMES: Final = {CA_CERT: "tls.crt", CA_KEY: "tls.key", ROOT_CERT: "ca.crt"}

REQUEST: Final = "ambit.io/rotate-root"  # an operator's wish; any value
PHASE: Final = "ambit.io/root-rotation"
SINCE: Final = "ambit.io/root-rotation-since"
OLD: Final = "ambit.io/root-rotation-old"  # fingerprint of the root that goes last
TRUST: Final = "trust"
SIGN: Final = "sign"


@dataclass(frozen=True, slots=True)
class SelfSigned:
    """What istio-ca-secret says. successor: the next root, from the first phase to the second."""

    ca: SigningCa
    successor: SigningCa | None = None
    requested: bool = False
    phase: str = ""
    since: datetime.datetime | None = None
    old: str = ""

    @property
    def candidates(self) -> list[SigningCa]:
        """Who may sign, the most wanted first."""
        return [*([self.successor] if self.successor is not None else []), self.ca]


def _files(secret: Mapping[str, Any], where: str) -> dict[str, bytes]:
    out = {}
    for name, text in (secret.get("data") or {}).items():
        try:
            out[name] = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError, TypeError) as e:
            raise ConfigError(f"{where}{name}: not base64") from e
    return out


def _where(secret: Mapping[str, Any]) -> str:
    metadata = secret["metadata"]
    return f"Secret {metadata.get('namespace')}/{metadata['name']}: "


def read_plugged(secret: Mapping[str, Any], now: datetime.datetime) -> SigningCa:
    """Read an operator's CA; raises ConfigError."""
    where = _where(secret)
    files = _files(secret, where)

    def piece(name: str) -> Piece:
        for found in (name, _TLS_NAMES[name]):
            if files.get(found):
                return Piece(where + found, files[found])
        raise ConfigError(f"{where}{name} is missing")

    chain = Piece(where + CERT_CHAIN, files.get(CERT_CHAIN, b""))
    return read_ca(piece(CA_CERT), piece(CA_KEY), piece(ROOT_CERT), chain, now)


def read_self_signed(secret: Mapping[str, Any], now: datetime.datetime) -> SelfSigned:
    """Read our own root, or one that Istio made; raises ConfigError."""
    where = _where(secret)
    files = _files(secret, where)
    for name in (CA_CERT, CA_KEY):
        if not files.get(name):
            raise ConfigError(f"{where}{name} is missing: restore it, or delete the Secret")
    cert = Piece(where + CA_CERT, files[CA_CERT])
    # Istio leaves root-cert.pem empty: the certificate is its own root.
    roots = Piece(where + ROOT_CERT, files[ROOT_CERT]) if files.get(ROOT_CERT) else cert
    chain = Piece(where + CERT_CHAIN, files.get(CERT_CHAIN, b""))
    ca = read_ca(cert, Piece(where + CA_KEY, files[CA_KEY]), roots, chain, now)
    successor = None
    if files.get(NEXT_CERT):
        next_cert = Piece(where + NEXT_CERT, files[NEXT_CERT])
        next_key = Piece(where + NEXT_KEY, files.get(NEXT_KEY, b""))
        successor = read_ca(next_cert, next_key, next_cert, None, now)
    annotations = secret["metadata"].get("annotations") or {}
    return SelfSigned(
        ca,
        successor,
        REQUEST in annotations,
        str(annotations.get(PHASE) or ""),
        read_time(annotations.get(SINCE)),
        str(annotations.get(OLD) or ""),
    )


def make_secret(namespace: str, organization: str, now: datetime.datetime) -> Object:
    """Make the Secret of a new self-signed root."""
    ca = new_root(organization, now)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SELF_SIGNED, "namespace": namespace, "labels": dict(LABELS)},
        "type": TYPE,
        "data": _data(SelfSigned(ca)),
    }


def _data(own: SelfSigned) -> dict[str, str]:
    files = {
        CA_CERT: pem(own.ca.certificate),
        CA_KEY: key_pem(own.ca.key),
        CERT_CHAIN: bundle_pem(own.ca.chain),
        ROOT_CERT: own.ca.root_pem,
    }
    if own.successor is not None:
        files[NEXT_CERT] = pem(own.successor.certificate)
        files[NEXT_KEY] = key_pem(own.successor.key)
    return {name: base64.b64encode(data).decode() for name, data in files.items()}


def write_back(secret: Mapping[str, Any], own: SelfSigned, now: datetime.datetime) -> Object:
    """Return the Secret with what a step made of it; everything else in it stays."""
    metadata = dict(secret["metadata"])
    annotations = dict(metadata.get("annotations") or {})
    wanted = {
        REQUEST: "true" if own.requested else "",
        PHASE: own.phase,
        SINCE: now.strftime(TIME) if own.phase else "",
        OLD: own.old,
    }
    for name, value in wanted.items():
        annotations.pop(name, None)
        if value:
            annotations[name] = value
    metadata["annotations"] = annotations
    ours = {CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT, NEXT_CERT, NEXT_KEY}
    kept = {k: v for k, v in (secret.get("data") or {}).items() if k not in ours}
    return {**secret, "metadata": metadata, "data": {**kept, **_data(own)}}


@dataclass(frozen=True, slots=True)
class Step:
    """What to make of istio-ca-secret, and what to tell the operator."""

    own: SelfSigned
    reason: str
    message: str


def next_step(
    own: SelfSigned,
    signs: bool,
    ledger: Ledger,
    overlap: datetime.timedelta,
    organization: str,
    now: datetime.datetime,
) -> Step | None:
    """Say what is due in the rotation of the self-signed root; None while nothing is.

    signs: no plugged-in CA does.
    """
    if own.successor is not None:
        if not ledger.settled(own.successor.root, overlap, now):
            return None
        roots = dict.fromkeys((*own.successor.roots, *own.ca.roots))
        ca = replace(own.successor, roots=tuple(roots))
        old = fingerprint(own.ca.root)
        text = f"the new root signs; the old one stays trusted for another {overlap}"
        return Step(SelfSigned(ca, None, own.requested, SIGN, now, old), "RootSigns", text)
    if own.phase == SIGN:
        if own.since is not None and now < own.since + overlap:
            return None
        rest = tuple(r for r in own.ca.roots if fingerprint(r) != own.old)
        text = "the rotation of the root is complete; the old one is not trusted any more"
        ca = replace(own.ca, roots=rest)
        return Step(SelfSigned(ca, None, own.requested), "RootRotated", text)
    if signs and (own.requested or is_ending(own.ca.root, overlap, now)):
        made = new_root(organization, now)
        why = "asked for" if own.requested else "the root is nearing its end"
        text = f"a new root is distributed ({why}); it signs {overlap} after all namespaces have it"
        return Step(SelfSigned(own.ca, made, False, TRUST, now), "RootDistributed", text)
    return None
