"""What the control plane's tests share: keys, tokens, requests, and a running control plane."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from control_plane.app import ControlPlane
from control_plane.options import parse_options

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def private_pem(key: Any) -> bytes:
    """Encode a key as the files hold it."""
    return bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


class Tokens:
    """Signs service-account tokens as the cluster would."""

    def __init__(self, folder: Path) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / "token-key.pem"
        self.file.write_bytes(
            self.key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def sign(
        self,
        namespace: str = "istio-system",
        account: str = "ztunnel",
        pod: str = "ztunnel-n1",
        uid: str = "uid-ztunnel-n1",
        key: Any = None,
        algorithm: str = "ES256",
        **claims: Any,
    ) -> str:
        """Make a token; claims replace the usual ones, None removes one."""
        now = int(time.time())
        body: dict[str, Any] = {
            "iss": "https://kubernetes.default.svc",
            "aud": ["istio-ca"],
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "iat": now,
            "exp": now + 3600,
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": account, "uid": "uid-sa"},
                "pod": {"name": pod, "uid": uid},
            },
        }
        body.update(claims)
        body = {k: v for k, v in body.items() if v is not None}
        return jwt.encode(body, key or self.key, algorithm=algorithm)


def make_csr(
    *sans: x509.GeneralName, key: Any = None, subject: str = "", ca: bool = False
) -> tuple[str, Any]:
    """Build a PEM request; returns it and its key."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    names = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=True)
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    csr = builder.sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode(), key


def uri_csr(uri: str) -> str:
    """Build the request a proxy makes for an identity."""
    return make_csr(x509.UniformResourceIdentifier(uri))[0]


def pod(
    name: str,
    namespace: str = "shop",
    node: str = "n1",
    account: str = "default",
    ip: str = "10.244.1.5",
    labels: dict[str, str] | None = None,
    enrolled: bool = True,
    **spec: Any,
) -> dict[str, Any]:
    """Build a running Pod object."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "labels": labels or {},
            "annotations": {"ambient.istio.io/redirection": "enabled"} if enrolled else {},
        },
        "spec": {"nodeName": node, "serviceAccountName": account, **spec},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def service(name: str, vip: str, selector: dict[str, str], namespace: str = "shop") -> Any:
    """Build a Service object of one port."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "clusterIP": vip,
            "selector": selector,
            "ports": [{"port": 80, "targetPort": 8080, "name": "http"}],
        },
    }


def policy(name: str, namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    """Build an AuthorizationPolicy object."""
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def make_plane(folder: Path, tokens: Tokens, *more: str) -> ControlPlane:
    """Build a control plane on free ports of the loopback."""
    return ControlPlane(
        parse_options(
            [
                *("--objects", str(folder / "objects")),
                *("--data", str(folder / "cp")),
                *("--token-key", str(tokens.file)),
                *("--listen", "127.0.0.1:0"),
                *("--metrics-listen", "127.0.0.1:0"),
                *more,
            ]
        )
    )


def dial(plane: ControlPlane, folder: Path) -> grpc.aio.Channel:
    """Open a channel that trusts the control plane's root file."""
    root = (folder / "cp" / "root-cert.pem").read_bytes()
    return grpc.aio.secure_channel(f"127.0.0.1:{plane.port}", grpc.ssl_channel_credentials(root))
