"""The cluster's certificates, service-account key and kubeconfigs."""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.k8s.cluster.layout import CP, KUBERNETES_VIPS, Layout

_SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
_LIFE = datetime.timedelta(days=30)
_PEM = serialization.Encoding.PEM


def make(layout: Layout) -> None:
    """Write everything into layout.pki."""
    layout.pki.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca = _Authority(layout.pki)
    ca.issue(
        "apiserver",
        "kube-apiserver",
        [],
        (*_SERVER_NAMES, "127.0.0.1", *CP, *KUBERNETES_VIPS),
    )
    ca.issue("apiserver-kubelet", "kube-apiserver-kubelet-client", ["system:masters"])
    ca.issue("front", "front-proxy-client", [])
    clients = {
        "admin": ("admin", "system:masters"),
        "controller-manager": ("system:kube-controller-manager", ""),
        "scheduler": ("system:kube-scheduler", ""),
        "proxy": ("system:kube-proxy", ""),
        "coredns": ("coredns", "system:masters"),
        **{f"kubelet-{n.name}": (f"system:node:{n.name}", "system:nodes") for n in layout.nodes},
    }
    for name, (user, group) in clients.items():
        ca.issue(name, user, [group] if group else [])
        _write(layout.pki / f"{name}.kubeconfig", _kubeconfig(layout, name).encode())
    key = rsa.generate_private_key(65537, 2048)
    _write(layout.pki / "sa.key", _private(key))
    _write(
        layout.pki / "sa.pub",
        key.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def self_signed(name: str) -> tuple[bytes, bytes]:
    """Key and certificate, PEM, of a server that nobody checks."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return _private(key), _builder(subject, subject, key).sign(key, hashes.SHA256()).public_bytes(
        _PEM
    )


class _Authority:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ambit-test-ca")])
        cert = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        _write(folder / "ca.crt", cert.public_bytes(_PEM))
        _write(folder / "ca.key", _private(self._key))

    def issue(self, name: str, user: str, groups: list[str], servers: tuple[str, ...] = ()) -> None:
        """Write <name>.crt and <name>.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, g) for g in groups]
        subject.append(x509.NameAttribute(NameOID.COMMON_NAME, user))
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = _builder(x509.Name(subject), self._name, key)
        if servers:
            usage.append(ExtendedKeyUsageOID.SERVER_AUTH)
            names = [_alternative(s) for s in servers]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        cert = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False).sign(
            self._key, hashes.SHA256()
        )
        _write(self._folder / f"{name}.crt", cert.public_bytes(_PEM))
        _write(self._folder / f"{name}.key", _private(key))


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + _LIFE)
    )


def _private(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)


def _kubeconfig(layout: Layout, name: str) -> str:
    pki = str(layout.pki)
    cluster = {"server": layout.server, "certificate-authority": f"{pki}/ca.crt"}
    user = {"client-certificate": f"{pki}/{name}.crt", "client-key": f"{pki}/{name}.key"}
    found = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": layout.name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": layout.name, "context": {"cluster": layout.name, "user": name}}],
        "current-context": layout.name,
    }
    return yaml.safe_dump(found, sort_keys=False)
