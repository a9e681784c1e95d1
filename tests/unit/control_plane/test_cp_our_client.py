"""Our proxies' clients against our control plane, over TLS, through a restart of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cp_support import Tokens, make_plane, pod, policy, service

from mesh.ca.client import CaClient, NotIssued
from mesh.model.convert import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    address_untrusted,
    authorization_untrusted,
)
from mesh.store import FolderStore
from mesh.xds.client import Node, Upstream, XdsClient
from mesh.xds.delta import DeltaClient, Update

TYPES = {AUTHORIZATION_TYPE: authorization_untrusted, ADDRESS_TYPE: address_untrusted}


class Proxy:
    """A client and what it believes."""

    def __init__(self, upstream: Upstream, on_demand: tuple[str, ...] = ()) -> None:
        self.known: dict[str, Any] = {}
        self.received: list[str] = []
        self.sizes: list[int] = []
        self.client = XdsClient(
            upstream,
            Node("ztunnel~10.99.1.1~ztunnel-n1.istio-system~istio-system.svc.cluster.local", {}),
            DeltaClient(TYPES, on_demand),
            self._update,
            self,
        )

    def _update(self, update: Update) -> None:
        for name, value in update.changed:
            self.known[name] = value
            self.received.append(name)
        for name in update.removed:
            self.known.pop(name, None)

    def xds_message(self, type_url: str, size: int) -> None:
        self.sizes.append(size)

    def xds_terminated(self, reason: str) -> None:
        pass


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (what is waited for is in the code under test)
            await asyncio.sleep(0.01)


def prepare(folder: Path) -> tuple[Tokens, FolderStore, Path]:
    tokens, store = Tokens(folder), FolderStore(folder / "objects")
    store.apply(
        pod("ztunnel-n1", "istio-system", account="ztunnel", ip="10.99.1.1", hostNetwork=True)
    )
    store.apply(pod("cart", account="cart", labels={"app": "cart"}))
    store.apply(service("cart", "10.96.0.7", {"app": "cart"}))
    store.apply(policy("p", rules=[{}]))
    token = folder / "token"
    token.write_text(tokens.sign())
    return tokens, store, token


@pytest.mark.parametrize("on_demand", [(), (ADDRESS_TYPE,)])
def test_proxy_follows_through_a_restart(tmp_path: Path, on_demand: tuple[str, ...]) -> None:
    """After a restart of the control plane only what changed is sent, and what is gone removed."""
    tokens, store, token = prepare(tmp_path)

    async def body() -> None:
        plane = make_plane(tmp_path, tokens)
        await plane.start()
        port = plane.port
        root = tmp_path / "cp" / "root-cert.pem"
        upstream = Upstream(f"https://127.0.0.1:{port}", root, token)
        proxy = Proxy(upstream, on_demand)
        running = asyncio.ensure_future(proxy.client.run())
        try:
            await until(lambda: proxy.client.state.synced)
            if on_demand:
                proxy.client.demand(ADDRESS_TYPE, "/10.96.0.7")
                proxy.client.demand(ADDRESS_TYPE, "/10.1.1.1")
                await until(lambda: proxy.client.state.is_missing(ADDRESS_TYPE, "/10.1.1.1"))
            await until(lambda: "Kubernetes//Pod/shop/cart" in proxy.known)
            await plane.stop()

            store.apply(pod("late", account="late", ip="10.1.1.1"))
            store.delete("AuthorizationPolicy", "shop", "p")
            proxy.received.clear()
            again = make_plane(tmp_path, tokens, "--listen", f"127.0.0.1:{port}")
            await again.start()
            try:
                await until(lambda: "Kubernetes//Pod/shop/late" in proxy.known)
                await until(lambda: "shop/p" not in proxy.known)
                assert proxy.received == ["Kubernetes//Pod/shop/late"]
            finally:
                await again.stop()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(body())


def test_proxy_gets_certificates(tmp_path: Path) -> None:
    """The proxy's CA client accepts what the CA signs, and is told why it signs nothing."""
    tokens, _, token = prepare(tmp_path)

    async def body() -> None:
        plane = make_plane(tmp_path, tokens)
        await plane.start()
        root = tmp_path / "cp" / "root-cert.pem"
        client = CaClient(Upstream(f"https://127.0.0.1:{plane.port}", root, token), 60)
        try:
            held = await client.issue("spiffe://cluster.local/ns/shop/sa/cart")
            assert held.certificate.identity == "spiffe://cluster.local/ns/shop/sa/cart"
            with pytest.raises(NotIssued, match="runs there"):
                await client.issue("spiffe://cluster.local/ns/shop/sa/other")
        finally:
            await client.close()
            await plane.stop()

    asyncio.run(body())


def test_pod_gets_its_own_identity_and_no_other(tmp_path: Path) -> None:
    """Without impersonation a pod's token is worth the identity of that pod."""
    tokens, _, token = prepare(tmp_path)
    token.write_text(tokens.sign("shop", "cart", "cart", "uid-cart"))

    async def body() -> None:
        plane = make_plane(tmp_path, tokens)
        await plane.start()
        root = tmp_path / "cp" / "root-cert.pem"
        upstream = Upstream(f"https://127.0.0.1:{plane.port}", root, token)
        client = CaClient(upstream, 60, impersonate=False)
        try:
            held = await client.issue("spiffe://cluster.local/ns/shop/sa/cart")
            assert held.certificate.identity == "spiffe://cluster.local/ns/shop/sa/cart"
            with pytest.raises(NotIssued, match="may have"):
                await client.issue("spiffe://cluster.local/ns/shop/sa/other")
        finally:
            await client.close()
            await plane.stop()

    asyncio.run(body())


def test_new_root_is_used_by_the_next_request(tmp_path: Path) -> None:
    """A root file with other content counts at once, not after a failure or a restart."""
    tokens, _, token = prepare(tmp_path)
    identity = "spiffe://cluster.local/ns/shop/sa/cart"

    async def body() -> None:
        old, new = tmp_path / "old", tmp_path / "new"
        for folder in (old, new):
            folder.mkdir()
        plane = make_plane(tmp_path, tokens, "--data", str(old))
        await plane.start()
        root = tmp_path / "root.pem"
        root.write_bytes((old / "root-cert.pem").read_bytes())
        client = CaClient(Upstream(f"https://127.0.0.1:{plane.port}", root, token), 60)
        await client.issue(identity)
        port = plane.port
        await plane.stop()
        other = make_plane(tmp_path, tokens, "--data", str(new), "--listen", f"127.0.0.1:{port}")
        await other.start()
        try:
            root.write_bytes((new / "root-cert.pem").read_bytes())
            held = await client.issue(identity)
            assert held.certificate.roots_pem == root.read_bytes()
        finally:
            await client.close()
            await other.stop()

    asyncio.run(body())
