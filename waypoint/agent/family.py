"""What Envoy is configured with, on a machine without IPv6 (ipv6.disable=1). No I/O."""

from __future__ import annotations

from dataclasses import replace

from mesh.xds.delta import Resource, Response
from mesh.xds.types import LISTENER


def without_ipv6(response: Response) -> Response:
    """Take IPv6 addresses out of listeners: Envoy refuses all of one that it cannot bind."""
    if response.type_url != LISTENER:
        return response
    return replace(response, resources=tuple(map(_without_ipv6, response.resources)))


def _without_ipv6(resource: Resource) -> Resource:
    # Imported where it is needed: what it brings along takes memory in every pod.
    from envoy.config.listener.v3 import listener_pb2

    listener = listener_pb2.Listener.FromString(resource.payload)
    kept = [a for a in listener.additional_addresses if ":" not in a.address.socket_address.address]
    if len(kept) == len(listener.additional_addresses):
        return resource
    del listener.additional_addresses[:]
    listener.additional_addresses.extend(kept)
    return replace(resource, payload=listener.SerializeToString(deterministic=True))
