"""What the real Envoy says of a waypoint's whole configuration, without running it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, json_format, message_factory

from mesh.model import Port, Service, SpiffeId
from waypoint.config.envoy.translate import waypoint_resources
from waypoint.config.locality import NOWHERE, Place
from waypoint.config.model import Backend, Bound, Endpoint, Waypoint
from waypoint.config.regex import MAX_PROGRAM, PROGRAM_SIZE_KEY
from waypoint.config.routing import BackendRef, Routes
from waypoint.config.traffic import ServiceTraffic

_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
WAYPOINT = Waypoint("shop", "wp", SpiffeId("cluster.local", "shop", "wp"))


def _dicts(packed: Mapping[str, bytes], type_url: str) -> list[dict[str, Any]]:
    name = type_url.rpartition("/")[2]
    kind = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))
    return [
        json_format.MessageToDict(kind.FromString(raw), preserving_proto_field_name=True)
        for raw in packed.values()
    ]


def _managers(value: Any) -> Iterable[dict[str, Any]]:
    if isinstance(value, dict):
        if value.get("@type", "").endswith(_HCM) and "rds" in value:
            yield value
        for inner in value.values():
            yield from _managers(inner)
    if isinstance(value, list):
        for inner in value:
            yield from _managers(inner)


def _is_mutual(resource: dict[str, Any]) -> bool:
    """Whether it needs certificates by SDS, which there is nobody to give here."""
    return "sds_config" in json.dumps(resource)


def _bootstrap(resources: Mapping[str, Mapping[str, bytes]]) -> dict[str, Any]:
    """All of it as static resources: routes in the listeners, endpoints in the clusters."""
    found = {url.rpartition(".")[2]: _dicts(packed, url) for url, packed in resources.items()}
    routes = {r["name"]: r for r in found.get("RouteConfiguration", [])}
    used = set()
    for manager in _managers(found["Listener"]):
        name = manager.pop("rds")["route_config_name"]
        if name in routes:
            manager["route_config"] = {**routes[name], "validate_clusters": False}
            used.add(name)
    assert used == set(routes)
    assignments = {a["cluster_name"]: a for a in found.get("ClusterLoadAssignment", [])}
    for cluster in found["Cluster"]:
        if cluster.get("type") == "EDS":
            cluster.pop("eds_cluster_config")
            cluster["type"] = "STATIC"
            cluster["load_assignment"] = assignments[cluster["name"]]
    internal = "envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
    return {
        "node": {"id": "waypoint~10.0.0.1~wp.shop~shop.svc.cluster.local", "cluster": "wp.shop"},
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {"@type": f"type.googleapis.com/{internal}"},
            }
        ],
        "layered_runtime": {
            "layers": [{"name": "static", "static_layer": {PROGRAM_SIZE_KEY: MAX_PROGRAM}}]
        },
        "static_resources": {
            "listeners": [r for r in found["Listener"] if not _is_mutual(r)],
            "clusters": [r for r in found["Cluster"] if not _is_mutual(r)],
        },
    }


def verdict(
    folder: Path,
    bound: Iterable[Bound],
    backends: Iterable[Backend] = (),
    place: Place = NOWHERE,
    waypoint: Waypoint = WAYPOINT,
) -> tuple[bool, str]:
    """Whether Envoy takes all of it, and what it says if not."""
    resources = waypoint_resources(waypoint, list(bound), list(backends), place=place)
    path = folder / "envoy.json"
    path.write_text(json.dumps(_bootstrap(resources)))
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("envoy")), "--mode", "validate"),
            *("-c", str(path), "-l", "error"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    said = "\n".join(line for line in done.stderr.splitlines() if "work-in-progress" not in line)
    return done.returncode == 0, said[-1500:]


def bound_service(number: int, routes: Mapping[int, Routes], traffic: ServiceTraffic) -> Bound:
    """A service of its own address with these routes."""
    ports = (Port(80, 8080, 1), Port(90, 9090, 4), Port(443, 8443, 5), Port(99, 9999, 0))
    service = Service(
        name=f"s{number}",
        namespace="shop",
        hostname=f"s{number}.shop.svc.cluster.local",
        vips=(f"10.1.{number >> 8}.{number & 255}",),
        ports=ports,
    )
    return Bound(service, tuple(sorted(routes.items())), traffic=traffic)


def backend(service: Service, traffic: ServiceTraffic) -> Backend:
    """A service that is sent to, with all its subsets, and an endpoint in the mesh and one not."""
    endpoints = tuple(
        (
            port.service_port,
            (
                Endpoint("10.2.0.1", port.target_port, "spiffe://cluster.local/ns/shop/sa/a"),
                Endpoint("10.2.0.2", port.target_port),
            ),
        )
        for port in service.ports
    )
    used = tuple(
        BackendRef(service.key, port.service_port, subset.name)
        for port in service.ports
        for subset in traffic.subsets
    )
    return Backend(service, traffic, endpoints, used)
