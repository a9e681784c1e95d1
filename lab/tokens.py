"""Service account tokens as Kubernetes projects them: JWT, ES256.

Claims: https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.ports import TOKEN_AUDIENCE

ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
LIFETIME: Final = 3600.0  # seconds
REFRESH: Final = 0.8  # of the lifetime, as kubelet does it


@dataclass(frozen=True, slots=True)
class Subject:
    """For whom a token is: a service account, in a pod, on a node; uids by object."""

    namespace: str
    service_account: str
    service_account_uid: str
    pod: str
    pod_uid: str
    node: str
    node_uid: str


def create_key(private: Path, public: Path) -> None:
    """Make the key that signs; `private` is readable by its owner only."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _replace(private, pem, 0o600)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    _replace(public, key.public_key().public_bytes(serialization.Encoding.PEM, spki), 0o644)


def sign(
    key: str,
    subject: Subject,
    now: float,
    lifetime: float = LIFETIME,
    audience: str = TOKEN_AUDIENCE,
) -> str:
    """Sign a token with the private key (PEM), valid from `now` (seconds since the epoch)."""
    claims: Mapping[str, Any] = {
        "aud": [audience],
        "exp": int(now + lifetime),
        "iat": int(now),
        "nbf": int(now),
        "iss": ISSUER,
        "jti": str(uuid.uuid4()),
        "kubernetes.io": {
            "namespace": subject.namespace,
            "node": {"name": subject.node, "uid": subject.node_uid},
            "pod": {"name": subject.pod, "uid": subject.pod_uid},
            "serviceaccount": {
                "name": subject.service_account,
                "uid": subject.service_account_uid,
            },
        },
        "sub": f"system:serviceaccount:{subject.namespace}:{subject.service_account}",
    }
    return jwt.encode(dict(claims), key, algorithm="ES256")


def write(path: Path, token: str) -> None:
    """Replace a projected token file."""
    _replace(path, token.encode(), 0o600)


def _replace(path: Path, data: bytes, mode: int) -> None:
    tmp = path.with_name(f".{path.name}.tmp")
    tmp.unlink(missing_ok=True)
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    tmp.rename(path)
