"""Providers to Envoy's ext_authz filters; an rbac filter before each says whether to ask it."""

from __future__ import annotations

from typing import Any, Final

from mesh.model import StringMatch
from waypoint.config.security.model import Provider
from waypoint.config.security.rbac import JWT_FILTER, text_matcher

Proto = dict[str, Any]

_TYPES: Final = "type.googleapis.com/envoy.extensions.filters"
# Where rbac filters leave what their shadow rules found (well-known names of Envoy's filters).
_HTTP_RBAC: Final = "envoy.filters.http.rbac"
_TCP_RBAC: Final = "envoy.filters.network.rbac"


def shadow_prefix(provider: str) -> str:
    """Name the results of the shadow rules that say whether to ask a provider."""
    return f"ambit_custom_{provider}_"


def asked(provider: str, tcp: bool = False) -> Proto:
    """Match what the shadow rules leave behind where they matched, as a MetadataMatcher."""
    return {
        "filter": _TCP_RBAC if tcp else _HTTP_RBAC,
        "path": [{"key": shadow_prefix(provider) + "shadow_effective_policy_id"}],
        "value": {"present_match": True},
    }


def judged(provider: str) -> Proto:
    """Match that the shadow rules ran at all, as an RBAC permission."""
    matcher = {
        "filter": _HTTP_RBAC,
        "path": [{"key": shadow_prefix(provider) + "shadow_engine_result"}],
        "value": {"present_match": True},
    }
    return {"sourced_metadata": {"metadata_matcher": matcher}}


def _cluster(provider: Provider) -> tuple[str, str]:
    host = provider.backend.service.partition("/")[2]
    return f"outbound|{provider.backend.port}||{host}", host


def _duration(seconds: float) -> str:
    return f"{seconds:.3f}s"


def _headers(values: tuple[StringMatch, ...]) -> Proto:
    return {"patterns": [text_matcher(value, ignore_case=True) for value in values]}


def _grpc_service(provider: Provider) -> Proto:
    cluster, host = _cluster(provider)
    # The cluster's name has a "|", which no authority may have.
    service = {"cluster_name": cluster, "authority": host}
    return {"envoy_grpc": service, "timeout": _duration(provider.timeout)}


def _http_service(provider: Provider) -> Proto:
    cluster, host = _cluster(provider)
    out: Proto = {
        "server_uri": {
            "uri": f"http://{host}",
            "cluster": cluster,
            "timeout": _duration(provider.timeout),
        }
    }
    if provider.path_prefix:
        out["path_prefix"] = provider.path_prefix
    if provider.added_headers:
        out["authorization_request"] = {
            "headers_to_add": [
                # "%" starts a command of Envoy's formatter.
                {"key": name, "value": value.replace("%", "%%")}
                for name, value in provider.added_headers
            ]
        }
    answer = {
        "allowed_upstream_headers": provider.upstream_headers,
        "allowed_client_headers": provider.downstream_headers,
        "allowed_client_headers_on_success": provider.downstream_headers_allowed,
    }
    found = {name: _headers(values) for name, values in answer.items() if values}
    if found:
        out["authorization_response"] = found
    return out


def http_filter(provider: Provider) -> Proto:
    """Write the filter of requests that asks a provider where the shadow rules matched."""
    config: Proto = {
        "@type": f"{_TYPES}.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "failure_mode_allow": provider.fail_open,
        "status_on_error": {"code": provider.status_on_error},
        "clear_route_cache": provider.clear_route_cache,
        "metadata_context_namespaces": [JWT_FILTER],
        "filter_enabled_metadata": asked(provider.name),
        # Where the provider answers with headers, they are well-formed ones.
        "validate_mutations": True,
    }
    if provider.grpc:
        config["grpc_service"] = _grpc_service(provider)
    else:
        config["http_service"] = _http_service(provider)
        if provider.check_headers:
            config["allowed_headers"] = _headers(provider.check_headers)
    if provider.body_bytes:
        config["with_request_body"] = {
            "max_request_bytes": provider.body_bytes,
            "allow_partial_message": provider.body_partial,
            "pack_as_bytes": provider.body_raw,
        }
    return {"name": f"ambit.ext_authz.{provider.name}", "typed_config": config}


def network_filter(provider: Provider) -> Proto:
    """Write the filter of connections; the provider must speak gRPC."""
    return {
        "name": f"ambit.ext_authz.{provider.name}",
        "typed_config": {
            "@type": f"{_TYPES}.network.ext_authz.v3.ExtAuthz",
            "stat_prefix": f"ambit_{provider.name}",
            "grpc_service": _grpc_service(provider),
            "transport_api_version": "V3",
            "failure_mode_allow": provider.fail_open,
            "filter_enabled_metadata": asked(provider.name, tcp=True),
        },
    }
