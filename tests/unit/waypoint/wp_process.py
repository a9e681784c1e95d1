"""A real ambit-waypoint with a real Envoy, and a control plane (delta xDS, CA) by hand."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import ipaddress
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401 (for Any)
from envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: F401
    http_connection_manager_pb2,
)
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2, json_format
from wp_resources import cluster, endpoints, listener, routes

from mesh.pb import citadel_pb2
from mesh.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES

XDS = "envoy.service.discovery.v3.AggregatedDiscoveryService"
CA = "istio.v1.auth.IstioCertificateService"
IDENTITY = "spiffe://cluster.local/ns/shop/sa/wp"
_MESSAGES: dict[str, Any] = {
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINTS: endpoint_pb2.ClusterLoadAssignment,
    LISTENER: listener_pb2.Listener,
    ROUTES: route_pb2.RouteConfiguration,
}


class Authority:
    """A root that signs what it is asked to."""

    def __init__(self, name: str = "root") -> None:
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.lifetime = dt.timedelta(hours=1)
        self.root = self._certificate(name, self.key.public_key(), None, True)

    def _certificate(self, name: str, key: Any, san: Any, ca: bool) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        life = dt.timedelta(hours=1) if ca else self.lifetime
        common = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(common))
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(seconds=1))
            .not_valid_after(now + life)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if san is not None:
            names = x509.SubjectAlternativeName([san])
            builder = builder.add_extension(names, critical=not name)
        return builder.sign(self.key, hashes.SHA256())

    @property
    def root_pem(self) -> str:
        return self.root.public_bytes(serialization.Encoding.PEM).decode()

    def server(self) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        san = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        made = self._certificate("server", key.public_key(), san, False)
        return pem, made.public_bytes(serialization.Encoding.PEM)

    def sign(self, csr_pem: str) -> str:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        leaf = self._certificate("", csr.public_key(), next(iter(names)), False)
        return leaf.public_bytes(serialization.Encoding.PEM).decode()


@dataclass
class Stream:
    """One xDS stream that the waypoint has opened."""

    context: Any
    token: str
    requests: list[discovery_pb2.DeltaDiscoveryRequest] = field(default_factory=list)
    sent: dict[str, dict[str, str]] = field(default_factory=dict)  # type: name: version
    wildcard: set[str] = field(default_factory=set)
    names: dict[str, set[str]] = field(default_factory=dict)

    def nacks(self) -> list[discovery_pb2.DeltaDiscoveryRequest]:
        return [r for r in self.requests if r.HasField("error_detail")]


class FakePlane:
    """Serves what `set` was given, by delta; a CA that signs with `authority`."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority()
        self.roots = [self.authority.root_pem]
        self.issued: list[tuple[str, dict[str, Any]]] = []  # token, request's metadata
        self.refuse = ""  # why the CA signs nothing
        self.resources: dict[str, dict[str, tuple[str, bytes]]] = {t: {} for t in _MESSAGES}
        self.streams: list[Stream] = []
        self.root_file, self.token_file = folder / "root.pem", folder / "token"
        self.root_file.write_text(self.authority.root_pem)
        self.token_file.write_text("a-token\n")
        self.server_pair = self.authority.server()
        self.port = 0
        self._nonce = 0
        self._server: grpc.aio.Server | None = None

    def settled(self) -> bool:
        """Whether everything that was sent is answered."""
        return any(r.response_nonce == str(self._nonce) for r in self.streams[-1].requests)

    def set(self, type_url: str, value: dict[str, Any]) -> None:
        payload = json_format.ParseDict(value, _MESSAGES[type_url]()).SerializeToString()
        name = value.get("name") or value["cluster_name"]
        version = hashlib.sha256(payload).hexdigest()[:10]
        self.resources[type_url][name] = (version, payload)

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server()
        xds = grpc.stream_stream_rpc_method_handler(
            self._xds,
            request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
            response_serializer=discovery_pb2.DeltaDiscoveryResponse.SerializeToString,
        )
        ca = grpc.unary_unary_rpc_method_handler(
            self._issue,
            request_deserializer=citadel_pb2.IstioCertificateRequest.FromString,
            response_serializer=citadel_pb2.IstioCertificateResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(XDS, {"DeltaAggregatedResources": xds}),
                grpc.method_handlers_generic_handler(CA, {"CreateCertificate": ca}),
            )
        )
        credentials = grpc.ssl_server_credentials([self.server_pair])
        self.port = self._server.add_secure_port(f"127.0.0.1:{port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    async def push(self) -> None:
        """Send what is due on the newest stream."""
        stream = self.streams[-1]
        for type_url in _MESSAGES:
            if type_url in stream.names:
                await self._send(stream, type_url, set())

    async def _send(
        self, stream: Stream, type_url: str, asked: set[str], must: bool = False
    ) -> None:
        have, known = self.resources[type_url], stream.sent.setdefault(type_url, {})
        wanted = set(have) if type_url in stream.wildcard else stream.names[type_url] & set(have)
        due = [n for n in sorted(wanted) if known.get(n) != have[n][0] or n in asked]
        gone = [n for n in known if n not in have] + sorted(asked - set(have))
        if not (due or gone or must):
            return
        self._nonce += 1
        known.update({n: have[n][0] for n in due})
        for name in gone:
            known.pop(name, None)
        await stream.context.write(
            discovery_pb2.DeltaDiscoveryResponse(
                type_url=type_url,
                nonce=str(self._nonce),
                removed_resources=gone,
                resources=[
                    discovery_pb2.Resource(
                        name=n,
                        version=have[n][0],
                        resource=any_pb2.Any(type_url=type_url, value=have[n][1]),
                    )
                    for n in due
                ],
            )
        )

    async def _xds(self, requests: Any, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        stream = Stream(context, metadata.get("authorization", ""))
        self.streams.append(stream)
        async for r in requests:
            stream.requests.append(r)
            first = r.type_url not in stream.names
            names = stream.names.setdefault(r.type_url, set())
            if first:
                stream.sent[r.type_url] = dict(r.initial_resource_versions)
                if not r.resource_names_subscribe:
                    stream.wildcard.add(r.type_url)
            asked = set(r.resource_names_subscribe) - {"*"}
            names |= asked
            names -= set(r.resource_names_unsubscribe)
            if first or asked:
                again = asked - set(r.initial_resource_versions)
                await self._send(stream, r.type_url, again, must=first)

    async def _issue(self, request: Any, context: Any) -> citadel_pb2.IstioCertificateResponse:
        metadata = dict(context.invocation_metadata())
        self.issued.append(
            (metadata.get("authorization", ""), json_format.MessageToDict(request.metadata))
        )
        if self.refuse:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, self.refuse)
        chain = [self.authority.sign(request.csr), *self.roots]
        return citadel_pb2.IstioCertificateResponse(cert_chain=chain)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


class Backend:
    """An HTTP server that says 200 to everything, after `delay` seconds."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Backend:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(self.delay)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()


# ---- the process -------------------------------------------------------------------------------


class Process:
    """A real ambit-waypoint, with the fakes around it; Envoy serves HTTP on `http`."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.launcher: tuple[str, ...] = ("-m",)
        self.ipv6_too = False  # whether Envoy listens on [::1], too
        self.plane = FakePlane(folder)
        self.backend = Backend()
        self.admin, self.ready, self.metrics = free_port(), free_port(), free_port()
        self.http, self.https = free_port(), free_port()
        self.log = folder / "log"
        self.folder = folder / "run"
        self.env = env
        self.process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Process:
        await self.backend.__aenter__()
        self.configure()
        await self.plane.start()
        await self.spawn()
        return self

    def configure(self, **header: str) -> None:
        p = self.plane
        p.set(CLUSTER, cluster("echo"))
        p.set(ENDPOINTS, endpoints("echo", self.backend.port))
        p.set(LISTENER, listener("web", self.http, ipv6_too=self.ipv6_too))
        p.set(LISTENER, listener("tls", self.https, tls=True))
        p.set(ROUTES, routes("web", "echo", **header))
        p.set(ROUTES, routes("tls", "echo", **header))

    async def spawn(self) -> None:
        env = {
            **os.environ,
            "XDS_ADDRESS": f"https://127.0.0.1:{self.plane.port}",
            "XDS_ROOT_CA": str(self.plane.root_file),
            "AUTH_TOKEN": str(self.plane.token_file),
            "ADMIN_ADDR": f"127.0.0.1:{self.admin}",
            "READY_ADDR": f"127.0.0.1:{self.ready}",
            "METRICS_ADDR": f"127.0.0.1:{self.metrics}",
            "GATEWAY_NAME": "wp",
            "POD_NAME": "wp-1",
            "POD_NAMESPACE": "shop",
            "RUN_DIR": str(self.folder),
            "CONCURRENCY": "1",
            "MINIMUM_DRAIN_SECONDS": "0.5",
            "TERMINATION_GRACE_PERIOD_SECONDS": "9",
            **self.env,
        }
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self.launcher,
                "waypoint.agent.app",
                env=env,
                stdout=log,
                stderr=log,
            )

    async def __aexit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        await self.plane.stop()
        await self.backend.__aexit__()

    async def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 20)

    async def get(
        self, port: int, path: str, method: str = "GET", host: str = "127.0.0.1"
    ) -> tuple[int, str]:
        return await asyncio.to_thread(_fetch, f"http://{host}:{port}{path}", method)

    async def ask(self) -> tuple[int, dict[str, str]]:
        """One request through Envoy: status and headers."""
        return await asyncio.to_thread(_headers, self.http)

    async def agent(self) -> dict[str, Any]:
        _, body = await self.get(self.admin, "/agent")
        return dict(json.loads(body))

    async def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return (await self.get(self.ready, "/healthz/ready"))[0] == 200
        return False

    async def served(self, **header: str) -> bool:
        with contextlib.suppress(OSError):
            status, found = await self.ask()
            wanted = {k.replace("_", "-"): v for k, v in header.items()}
            return status == 200 and wanted.items() <= found.items()
        return False


def _fetch(url: str, method: str) -> tuple[int, str]:
    request = urllib.request.Request(url, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def _headers(port: int) -> tuple[int, dict[str, str]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
            return response.status, dict(response.headers)
    except urllib.error.HTTPError as e:
        return e.code, dict(e.headers)


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait for a condition, plain or async."""
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if asyncio.iscoroutine(met):
                met = await met
            if met:
                return
            await asyncio.sleep(0.02)


def run(
    folder: Path,
    body: Callable[[Process], Awaitable[None]],
    before: Callable[[Process], None] = lambda _: None,
    **env: str,
) -> None:
    """Run a test's body with a process; prints the log where it fails. before: its start."""

    async def main() -> None:
        process = Process(folder, **env)
        before(process)
        try:
            async with process:
                await body(process)
        except BaseException:
            print(process.log.read_text()[-8000:])
            raise

    asyncio.run(main())
