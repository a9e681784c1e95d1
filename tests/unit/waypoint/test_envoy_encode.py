"""Proto-JSON to messages: the same as json_format's, and the same bytes every time."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from mesh.xds.types import CLUSTER, LISTENER, ROUTES
from waypoint.config.envoy.pack import MalformedResource, _message, pack, packed, unpack

T = "type.googleapis.com/"
ROUTER = {
    "@type": f"{T}envoy.extensions.filters.http.router.v3.Router",
    "suppress_envoy_headers": True,
}
MANAGER = {
    "@type": f"{T}envoy.extensions.filters.network.http_connection_manager.v3"
    ".HttpConnectionManager",
    "stat_prefix": "x",
    "codec_type": "HTTP2",
    "http_filters": [{"name": "router", "typed_config": ROUTER}],
    "http2_protocol_options": {"allow_connect": True, "max_concurrent_streams": 100},
    "stream_idle_timeout": "0s",
    "request_timeout": "1.5s",
    "xff_num_trusted_hops": 0,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    (CLUSTER, {"name": "c", "type": "EDS", "connect_timeout": "0.000000001s"}),
    (CLUSTER, {"name": "c", "connectTimeout": "12s", "lbPolicy": "RING_HASH"}),
    (CLUSTER, {"name": "c", "per_connection_buffer_limit_bytes": 7, "alt_stat_name": ""}),
    (
        CLUSTER,
        {
            "name": "c",
            "circuit_breakers": {
                "thresholds": [
                    {
                        "priority": "HIGH",
                        "max_requests": 0,
                        "retry_budget": {"budget_percent": {"value": 12.5}},
                    }
                ]
            },
            "metadata": {
                "filter_metadata": {
                    "a": {"n": 1, "f": 1.5, "t": "x", "b": True, "z": None, "l": [1, {"k": "v"}]}
                }
            },
        },
    ),
    (CLUSTER, {"name": "c", "typed_extension_protocol_options": {"b": ROUTER, "a": ROUTER}}),
    (
        LISTENER,
        {
            "name": "l",
            "address": {"socket_address": {"address": "::", "port_value": 15008}},
            "continue_on_listener_filters_timeout": False,
            "filter_chains": [{"filters": [{"name": "h", "typed_config": MANAGER}]}],
            "filter_chain_matcher": {
                "matcher_tree": {
                    "input": {"name": "p", "typed_config": {"@type": f"{T}google.protobuf.Empty"}},
                    "exact_match_map": {
                        "map": {
                            str(n): {
                                "action": {
                                    "name": "a",
                                    "typed_config": {
                                        "@type": f"{T}google.protobuf.StringValue",
                                        "value": f"chain{n}",
                                    },
                                }
                            }
                            for n in range(20)
                        }
                    },
                }
            },
        },
    ),
    (
        ROUTES,
        {
            "name": "r",
            "virtual_hosts": [
                {
                    "name": "*",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "direct_response": {
                                "status": 503,
                                "body": {"inline_bytes": "aGVsbG8="},
                            },
                        },
                        {
                            "match": {"prefix": "/"},
                            "route": {
                                "cluster": "c",
                                "retry_policy": {"host_selection_retry_max_attempts": "5"},
                            },
                        },
                    ],
                }
            ],
        },
    ),
]


@pytest.mark.parametrize(("type_url", "value"), CASES)
def test_the_same_message_as_json_format_makes(type_url: str, value: dict[str, Any]) -> None:
    expected = _message(type_url)()
    json_format.ParseDict(value, expected)
    back = json_format.MessageToDict(expected, preserving_proto_field_name=True)
    assert unpack(type_url, pack(type_url, value)) == back


def test_order_of_keys_does_not_matter() -> None:
    """Also within what is packed as Any: versions are hashes, and replicas must agree."""
    listener = CASES[5][1]

    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: turned(v) for k, v in reversed(value.items())}
        return [turned(v) for v in value] if isinstance(value, list) else value

    outer = {
        "name": "c",
        "typed_extension_protocol_options": {
            "x": {
                "@type": f"{T}envoy.config.listener.v3.Listener",
                **listener,
            }
        },
    }
    assert pack(LISTENER, listener) == pack(LISTENER, turned(listener))
    assert pack(CLUSTER, outer) == pack(CLUSTER, turned(outer))


def test_parts_may_be_encoded_before() -> None:
    listener = CASES[5][1]
    (chain,) = listener["filter_chains"]
    ready = packed("envoy.config.listener.v3.FilterChain", chain)
    assert pack(LISTENER, {**listener, "filter_chains": [ready]}) == pack(LISTENER, listener)


@pytest.mark.parametrize(
    ("type_url", "value", "says"),
    [
        (CLUSTER, {"name": "c", "nmae": 1}, "nmae"),
        (CLUSTER, {"name": "c", "connect_timeout": "1m"}, "connect_timeout"),
        (CLUSTER, {"name": "c", "connect_timeout": 1}, "connect_timeout"),
        (CLUSTER, {"name": "c", "type": "NOTHING"}, "NOTHING"),
        (CLUSTER, {"name": 5}, "Cluster"),
        (CLUSTER, {"name": "c", "per_connection_buffer_limit_bytes": True}, "no number"),
        (CLUSTER, {"name": "c", "per_connection_buffer_limit_bytes": -1}, "Cluster c"),
        (CLUSTER, {"name": "c", "health_checks": {"a": 1}}, "health_checks"),
        (CLUSTER, {"name": "c", "load_assignment": [1]}, "load_assignment"),
        (
            CLUSTER,
            {"name": "c", "typed_extension_protocol_options": {"a": {"x": 1}}},
            "no @type",
        ),
    ],
)
def test_what_no_field_takes_is_named(type_url: str, value: dict[str, Any], says: str) -> None:
    with pytest.raises(MalformedResource) as e:
        pack(type_url, value)
    assert says in str(e.value)
