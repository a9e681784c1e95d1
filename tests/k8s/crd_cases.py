"""Policies that a server with our CRDs takes, and such that it refuses with these words."""

from __future__ import annotations

from typing import Any, Final

Spec = dict[str, Any]


def _from(**source: Any) -> Spec:
    return {"rules": [{"from": [{"source": source}]}]}


def _to(**operation: Any) -> Spec:
    return {"rules": [{"to": [{"operation": operation}]}]}


def _when(**condition: Any) -> Spec:
    return {"rules": [{"when": [condition]}]}


def _target(group: str | None, kind: str, **more: str) -> Spec:
    target = {"kind": kind, "name": "x", **more}
    return {"targetRefs": [target if group is None else {"group": group, **target}]}


_GATEWAY = "gateway.networking.k8s.io"
_SELECTOR = {"selector": {"matchLabels": {"app": "a"}}}

GOOD_POLICIES: Final[list[Spec]] = [
    {},
    {"rules": []},
    {"rules": [{}]},
    {"action": "ALLOW"},
    {"action": "DENY", "rules": [{}]},
    {"action": "AUDIT", "rules": [{}]},
    {"action": "CUSTOM", "provider": {"name": "p"}, "rules": [{}]},
    {"selector": {}},
    {"selector": {"matchLabels": {}}},
    {"selector": {"matchLabels": {"app.kubernetes.io/name": "a_b.c-1", "empty": ""}}},
    _target("", "Service"),
    _target(None, "Service"),
    _target("core", "Service", namespace=""),
    _target(_GATEWAY, "Gateway"),
    _target(_GATEWAY, "GatewayClass"),
    _target("networking.istio.io", "ServiceEntry"),
    {"targetRef": {"group": _GATEWAY, "kind": "Gateway", "name": "x"}},
    _from(principals=["*", "cluster.local/ns/a/sa/b", "*/sa/b", "cluster.local/ns/a/*"]),
    _from(principals=["spiffe://cluster.local/ns/a/sa/b"]),
    _from(notPrincipals=["*"], namespaces=["a", "a*"], notNamespaces=["*-dev"]),
    _from(serviceAccounts=["a", "ns/a.b-c"], notServiceAccounts=["ns/b"]),
    _from(ipBlocks=["10.0.0.0/8", "192.0.2.1", "fd00::/8", "2001:db8::1"]),
    _from(notIpBlocks=["0.0.0.0/0"], remoteIpBlocks=["10.1.2.3/32"], notRemoteIpBlocks=["::1"]),
    _from(requestPrincipals=["*"], notRequestPrincipals=["issuer/*"], trustDomains=["a.b"]),
    _from(ipBlocks=[f"10.0.{i}.{j}" for i in range(8) for j in range(250)]),
    _to(ports=["1", "80", "8080", "65535"], notPorts=["22"]),
    _to(hosts=["*.example.com"], methods=["GET"], paths=["/a/{*}/b/{**}", "*"], notPaths=["/x"]),
    _when(key="source.ip", values=["10.0.0.0/8"]),
    _when(key="destination.port", notValues=["22"]),
    _when(key="source.principal", values=["*"]),
    _when(key="request.headers[x-token]", values=["a"]),
    _when(key="request.auth.claims[a][b]", values=["c"]),
    _when(key="request.auth.audiences", values=["c"]),
    _when(key="connection.sni", values=["*.example.com"]),
    _when(key="experimental.envoy.filters.network.mysql_proxy[db.table]", values=["a"]),
    {"rules": [{}] * 512},
]

BAD_POLICIES: Final[list[tuple[Spec, str]]] = [
    ({"action": "PERMIT"}, r'spec.action.*supported values: "ALLOW", "DENY", "AUDIT", "CUSTOM"'),
    ({"action": "deny"}, "spec.action"),
    ({**_SELECTOR, **_target("", "Service")}, "set one of selector, targetRef and targetRefs only"),
    ({"action": "CUSTOM", "rules": [{}]}, "action CUSTOM needs provider.name"),
    ({"provider": {"name": "p"}}, "no other action has a provider"),
    ({"action": "CUSTOM", "provider": {}, "rules": [{}]}, "spec.provider.name"),
    ({"action": "DENY"}, r"without rules this action never takes effect: write rules: \[{}\]"),
    ({"selector": {"matchLabels": {"app": "a*"}}}, "value_of_a_label_without_wildcards"),
    ({"selector": {"matchLabels": {"a*": "a"}}}, "every key must be the name of a label"),
    ({"selector": {"matchLabels": {"": "a"}}}, "every key must be the name of a label"),
    ({"selector": {"matchLabel": {"app": "a"}}}, 'unknown field "spec.selector.matchLabel"'),
    ({"targetRefs": []}, "spec.targetRefs.*at least 1"),
    (_target(_GATEWAY, "Service"), "kind must be Service"),
    (_target("", "Gateway"), "kind must be Service"),
    (_target("", "Pod"), "kind must be Service"),
    (_target("", "Service", namespace="b"), "a target in another namespace is not supported"),
    ({"targetRefs": [{"kind": "Service"}]}, r"spec.targetRefs\[0\].name"),
    ({"rules": [{"from": []}]}, r"spec.rules\[0\].from.*at least 1"),
    ({"rules": [{"from": [{}]}]}, r"spec.rules\[0\].from\[0\].source: Required"),
    (_from(), r"spec.rules\[0\].from\[0\].source.*at least 1"),
    (_from(principal=["a"]), r'unknown field "spec.rules\[0\].from\[0\].source.principal"'),
    (_from(principals=[]), "principals.*at least 1"),
    (_from(principals=[""]), r"principals\[0\]"),
    (_from(principals=["a*b"]), r"principals\[0\].*one_star_at_most"),
    (_from(principals=["*a*"]), r"principals\[0\]"),
    (_from(namespaces=[""]), r"namespaces\[0\]"),
    (_from(serviceAccounts=["*"]), r"serviceAccounts\[0\].*namespace_slash_service_account"),
    (_from(serviceAccounts=["a/b/c"]), r"serviceAccounts\[0\]"),
    (_from(ipBlocks=["10.0.0.0/33"]), r"ipBlocks\[0\].*cidr"),
    (_from(ipBlocks=["10.0.0"]), r"ipBlocks\[0\]"),
    (_from(ipBlocks=["example.com"]), r"ipBlocks\[0\]"),
    (_from(ipBlocks=[""]), r"ipBlocks\[0\]"),
    ({"rules": [{"to": []}]}, r"spec.rules\[0\].to.*at least 1"),
    (_to(), r"operation.*at least 1"),
    (_to(ports=["0"]), r"ports\[0\]"),
    (_to(ports=["65536"]), r"ports\[0\].*port_number_from_1_to_65535"),
    (_to(ports=["http"]), r"ports\[0\]"),
    (_to(ports=[80]), r"ports\[0\].*string"),
    (_to(paths=[""]), r"paths\[0\]"),
    (_to(hosts=[]), r"hosts.*at least 1"),
    ({"rules": [{"when": []}]}, r"when.*at least 1"),
    (_when(key="source.ip"), "a condition needs values or notValues"),
    (_when(values=["a"]), "key: Required"),
    (_when(key="source.ipp", values=["a"]), r"when\[0\].key.*key_of_a_condition"),
    (_when(key="request.headers", values=["a"]), r"when\[0\].key"),
    (_when(key="source.ip", values=[""]), r"values\[0\]"),
    ({"rules": [{}] * 513}, "spec.rules.*at most 512"),
    ({"rules": {"from": []}}, "spec.rules"),
]

GOOD_AUTHENTICATIONS: Final[list[Spec]] = [
    {},
    {"mtls": {}},
    *({"mtls": {"mode": mode}} for mode in ("UNSET", "DISABLE", "PERMISSIVE", "STRICT")),
    {**_SELECTOR, "mtls": {"mode": "STRICT"}, "portLevelMtls": {"8080": {"mode": "DISABLE"}}},
    {**_SELECTOR, "portLevelMtls": {"1": {"mode": "STRICT"}, "65535": {"mode": "UNSET"}, "9": {}}},
    {"selector": {"matchLabels": {"app": "a"}}},
]

BAD_AUTHENTICATIONS: Final[list[tuple[Spec, str]]] = [
    ({"mtls": {"mode": "STRICTT"}}, 'spec.mtls.mode.*"UNSET", "DISABLE", "PERMISSIVE", "STRICT"'),
    ({"mtls": "STRICT"}, "spec.mtls.*object|expected map"),
    ({"portLevelMtls": {"80": {"mode": "STRICT"}}}, "portLevelMtls needs selector.matchLabels"),
    ({"selector": {}, "portLevelMtls": {"80": {}}}, "portLevelMtls needs selector.matchLabels"),
    ({**_SELECTOR, "portLevelMtls": {}}, "spec.portLevelMtls.*at least 1"),
    ({**_SELECTOR, "portLevelMtls": {"http": {}}}, "every key must be a port number, 1 to 65535"),
    ({**_SELECTOR, "portLevelMtls": {"0": {}}}, "every key must be a port number"),
    ({**_SELECTOR, "portLevelMtls": {"65536": {}}}, "every key must be a port number"),
    ({**_SELECTOR, "portLevelMtls": {"80": {"mode": "ON"}}}, r"spec.portLevelMtls.80.mode"),
    ({"selector": {"matchLabels": {"app": "*"}}}, "spec.selector.matchLabels.app"),
    ({"mtlss": {"mode": "STRICT"}}, 'unknown field "spec.mtlss"'),
]
