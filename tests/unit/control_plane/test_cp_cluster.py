"""The whole control plane on a cluster: two replicas, one CA, an API server that comes and goes."""

from __future__ import annotations

import asyncio
import base64
import datetime
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cp_support import Tokens, pod, policy, uri_csr
from cryptography import x509
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from fake_api import FakeApi

from control_plane.app import ControlPlane
from control_plane.ca.root import CA_CERT, CA_KEY, ROOT_CERT, bundle_pem, key_pem, new_root, pem
from control_plane.kubernetes import ca as ca_module
from control_plane.kubernetes import election, pacing
from control_plane.options import parse_options
from mesh.kube import reflector
from mesh.model.convert import ADDRESS_TYPE
from mesh.pb import citadel_pb2, citadel_pb2_grpc

NS = "istio-system"
CART = "spiffe://cluster.local/ns/shop/sa/cart"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    monkeypatch.setattr(reflector, "FIRST", 0.02)
    monkeypatch.setattr(reflector, "MOST", 0.1)
    monkeypatch.setattr(reflector, "DISCOVER", 0.1)
    monkeypatch.setattr(election, "RETRY", 0.05)
    monkeypatch.setattr(election, "DURATION", 1.0)
    monkeypatch.setattr(election, "DEADLINE", 0.6)
    monkeypatch.setattr(election, "_TIMEOUT", 0.3)
    monkeypatch.setattr(ca_module, "TICK", 0.05)
    monkeypatch.setattr(pacing, "SPACING", 0.05)
    monkeypatch.setattr(pacing, "FIRST", 0.2)
    api = FakeApi().start()
    for name in (NS, "shop"):
        api.put({"kind": "Namespace", "metadata": {"name": name}})
    yield api
    if api._server is not None:
        api.stop()


def make(server: FakeApi, folder: Path, name: str, *more: str) -> ControlPlane:
    folder.mkdir(exist_ok=True)
    argv = [
        "--kubernetes",
        *("--kubeconfig", str(server.kubeconfig(folder))),
        *("--listen", "127.0.0.1:0"),
        *("--metrics-listen", "127.0.0.1:0"),
        *more,
    ]
    return ControlPlane(parse_options(argv, {"POD_NAME": name, "POD_NAMESPACE": NS}))


@asynccontextmanager
async def running(
    server: FakeApi, folder: Path, *names: str, more: tuple[str, ...] = ()
) -> AsyncIterator[list[ControlPlane]]:
    planes = [make(server, folder / n, n, *more) for n in names]
    try:
        await asyncio.gather(*(asyncio.wait_for(p.start(), 10) for p in planes))
        yield planes
    finally:
        await asyncio.gather(*(p.stop() for p in planes))


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not within the time"
        await asyncio.sleep(0.02)


def channel(plane: ControlPlane, root: bytes) -> grpc.aio.Channel:
    options = [("grpc.ssl_target_name_override", "istiod.istio-system.svc")]
    credentials = grpc.ssl_channel_credentials(root)
    return grpc.aio.secure_channel(f"127.0.0.1:{plane.port}", credentials, options)


def fetch(plane: ControlPlane, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{plane.admin_port}{path}", timeout=5) as r:
        return str(r.read().decode())


class Mesh:
    """A node's proxy and a pod, and the token the proxy shows."""

    def __init__(self, server: FakeApi, folder: Path) -> None:
        self.server = server
        server.put(pod("ztunnel-n1", NS, account="ztunnel", ip="10.9.9.9"))
        server.put(pod("cart-1", account="cart", ip="10.244.1.6"))
        self.token = Tokens(folder).sign()
        self.user = {
            "username": f"system:serviceaccount:{NS}:ztunnel",
            "extra": {
                "authentication.kubernetes.io/pod-name": ["ztunnel-n1"],
                "authentication.kubernetes.io/pod-uid": ["uid-ztunnel-n1"],
            },
        }
        server.tokens[self.token] = {
            "authenticated": True,
            "audiences": ["istio-ca"],
            "user": self.user,
        }

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)

    async def sign(self, plane: ControlPlane, identity: str = CART) -> list[str]:
        root = self.server.get("ConfigMap", NS, "istio-ca-root-cert")["data"]["root-cert.pem"]
        async with channel(plane, root.encode()) as c:
            request = citadel_pb2.IstioCertificateRequest(csr=uri_csr(identity))
            request.metadata.update({"ImpersonatedIdentity": identity})
            stub = citadel_pb2_grpc.IstioCertificateServiceStub(c)
            call: Awaitable[Any] = stub.CreateCertificate(
                request, metadata=self.metadata, timeout=10
            )
            return list((await call).cert_chain)


def roots_of(chain: list[str]) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(chain[-1].encode())


def root_map(server: FakeApi, namespace: str = NS) -> str:
    if not server.has("ConfigMap", namespace, "istio-ca-root-cert"):
        return ""
    return str(server.get("ConfigMap", namespace, "istio-ca-root-cert")["data"]["root-cert.pem"])


async def issuer_is(mesh: Mesh, plane: ControlPlane, root: x509.Certificate) -> bool:
    chain = await mesh.sign(plane)
    leaf = x509.load_pem_x509_certificate(chain[0].encode())
    return bool(leaf.issuer == root.subject)


def test_two_replicas_share_one_root_and_both_sign(server: FakeApi, tmp_path: Path) -> None:
    """Of two that start at once one makes the root; both sign with it; one writes."""
    mesh = Mesh(server, tmp_path)
    server.put(policy("p", rules=[{}]))

    async def run() -> None:
        async with running(server, tmp_path, "a", "b") as planes:
            await until(lambda: root_map(server))
            assert len({p.ca.root_pem for p in planes}) == 1
            secret = server.get("Secret", NS, "istio-ca-secret")
            assert secret["type"] == "istio.io/ca-root"
            root = base64.b64decode(secret["data"]["root-cert.pem"])
            for plane in planes:
                chain = await mesh.sign(plane)
                assert chain[-1].encode() == root
                with pytest.raises(grpc.aio.AioRpcError, match="no pod of that service account"):
                    await mesh.sign(plane, CART.replace("cart", "other"))
            await until(lambda: server.asked("PATCH", "/status"))
            await until(lambda: [p for p in planes if "ambit_leader 1.0" in fetch(p, "/metrics")])
            await asyncio.sleep(0.3)
            assert len(server.asked("PATCH", "/status")) == 1
            leaders = [p for p in planes if "ambit_leader 1.0" in fetch(p, "/metrics")]
            assert len(leaders) == 1
            text = fetch(planes[0], "/metrics")
            assert 'ambit_objects{kind="Pod"} 2.0' in text
            assert "ambit_source_problems 0.0" in text
        # And the next start finds it.
        async with running(server, tmp_path, "c") as (plane,):
            assert plane.ca.root_pem == root

    asyncio.run(run())


def test_discovery_serves_what_the_cluster_has_while_it_is_away(
    server: FakeApi, tmp_path: Path
) -> None:
    """Not ready before everything is read; then streams live on without an API server."""
    mesh = Mesh(server, tmp_path)
    server.forbidden.add("endpointslices")

    async def run() -> None:
        plane = make(server, tmp_path, "a")
        starting = asyncio.ensure_future(plane.start())
        await until(lambda: plane.admin_port)
        await asyncio.sleep(0.3)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            await asyncio.to_thread(fetch, plane, "/healthz/ready")
        assert not starting.done()
        server.forbidden.clear()
        reflector.FORBIDDEN = 0.1
        await asyncio.wait_for(starting, 60)
        try:
            await until(lambda: root_map(server))
            assert await asyncio.to_thread(fetch, plane, "/healthz/ready")
            async with channel(plane, root_map(server).encode()) as c:
                call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(c).DeltaAggregatedResources(
                    metadata=mesh.metadata
                )
                await call.write(discovery_pb2.DeltaDiscoveryRequest(type_url=ADDRESS_TYPE))
                first = await asyncio.wait_for(call.read(), 5)
                assert "Kubernetes//Pod/shop/cart-1" in {r.name for r in first.resources}
                server.stop()
                await asyncio.sleep(0.5)
                assert await asyncio.to_thread(fetch, plane, "/healthz/ready")
                assert (await mesh_error(plane, mesh)) == grpc.StatusCode.UNAVAILABLE
                server.put(pod("new", ip="10.244.1.77"))
                server.start()
                await call.write(
                    discovery_pb2.DeltaDiscoveryRequest(
                        type_url=ADDRESS_TYPE, response_nonce=first.nonce
                    )
                )
                second = await asyncio.wait_for(call.read(), 5)
                assert [r.name for r in second.resources] == ["Kubernetes//Pod/shop/new"]
                assert not second.removed_resources
        finally:
            await plane.stop()

    forbidden = reflector.FORBIDDEN
    reflector.FORBIDDEN = 0.2
    try:
        asyncio.run(run())
    finally:
        reflector.FORBIDDEN = forbidden


async def mesh_error(plane: ControlPlane, mesh: Mesh) -> grpc.StatusCode:
    """The status that a caller with a token nobody has seen gets."""
    token = mesh.token
    mesh.token = Tokens(Path("/tmp")).sign(pod="unseen")
    try:
        await mesh.sign(plane)
    except grpc.aio.AioRpcError as e:
        return e.code()
    finally:
        mesh.token = token
    return grpc.StatusCode.OK


def test_a_root_rotates_on_request_while_both_sign(server: FakeApi, tmp_path: Path) -> None:
    """Three phases in the Secret; every certificate on the way is of a root that all were told."""
    mesh = Mesh(server, tmp_path)

    async def run() -> None:
        async with running(server, tmp_path, "a", "b", more=("--root-overlap", "2s")) as planes:
            await until(lambda: root_map(server))
            old = planes[0].ca.root
            await until(lambda: "ambit.io/roots" in str(server.get("ConfigMap", NS, MAP)))
            secret = server.get("Secret", NS, "istio-ca-secret")
            secret["metadata"]["annotations"] = {"ambit.io/rotate-root": "now"}
            server.put(secret)
            await until(lambda: root_map(server).count("BEGIN") == 2)
            for plane in planes:
                assert await issuer_is(mesh, plane, old)
                await until(lambda p=plane: len(p.ca.roots) == 2)
            before = await mesh.sign(planes[0])
            assert len(roots_of(before)) == 2
            await until(lambda: all(p.ca.root != old for p in planes))
            new = planes[0].ca.root
            assert planes[1].ca.root == new
            for plane in planes:
                # The handshake itself: the server's certificate follows, and both are trusted.
                assert await issuer_is(mesh, plane, new)
            await until(lambda: root_map(server).count("BEGIN") == 1)
            for plane in planes:
                await until(lambda p=plane: p.ca.roots == (new,))
                assert roots_of(await mesh.sign(plane)) == [new]
            secret = server.get("Secret", NS, "istio-ca-secret")
            assert sorted(secret["data"]) == [CA_CERT, CA_KEY, "cert-chain.pem", ROOT_CERT]
            assert base64.b64decode(secret["data"][ROOT_CERT]) == pem(new)
            reasons = [e["reason"] for e in server.objects[("", "events")].values()]
            assert sorted(reasons) == ["RootDistributed", "RootRotated", "RootSigns"]

    asyncio.run(run())


MAP = "istio-ca-root-cert"


def cacerts(ca: Any, roots: tuple[Any, ...] = ()) -> dict[str, Any]:
    files = {CA_CERT: pem(ca.certificate), CA_KEY: key_pem(ca.key)}
    files[ROOT_CERT] = bundle_pem(roots or ca.roots)
    return {
        "kind": "Secret",
        "metadata": {"name": "cacerts", "namespace": NS},
        "data": {k: base64.b64encode(v).decode() for k, v in files.items()},
    }


def test_a_plugged_in_ca_wins_from_the_start(server: FakeApi, tmp_path: Path) -> None:
    """No self-signed root is made beside it; what is wrong in it later changes nothing."""
    mesh = Mesh(server, tmp_path)
    now = datetime.datetime.now(datetime.UTC)
    corp = new_root("corp", now)
    server.put(cacerts(corp))

    async def run() -> None:
        async with running(server, tmp_path, "a", more=("--root-overlap", "0s")) as (plane,):
            await until(lambda: root_map(server))
            assert roots_of(await mesh.sign(plane)) == [corp.root]
            assert not server.has("Secret", NS, "istio-ca-secret")
            broken = cacerts(corp)
            broken["data"][CA_KEY] = "AAAA"
            server.put(broken)
            await until(lambda: "ca-key.pem" in fetch(plane, "/debug/registry"))
            assert roots_of(await mesh.sign(plane)) == [corp.root]
            second = new_root("corp", now)
            server.put(cacerts(second))
            await until(lambda: plane.ca.root == second.root)
            assert second.root in roots_of(await mesh.sign(plane))

    asyncio.run(run())


def test_a_ca_plugged_in_at_run_time_waits_until_it_is_trusted(
    server: FakeApi, tmp_path: Path
) -> None:
    """Its root is told first; it signs after the overlap; an operator can see when."""
    mesh = Mesh(server, tmp_path)
    corp = new_root("corp", datetime.datetime.now(datetime.UTC))

    async def run() -> None:
        async with running(server, tmp_path, "a", more=("--root-overlap", "2s")) as (plane,):
            await until(lambda: root_map(server))
            old = plane.ca.root
            server.put(cacerts(corp))
            await until(lambda: corp.root in plane.ca.roots)
            assert await issuer_is(mesh, plane, old)
            await until(lambda: plane.ca.root == corp.root)
            assert await issuer_is(mesh, plane, corp.root)
            assert old in plane.ca.roots
            await until(lambda: plane.ca.roots == (corp.root,))
            reasons = [e["reason"] for e in server.objects[("", "events")].values()]
            assert reasons == ["CAWaits"]

    asyncio.run(run())


def test_an_unusable_plugged_in_ca_is_not_passed_over(server: FakeApi, tmp_path: Path) -> None:
    """At a start with a broken `cacerts` nothing signs, rather than something else."""
    corp = new_root("corp", datetime.datetime.now(datetime.UTC))
    broken = cacerts(corp)
    del broken["data"][CA_KEY]
    server.put(broken)

    async def run() -> None:
        plane = make(server, tmp_path, "a")
        starting = asyncio.ensure_future(plane.start())
        await until(lambda: plane.admin_port)
        await until(lambda: "ca-key.pem is missing" in fetch(plane, "/debug/registry"))
        assert not starting.done()
        assert not server.has("Secret", NS, "istio-ca-secret")
        server.put(cacerts(corp))
        await asyncio.wait_for(starting, 10)
        assert plane.ca.root == corp.root
        await plane.stop()

    asyncio.run(run())


def test_roots_go_where_waypoints_are(server: FakeApi, tmp_path: Path) -> None:
    """A namespace gets the ConfigMap with its waypoint; undone or deleted, it comes back."""

    def gateway(namespace: str, name: str) -> dict[str, Any]:
        return {
            "kind": "Gateway",
            "metadata": {"name": "waypoint", "namespace": namespace},
            "spec": {"gatewayClassName": name},
        }

    def gateway_class(name: str, controller: str) -> dict[str, Any]:
        return {
            "kind": "GatewayClass",
            "metadata": {"name": name},
            "spec": {"controllerName": controller},
        }

    async def run() -> None:
        server.put({"kind": "Namespace", "metadata": {"name": "other"}})
        server.put({"kind": "Namespace", "metadata": {"name": "third"}})
        async with running(server, tmp_path, "a"):
            await until(lambda: root_map(server))
            server.put(gateway("shop", "istio-waypoint"))
            server.put(gateway("other", "nginx"))
            server.put(gateway_class("mine", "ambit.io/mesh-controller"))
            server.put(gateway("third", "mine"))
            await until(lambda: root_map(server, "shop") and root_map(server, "third"))
            assert not root_map(server, "other")
            spoiled = server.get("ConfigMap", "shop", MAP)
            right = spoiled["data"]["root-cert.pem"]
            spoiled["data"] = {"root-cert.pem": "nonsense"}
            server.put(spoiled)
            await until(lambda: root_map(server, "shop") == right)
            server.delete("ConfigMap", NS, MAP)
            await until(lambda: root_map(server) == right)
            assert "ambit.io/roots" in server.get("ConfigMap", NS, MAP)["metadata"]["annotations"]
            await asyncio.sleep(0.3)
            count = len(server.asked("PATCH", "/configmaps/"))
            await asyncio.sleep(0.5)
            assert len(server.asked("PATCH", "/configmaps/")) == count

    asyncio.run(run())


def test_a_deleted_root_is_put_back(server: FakeApi, tmp_path: Path) -> None:
    """The key is in memory: losing the Secret is not losing the mesh's trust."""

    async def run() -> None:
        async with running(server, tmp_path, "a", "b") as planes:
            await until(lambda: root_map(server))
            before = server.get("Secret", NS, "istio-ca-secret")["data"]
            server.delete("Secret", NS, "istio-ca-secret")
            await until(lambda: server.has("Secret", NS, "istio-ca-secret"))
            assert server.get("Secret", NS, "istio-ca-secret")["data"] == before
            assert len({p.ca.root_pem for p in planes}) == 1

    asyncio.run(run())
