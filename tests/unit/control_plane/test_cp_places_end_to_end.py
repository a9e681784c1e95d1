"""Pods of one waypoint in two zones ask a running control plane: each gets its own order."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
from cp_support import Tokens, dial, make_plane, pod, service
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from wp_world import AMBIENT, CART, SHORT, gateway, namespace, rule, wp_pod, wp_service

from mesh.store import FolderStore

OBJECTS = (
    namespace(**AMBIENT),
    gateway(),
    wp_service(),
    service("cart", "10.96.0.7", {"app": "cart"}),
    rule("cart", trafficPolicy={"outlierDetection": {"consecutive5xxErrors": 1}}),
)


def node(name: str, zone: str) -> dict[str, Any]:
    labels = {"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": zone}
    return {"kind": "Node", "metadata": {"name": name, "labels": labels}}


def on(obj: dict[str, Any], name: str) -> dict[str, Any]:
    return {**obj, "spec": {**obj["spec"], "nodeName": name}}


class Client:
    """A pod of the waypoint, as its Envoy asks."""

    def __init__(self, channel: grpc.aio.Channel, tokens: Tokens, name: str) -> None:
        token = tokens.sign("shop", "wp", name, f"uid-{name}")
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        metadata = [("authorization", f"Bearer {token}")]
        self._stream = stub.DeltaAggregatedResources(metadata=metadata)

    async def ask(self) -> list[str]:
        """Ask for the endpoints; see order()."""
        kind = discovery_pb2.DeltaDiscoveryRequest
        await self._stream.write(kind(type_url=SHORT["cds"], resource_names_subscribe=["*"]))
        clusters = await self._stream.read()
        await self._stream.write(kind(type_url=SHORT["cds"], response_nonce=clusters.nonce))
        await self._stream.write(kind(type_url=SHORT["eds"], resource_names_subscribe=[CART]))
        return await self.order()

    async def order(self) -> list[str]:
        """The zones of the next endpoints that are sent, the nearest first."""
        found = await self._stream.read()
        (resource,) = found.resources
        assignment = endpoint_pb2.ClusterLoadAssignment.FromString(resource.resource.value)
        await self._stream.write(
            discovery_pb2.DeltaDiscoveryRequest(type_url=SHORT["eds"], response_nonce=found.nonce)
        )
        return [g.locality.zone for g in sorted(assignment.endpoints, key=lambda g: g.priority)]


def test_each_pod_is_served_the_order_of_its_own_place(tmp_path: Path) -> None:
    async def body() -> None:
        tokens, store = Tokens(tmp_path), FolderStore(tmp_path / "objects")
        for i, zone in ((1, "a"), (2, "b")):
            store.apply(node(f"n{i}", zone))
            store.apply(on(wp_pod(f"wp-{i}", f"10.244.{i}.99"), f"n{i}"))
            store.apply(pod(f"cart-{i}", node=f"n{i}", ip=f"10.244.{i}.5", labels={"app": "cart"}))
        for obj in OBJECTS:
            store.apply(obj)
        plane = make_plane(tmp_path, tokens)
        await plane.start()
        try:
            async with dial(plane, tmp_path) as channel, asyncio.timeout(20):
                one, two = (Client(channel, tokens, f"wp-{i}") for i in (1, 2))
                assert await one.ask() == ["a", "b"]
                assert await two.ask() == ["b", "a"]
                store.apply(pod("cart-3", node="n1", ip="10.244.1.6", labels={"app": "cart"}))
                assert await one.order() == ["a", "b"]
                assert await two.order() == ["b", "a"]
                store.apply(node("n2", "c"))  # the place of one of them changes
                assert await one.order() == ["a", "c"]
                assert await two.order() == ["c", "a"]
        finally:
            await plane.stop()

    asyncio.run(body())
