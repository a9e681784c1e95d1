"""Fakes for the control process: a control plane (xDS, CA) and a node agent, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from mesh.model import Authorization, Service, Tunnel, Workload, convert
from mesh.pb import citadel_pb2
from mesh.wire import zds

XDS = "envoy.service.discovery.v3.AggregatedDiscoveryService"
CA = "istio.v1.auth.IstioCertificateService"

SLEEP = Workload(
    uid="Kubernetes//Pod/shop/sleep",
    name="sleep",
    namespace="shop",
    addresses=("127.0.0.1",),
    service_account="sleep",
    tunnel=Tunnel.HBONE,
    node="n1",
    workload_name="sleep",
)
ECHO = replace(
    SLEEP,
    uid="Kubernetes//Pod/shop/echo",
    name="echo",
    addresses=("10.0.0.9",),
    service_account="echo",
    workload_name="echo",
)


class Authority:
    """A root that signs what it is asked to."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.lifetime = dt.timedelta(hours=1)
        self.root = self._certificate("root", self.key.public_key(), None, True)

    def _certificate(
        self, name: str, key: Any, san: x509.GeneralName | None, ca: bool
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(seconds=1))
            .not_valid_after(now + self.lifetime)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if san is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([san]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    @property
    def root_pem(self) -> str:
        return self.root.public_bytes(serialization.Encoding.PEM).decode()

    def server(self) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        san = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate = self._certificate("server", key.public_key(), san, False)
        return private_pem(key), certificate.public_bytes(serialization.Encoding.PEM)

    def sign(self, csr_pem: str) -> list[str]:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        leaf = self._certificate("", csr.public_key(), next(iter(names)), False)
        return [leaf.public_bytes(serialization.Encoding.PEM).decode(), self.root_pem]


def private_pem(key: Any) -> bytes:
    return bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@dataclass
class Stream:
    """One xDS stream that a client has opened."""

    context: Any
    tokens: list[str]
    requests: list[discovery_pb2.DeltaDiscoveryRequest] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class FakePlane:
    """xDS by hand (`push`) after a first answer with everything known; a CA that signs."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority()
        self.resources: dict[str, dict[str, Any]] = {
            convert.AUTHORIZATION_TYPE: {},
            convert.ADDRESS_TYPE: {},
        }
        self.streams: list[Stream] = []
        self.issued: list[tuple[str, str]] = []  # (impersonated identity, authorization header)
        self.refuse = ""  # why the CA signs nothing
        self.root_file = folder / "root.pem"
        self.root_file.write_text(self.authority.root_pem)
        self.token_file = folder / "token"
        self.token_file.write_text("a-token\n")
        self.port = 0
        self._nonce = 0
        self._server: grpc.aio.Server | None = None

    def set(self, *values: Workload | Service | Authorization) -> None:
        for v in values:
            if isinstance(v, Workload):
                self.resources[convert.ADDRESS_TYPE][v.uid] = convert.workload_to_pb(v)
            elif isinstance(v, Service):
                self.resources[convert.ADDRESS_TYPE][v.key] = convert.service_to_pb(v)
            else:
                self.resources[convert.AUTHORIZATION_TYPE][v.key] = convert.authorization_to_pb(v)

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
        credentials = grpc.ssl_server_credentials([self.authority.server()])
        self.port = self._server.add_secure_port(f"127.0.0.1:{port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    async def push(
        self, type_url: str, names: list[str], removed: list[str] | None = None, raw: Any = None
    ) -> None:
        """Send resources by name on the newest stream; raw: payloads instead of what is known."""
        self._nonce += 1
        have = self.resources[type_url]
        payloads = raw or {n: have[n].SerializeToString() for n in names}
        await self.streams[-1].context.write(
            discovery_pb2.DeltaDiscoveryResponse(
                type_url=type_url,
                nonce=str(self._nonce),
                removed_resources=removed or [],
                resources=[
                    discovery_pb2.Resource(
                        name=n,
                        version=f"v{self._nonce}",
                        resource=any_pb2.Any(type_url=type_url, value=p),
                    )
                    for n, p in payloads.items()
                ],
            )
        )

    async def _xds(self, requests: Any, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        stream = Stream(context, [metadata.get("authorization", "")])
        self.streams.append(stream)
        seen = set()
        try:
            async for request in requests:
                stream.requests.append(request)
                first = request.type_url not in seen
                seen.add(request.type_url)
                if first and "*" not in request.resource_names_unsubscribe:
                    known = request.initial_resource_versions
                    have = self.resources[request.type_url]
                    new = [n for n in have if n not in known]
                    await self.push(request.type_url, new, [n for n in known if n not in have])
                elif request.resource_names_subscribe:
                    await self._demanded(request)
        finally:
            stream.closed.set()

    async def _demanded(self, request: discovery_pb2.DeltaDiscoveryRequest) -> None:
        """Answer what is asked for; "*" comes with the first request on demand, and names may."""
        found, missing = [], []
        for name in set(request.resource_names_subscribe) - {"*"}:
            hits = [n for n, pb in self.resources[request.type_url].items() if _answers(pb, name)]
            found += hits
            missing += [] if hits else [name]
        await self.push(request.type_url, found, missing)

    async def _issue(self, request: Any, context: Any) -> citadel_pb2.IstioCertificateResponse:
        metadata = dict(context.invocation_metadata())
        identity = request.metadata["ImpersonatedIdentity"]
        self.issued.append((str(identity), metadata.get("authorization", "")))
        if self.refuse:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, self.refuse)
        return citadel_pb2.IstioCertificateResponse(cert_chain=self.authority.sign(request.csr))


def _answers(pb: Any, alias: str) -> bool:
    ip = ipaddress.ip_address(alias.rpartition("/")[2]).packed
    if pb.HasField("workload"):
        return ip in pb.workload.addresses
    return any(a.address == ip for a in pb.service.addresses)


class FakeAgent:
    """Listens on a ZDS socket; one proxy at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hello: zds.Hello | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self.sock: socket.socket | None = None

    async def accept(self) -> None:
        loop = asyncio.get_running_loop()
        self.sock, _ = await asyncio.wait_for(loop.sock_accept(self._listener), 15)
        self.hello = zds.decode_hello_untrusted(
            await asyncio.wait_for(loop.sock_recv(self.sock, 2048), 5)
        )

    async def ask(self, request: zds.Request, fds: list[int] | None = None) -> str:
        """Send a request; returns the ack's error."""
        assert self.sock is not None
        socket.send_fds(self.sock, [zds.encode_request(request)], fds or [])
        loop = asyncio.get_running_loop()
        raw = await asyncio.wait_for(loop.sock_recv(self.sock, 2048), zds.ACK_DEADLINE)
        return zds.decode_response_untrusted(raw).error

    async def add(self, uid: str, w: Workload, listeners: bool = True) -> str:
        """Add a pod that lives in this network namespace, with listeners on any port."""
        netns = os.open("/proc/self/ns/net", os.O_RDONLY)
        socks = [socket.create_server(("127.0.0.1", 0)) for _ in (1, 2)] if listeners else []
        roles = (zds.OUTBOUND_V4, zds.INBOUND_PLAIN) if listeners else ()
        try:
            request = zds.Add(uid, w.name, w.namespace, w.service_account, roles, zds.REDIRECT_EBPF)
            return await self.ask(request, [netns, *(s.fileno() for s in socks)])
        finally:
            os.close(netns)
            for s in socks:
                s.close()

    def hang_up(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def close(self) -> None:
        self.hang_up()
        self._listener.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


class Process:
    """A real ambit-ztunnel, with the fakes around it."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.plane = FakePlane(folder)
        self.agent = FakeAgent(folder / "zds.sock")
        self.admin, self.ready, self.metrics = free_port(), free_port(), free_port()
        self.log = folder / "log"
        self.env = env
        self.process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Process:
        await self.plane.start()
        await self.spawn()
        return self

    async def spawn(self) -> None:
        env = {
            **os.environ,
            "XDS_ADDRESS": f"https://127.0.0.1:{self.plane.port}",
            "XDS_ROOT_CA": str(self.plane.root_file),
            "AUTH_TOKEN": str(self.plane.token_file),
            "INPOD_UDS": str(self.agent.path),
            "ADMIN_ADDR": f"127.0.0.1:{self.admin}",
            "READY_ADDR": f"127.0.0.1:{self.ready}",
            "METRICS_ADDR": f"127.0.0.1:{self.metrics}",
            "ZTUNNEL_WORKER_THREADS": "1",
            "TERMINATION_GRACE_PERIOD_SECONDS": "7",
            **self.env,
        }
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ztunnel.app", env=env, stderr=log
            )

    async def __aexit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self.agent.close()
        await self.plane.stop()

    async def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 20)

    async def get(self, port: int, path: str, method: str = "GET") -> tuple[int, str]:
        return await asyncio.to_thread(_fetch, port, path, method)

    async def dump(self) -> dict[str, Any]:
        _, body = await self.get(self.admin, "/config_dump")
        return dict(json.loads(body))

    async def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return (await self.get(self.ready, "/healthz/ready"))[0] == 200
        return False

    def workers(self) -> list[int]:
        """Pids of the relay workers."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(p) for p in path.read_text().split()]


def _fetch(port: int, path: str, method: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


async def until(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    """Wait for a condition, plain or async."""
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if asyncio.iscoroutine(met):
                met = await met
            if met:
                return
            await asyncio.sleep(0.02)
