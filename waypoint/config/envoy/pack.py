"""Proto-JSON dictionaries to the bytes of Envoy's resources.

Raises MalformedResource with the path of what Envoy's messages do not have: a defect of the
translation, found by its tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

from mesh.errors import MeshError
from waypoint.config.envoy.encode import Encoder, NotEncodable, Packed

# What the translation's "@type"s are declared in. Only these are loaded: all of them take 0.5 s.
_MODULES: Final = (
    "envoy.config.cluster.v3.cluster_pb2",
    "envoy.config.endpoint.v3.endpoint_pb2",
    "envoy.config.listener.v3.listener_pb2",
    "envoy.config.route.v3.route_pb2",
    "envoy.extensions.access_loggers.file.v3.file_pb2",
    "envoy.extensions.access_loggers.stats.v3.stats_pb2",
    "envoy.extensions.access_loggers.stream.v3.stream_pb2",
    "envoy.extensions.filters.http.cors.v3.cors_pb2",
    "envoy.extensions.filters.http.ext_authz.v3.ext_authz_pb2",
    "envoy.extensions.filters.http.fault.v3.fault_pb2",
    "envoy.extensions.filters.http.header_mutation.v3.header_mutation_pb2",
    "envoy.extensions.filters.http.header_to_metadata.v3.header_to_metadata_pb2",
    "envoy.extensions.filters.http.jwt_authn.v3.config_pb2",
    "envoy.extensions.filters.http.rbac.v3.rbac_pb2",
    "envoy.extensions.filters.http.router.v3.router_pb2",
    "envoy.extensions.filters.http.set_filter_state.v3.set_filter_state_pb2",
    "envoy.extensions.filters.http.stateful_session.v3.stateful_session_pb2",
    "envoy.extensions.filters.listener.http_inspector.v3.http_inspector_pb2",
    "envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2",
    "envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector_pb2",
    "envoy.extensions.filters.network.ext_authz.v3.ext_authz_pb2",
    "envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2",
    "envoy.extensions.filters.network.rbac.v3.rbac_pb2",
    "envoy.extensions.filters.network.set_filter_state.v3.set_filter_state_pb2",
    "envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2",
    "envoy.extensions.http.stateful_session.cookie.v3.cookie_pb2",
    "envoy.extensions.http.stateful_session.header.v3.header_pb2",
    "envoy.extensions.matching.common_inputs.network.v3.network_inputs_pb2",
    "envoy.extensions.matching.input_matchers.ip.v3.ip_pb2",
    "envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2",
    "envoy.extensions.retry.priority.previous_priorities.v3.previous_priorities_config_pb2",
    "envoy.extensions.transport_sockets.internal_upstream.v3.internal_upstream_pb2",
    "envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2",
    "envoy.extensions.transport_sockets.tls.v3.tls_pb2",
    "envoy.extensions.upstreams.http.v3.http_protocol_options_pb2",
    "google.protobuf.wrappers_pb2",
    "xds.type.matcher.v3.ip_pb2",
    "xds.type.matcher.v3.matcher_pb2",
)


class MalformedResource(MeshError):
    """A dictionary that is no resource of its type."""


@cache
def _load() -> None:
    for name in _MODULES:
        importlib.import_module(name)


@cache
def _message(type_url: str) -> type[Message]:
    _load()
    name = type_url.rpartition("/")[2]
    pool = descriptor_pool.Default()
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


_ENCODER: Final = Encoder(_message)


def pack(type_url: str, resource: Mapping[str, Any]) -> bytes:
    """Serialise one resource, the same bytes for the same content."""
    try:
        message = _ENCODER.message(type_url, resource)
    except NotEncodable as e:
        name = resource.get("name") or resource.get("cluster_name")
        raise MalformedResource(f"{type_url.rpartition('.')[2]} {name}: {e}") from e
    return bytes(message.SerializeToString(deterministic=True))


def packed(name: str, message: Mapping[str, Any]) -> Packed:
    """Encode a part of a resource (by its message's full name) that is used again and again."""
    return Packed(pack(name, message))


def unpack(type_url: str, payload: bytes) -> dict[str, Any]:
    """Read a resource back, for tests and for people."""
    message = _message(type_url)()
    message.ParseFromString(payload)
    return json_format.MessageToDict(message, preserving_proto_field_name=True)
