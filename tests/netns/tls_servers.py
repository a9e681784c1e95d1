"""Pods that speak TLS themselves: `openssl s_server`, its certificates of a CA of the test."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PEM = serialization.Encoding.PEM


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name("test CA"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def certificates(where: Path, *names: str) -> str:
    """Write NAME.crt and NAME.key for each DNS name; returns the CA's certificate (PEM)."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    ca = _builder("test CA", ca_key).add_extension(constraints, True).sign(ca_key, hashes.SHA256())
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name)])
        made = _builder(name, key).add_extension(alternatives, False).sign(ca_key, hashes.SHA256())
        (where / f"{name}.crt").write_bytes(made.public_bytes(_PEM))
        (where / f"{name}.key").write_bytes(
            key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
    return ca.public_bytes(_PEM).decode()


def tls_server(ns: str, name: str, on: str, files: Path) -> dict[str, Any]:
    """A pod (label app=NAME) that answers HTTP over TLS on 8443 with NAME's certificate."""
    server = ["openssl", "s_server", "-accept", "8443", "-www", "-quiet"]
    certificate = ["-cert", str(files / f"{name}.crt"), "-key", str(files / f"{name}.key")]
    container = {
        "name": "app",
        "command": [*server, *certificate],
        "ports": [{"containerPort": 8443}],
        "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name.replace(".", "-"), "namespace": ns, "labels": {"app": name}},
        "spec": {"nodeName": on, "containers": [container]},
    }
