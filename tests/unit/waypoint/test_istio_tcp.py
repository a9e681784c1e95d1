"""VirtualService: tcp and tls rules."""

from __future__ import annotations

from typing import Any

import pytest
from istio_rig import NS, Mesh, hostname, service, to

from waypoint.config.routing import BackendRef, WeightedBackend

WEB = f"{NS}/{hostname('web')}"


def test_tcp_and_tls_rules() -> None:
    mesh = Mesh(service("web", ports=(80, 443)), service("db"))
    key = mesh.virtual(
        {
            "hosts": ["web"],
            "tcp": [
                {
                    "match": [{"port": 80, "sourceNamespace": "a"}, {"port": 443}],
                    "route": [to("db", weight=1), to("web", weight=3, port={"number": 80})],
                }
            ],
            "tls": [
                {
                    "match": [{"port": 443, "sniHosts": ["A.example", "*.b.example"]}],
                    "route": [to("db")],
                }
            ],
        }
    )
    db, web = BackendRef(f"{NS}/{hostname('db')}", 80), BackendRef(WEB, 80)
    (rule,) = mesh.tcp(port=80)
    assert rule.backends == (WeightedBackend(db, 1), WeightedBackend(web, 3))
    assert rule.source_namespaces == ("a",)
    tls, tcp = mesh.tcp(port=443)
    assert tls.sni == ("a.example", "*.b.example")
    assert tls.backends == (WeightedBackend(db),)
    assert tcp.sni == ()
    assert mesh.routes()[80].http is None
    assert mesh.condition(key).reason == "Accepted"


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"tcp": [{"match": [{"sourceLabels": {"a": "b"}}]}]}, "does not know the labels"),
        ({"tcp": [{"match": [{"destinationSubnets": ["10.0.0.0/8"]}]}]}, "this match never"),
        ({"tcp": [{"match": [{"sourceSubnet": "10.0.0.0/8"}]}]}, "this match never"),
        ({"tcp": [{"match": [{"prot": 80}]}]}, "spec.tcp[0].match[0].prot: no such field"),
        ({"tls": [{"match": [{}]}]}, "sniHosts: must name the hosts"),
        ({"tls": [{}]}, "spec.tls[0].match: must have sniHosts"),
        ({"tls": [{"match": [{"sniHosts": ["a b"]}]}]}, "'a b' is not a DNS name"),
    ],
)
def test_a_tcp_match_that_cannot_be_used_never_matches(spec: dict[str, Any], why: str) -> None:
    mesh = Mesh()
    for rules in spec.values():
        rules[0]["route"] = [to("db")]
    condition = mesh.condition(mesh.virtual({"hosts": ["web"], **spec}))
    assert why in condition.message
    assert mesh.routes() == {}
