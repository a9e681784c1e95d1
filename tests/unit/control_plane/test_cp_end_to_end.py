"""The whole control plane in one process, asked over TLS as node proxies ask it."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cp_support import Tokens, dial, make_plane, pod, policy, service, uri_csr
from cryptography import x509
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from control_plane.app import ControlPlane
from mesh.model import Workload
from mesh.model.convert import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    address_untrusted,
    authorization_untrusted,
)
from mesh.pb import citadel_pb2, citadel_pb2_grpc
from mesh.store import FolderStore

CART = "spiffe://cluster.local/ns/shop/sa/cart"


def objects(folder: Path) -> FolderStore:
    store = FolderStore(folder / "objects")
    store.apply({"kind": "Namespace", "metadata": {"name": "shop"}})
    store.apply(
        {
            "kind": "Node",
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
        }
    )
    store.apply(
        pod("ztunnel-n1", "istio-system", account="ztunnel", ip="10.99.1.1", hostNetwork=True)
    )
    store.apply(pod("cart", account="cart", labels={"app": "cart"}))
    store.apply(pod("far", node="n2", account="far", ip="10.244.2.5"))
    store.apply(service("cart", "10.96.0.7", {"app": "cart"}))
    return store


def run(
    folder: Path,
    test: Callable[[ControlPlane, Tokens, FolderStore, grpc.aio.Channel], Awaitable[None]],
    *more: str,
) -> None:
    """Run a test against a started control plane, within bounded time."""

    async def body() -> None:
        tokens = Tokens(folder)
        store = objects(folder)
        plane = make_plane(folder, tokens, *more)
        await plane.start()
        try:
            async with dial(plane, folder) as channel, asyncio.timeout(20):
                await test(plane, tokens, store, channel)
        finally:
            await plane.stop()

    asyncio.run(body())


def xds(channel: grpc.aio.Channel, token: str) -> Any:
    stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
    return stub.DeltaAggregatedResources(metadata=[("authorization", f"Bearer {token}")])


def ask(type_url: str = ADDRESS_TYPE, **fields: Any) -> discovery_pb2.DeltaDiscoveryRequest:
    return discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, **fields)


async def create(
    channel: grpc.aio.Channel, token: str, csr: str, impersonate: str = ""
) -> citadel_pb2.IstioCertificateResponse:
    stub = citadel_pb2_grpc.IstioCertificateServiceStub(channel)  # type: ignore[no-untyped-call]
    request = citadel_pb2.IstioCertificateRequest(csr=csr, validity_duration=3600)
    if impersonate:
        request.metadata.update({"ImpersonatedIdentity": impersonate})
    response = await stub.CreateCertificate(
        request, metadata=[("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes")]
    )
    assert isinstance(response, citadel_pb2.IstioCertificateResponse)
    return response


def test_proxy_gets_the_mesh_and_follows_it(tmp_path: Path) -> None:
    """A wildcard proxy gets all, then exactly what changes; policies come before their users."""

    async def test(
        plane: ControlPlane, tokens: Tokens, store: FolderStore, channel: grpc.aio.Channel
    ) -> None:
        stream = xds(channel, tokens.sign())
        await stream.write(ask(node={"id": "ztunnel~10.99.1.1~ztunnel-n1.istio-system"}))
        first = await stream.read()
        await stream.write(ask(response_nonce=first.nonce))
        assert sorted(r.name for r in first.resources) == [
            "Kubernetes//Pod/istio-system/ztunnel-n1",
            "Kubernetes//Pod/shop/cart",
            "Kubernetes//Pod/shop/far",
            "shop/cart.shop.svc.cluster.local",
        ]
        (cart,) = [r for r in first.resources if r.name.endswith("Pod/shop/cart")]
        assert list(cart.aliases) == ["/10.244.1.5"]
        workload = address_untrusted(cart.resource.value)
        assert isinstance(workload, Workload)
        assert workload.locality.zone == "z1"
        assert list(workload.services) == ["shop/cart.shop.svc.cluster.local"]

        await stream.write(ask(AUTHORIZATION_TYPE))
        empty = await stream.read()
        assert (empty.type_url, len(empty.resources)) == (AUTHORIZATION_TYPE, 0)
        await stream.write(ask(AUTHORIZATION_TYPE, response_nonce=empty.nonce))

        store.apply(
            policy(
                "p",
                selector={"matchLabels": {"app": "cart"}},
                rules=[{"from": [{"source": {"namespaces": ["shop"]}}]}],
            )
        )
        rules = await stream.read()
        assert [r.name for r in rules.resources] == ["shop/p"]
        assert authorization_untrusted(rules.resources[0].resource.value).rules
        users = await stream.read()
        assert [r.name for r in users.resources] == ["Kubernetes//Pod/shop/cart"]
        for r in (rules, users):
            await stream.write(ask(r.type_url, response_nonce=r.nonce))

        store.delete("Pod", "shop", "far")
        gone = await stream.read()
        assert list(gone.removed_resources) == ["Kubernetes//Pod/shop/far"]
        assert not gone.resources
        stream.cancel()

    run(tmp_path, test)


def test_on_demand_proxy_over_the_wire(tmp_path: Path) -> None:
    """Nothing until asked; a VIP brings the service with its endpoints, a miss is said."""

    async def test(
        plane: ControlPlane, tokens: Tokens, store: FolderStore, channel: grpc.aio.Channel
    ) -> None:
        stream = xds(channel, tokens.sign())
        await stream.write(ask(resource_names_subscribe=["*"], resource_names_unsubscribe=["*"]))
        first = await stream.read()
        assert not first.resources
        await stream.write(ask(response_nonce=first.nonce))
        await stream.write(ask(resource_names_subscribe=["/10.96.0.7", "/10.1.1.1"]))
        answer = await stream.read()
        assert sorted(r.name for r in answer.resources) == [
            "Kubernetes//Pod/shop/cart",
            "shop/cart.shop.svc.cluster.local",
        ]
        assert list(answer.removed_resources) == ["/10.1.1.1"]
        stream.cancel()

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("account", "message"),
    [(("shop", "cart"), "is neither a node proxy"), (None, "no service-account token")],
)
def test_xds_is_for_proxies_only(tmp_path: Path, account: Any, message: str) -> None:
    """Other service accounts, and callers without a token, are refused with the reason."""

    async def test(
        plane: ControlPlane, tokens: Tokens, store: FolderStore, channel: grpc.aio.Channel
    ) -> None:
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        metadata = []
        if account:
            token = tokens.sign(*account, pod="cart", uid="uid-cart")
            metadata = [("authorization", f"Bearer {token}")]
        stream = stub.DeltaAggregatedResources(metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await stream.read()
        assert e.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert message in (e.value.details() or "")

    run(tmp_path, test)


def test_certificates_over_the_wire(tmp_path: Path) -> None:
    """A node proxy gets its node's identities and no others, and a pod of the moment counts."""

    async def test(
        plane: ControlPlane, tokens: Tokens, store: FolderStore, channel: grpc.aio.Channel
    ) -> None:
        token = tokens.sign()
        response = await create(channel, token, uri_csr(CART), CART)
        leaf = x509.load_pem_x509_certificate(response.cert_chain[0].encode())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [CART]
        assert response.cert_chain[-1].encode() == plane.ca.root_pem

        far = "spiffe://cluster.local/ns/shop/sa/far"
        with pytest.raises(grpc.aio.AioRpcError) as e:
            await create(channel, token, uri_csr(far), far)
        assert e.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "no pod of that service account runs there" in (e.value.details() or "")

        # Written this instant: the CA looks again before it refuses.
        store.apply(pod("new", account="new", ip="10.244.1.9"))
        new = "spiffe://cluster.local/ns/shop/sa/new"
        assert (await create(channel, token, uri_csr(new), new)).cert_chain

        with pytest.raises(grpc.aio.AioRpcError) as e:
            await create(channel, token, uri_csr(far), CART)
        assert e.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        body = await asyncio.to_thread(fetch, plane, "/metrics")
        assert "citadel_server_csr_count 4.0" in body
        assert "citadel_server_success_cert_issuance_count 2.0" in body
        assert "citadel_server_authentication_failure_count 1.0" in body
        assert "citadel_server_csr_parsing_err_count 1.0" in body

    run(tmp_path, test)


def fetch(plane: ControlPlane, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{plane.admin_port}{path}", timeout=5) as r:
        return str(r.read().decode())


def test_operator_sees_what_is_served(tmp_path: Path) -> None:
    """Readiness, metrics and the dump tell of resources, connections, NACKs and broken files."""

    async def test(
        plane: ControlPlane, tokens: Tokens, store: FolderStore, channel: grpc.aio.Channel
    ) -> None:
        stream = xds(channel, tokens.sign())
        await stream.write(ask(node={"id": "ztunnel~x"}))
        first = await stream.read()
        await stream.write(ask(response_nonce=first.nonce, error_detail={"message": "bad cart"}))
        (tmp_path / "objects" / "broken.yaml").write_text("kind: [")
        for _ in range(100):
            body = await asyncio.to_thread(fetch, plane, "/metrics")
            if "pilot_malformed_objects 1.0" in body and "rejects{" in body:
                break
            await asyncio.sleep(0.05)
        assert 'pilot_total_xds_rejects{type="address"} 1.0' in body
        assert "pilot_malformed_objects 1.0" in body
        assert 'pilot_xds{version="0.1.0"} 1.0' in body
        assert 'pilot_xds_pushes{type="address"} 1.0' in body
        dump = json.loads(await asyncio.to_thread(fetch, plane, "/debug/registry"))
        assert dump["connections"][0]["account"] == "istio-system/ztunnel"
        assert dump["connections"][0]["types"][ADDRESS_TYPE]["sent"] == 4
        assert any("10.96.0.7" in a["addresses"] for a in dump["addresses"])
        assert "broken.yaml:1" in dump["problems"][0]
        assert await asyncio.to_thread(fetch, plane, "/healthz/ready") == "ready\n"
        stream.cancel()

    run(tmp_path, test)


def test_status_is_written_once(tmp_path: Path) -> None:
    """A policy's fate is in its status soon after; then nothing is written any more."""

    async def test(
        plane: ControlPlane, tokens: Tokens, store: FolderStore, channel: grpc.aio.Channel
    ) -> None:
        store.apply(policy("p", action="DENY", rules=[{"to": [{"operation": {"ports": ["x"]}}]}]))
        conditions: Any = None
        for _ in range(100):
            found = store.get("AuthorizationPolicy", "shop", "p") or {}
            conditions = found.get("status", {}).get("conditions")
            if conditions:
                break
            await asyncio.sleep(0.05)
        (condition,) = conditions
        assert condition["status"] == "False"
        assert condition["observedGeneration"] == 1
        assert "spec.rules[0].to[0].operation.ports[0]" in condition["message"]
        while store.watch(0.1):
            pass
        assert store.watch(0.5) is False

    run(tmp_path, test)


def test_root_survives_a_restart(tmp_path: Path) -> None:
    """A second control plane on the same data has the same root, and versions do not change."""
    tokens = Tokens(tmp_path)
    objects(tmp_path)
    first, second = make_plane(tmp_path, tokens), make_plane(tmp_path, tokens)
    assert first.ca.root_pem == second.ca.root_pem
    mode = (tmp_path / "cp" / "root-key.pem").stat().st_mode
    assert mode & 0o777 == 0o600
