"""Routing objects and RequestAuthentications that our CRDs take, and such that they refuse."""

from __future__ import annotations

from typing import Any, Final

Spec = dict[str, Any]

_WEB: Final = {"destination": {"host": "web"}}


def _rule(**rule: Any) -> Spec:
    acts = {"route", "redirect", "directResponse", "delegate"} & set(rule)
    return {"hosts": ["web"], "http": [rule if acts else {**rule, "route": [_WEB]}]}


def _match(**match: Any) -> Spec:
    return _rule(match=[match])


def _policy(**policy: Any) -> Spec:
    return {"host": "web", "trafficPolicy": policy}


def _balancer(**balancer: Any) -> Spec:
    return _policy(loadBalancer=balancer)


def _hash(**key: Any) -> Spec:
    return _balancer(consistentHash=key)


def _jwt(**rule: Any) -> Spec:
    return {"jwtRules": [{"issuer": "https://issuer.example", **rule}]}


GOOD_VIRTUAL_SERVICES: Final[list[Spec]] = [
    _rule(),
    {"hosts": ["*"], "http": [{"route": [_WEB]}]},
    {"hosts": ["a.example.com", "*.example.com", "Web"], "http": [{"route": [_WEB]}]},
    {"http": [{"route": [_WEB]}]},
    {**_rule(), "gateways": ["mesh", "ns/gw"], "exportTo": ["*", ".", "ns"]},
    _match(
        uri={"prefix": "/"},
        method={"exact": "GET"},
        authority={"regex": ".*"},
        scheme={"exact": "http"},
        headers={"x": {}, "y": {"exact": ""}, "z": {"regex": "*"}},
        withoutHeaders={"a": {"prefix": "b"}},
        queryParams={"q": {"exact": "1"}},
        port=80,
        ignoreUriCase=True,
        sourceNamespace="ns",
        sourceLabels={"app": "a"},
        gateways=["mesh"],
        name="m",
    ),
    _rule(route=[{**_WEB, "weight": 90}, {**_WEB, "weight": 0}, _WEB]),
    _rule(
        route=[
            {
                "destination": {
                    "host": "web.ns.svc.cluster.local",
                    "subset": "v1",
                    "port": {"number": 1},
                },
                "headers": {"request": {"set": {"a": "b"}, "remove": ["c"]}},
            }
        ]
    ),
    _rule(redirect={}),
    _rule(redirect={"uri": "/x", "redirectCode": 308, "derivePort": "FROM_REQUEST_PORT"}),
    _rule(directResponse={"status": 503, "body": {"string": "no"}}),
    _rule(directResponse={"status": 200, "body": {"bytes": "aGk="}}),
    _rule(delegate={"name": "a", "namespace": "b"}),
    _rule(delegate={"name": "a"}),
    _rule(rewrite={"uri": "/", "authority": "a"}),
    _rule(rewrite={"uriRegexRewrite": {"match": "a(.*)", "rewrite": r"\1"}}),
    *(_rule(timeout=text) for text in ("0s", "1.5s", "250ms", "1h30m", "1000us")),
    _rule(retries={"attempts": 0}),
    _rule(retries={"attempts": 3, "perTryTimeout": "2s", "retryOn": "5xx, 503 ,reset,unavailable"}),
    _rule(
        retries={"attempts": 1, "retryOn": "", "backoff": "25ms", "retryIgnorePreviousHosts": False}
    ),
    _rule(fault={"delay": {"fixedDelay": "5s", "percentage": {"value": 0.1}}}),
    _rule(fault={"abort": {"grpcStatus": "UNAVAILABLE", "percentage": {"value": 100}}}),
    _rule(mirror={"host": "b"}, mirrorPercentage={"value": 50}),
    _rule(mirrors=[{"destination": {"host": "b"}, "percentage": {"value": 1.5}}]),
    _rule(
        corsPolicy={
            "allowOrigins": [{"exact": "*"}],
            "allowMethods": ["GET"],
            "maxAge": "24h",
            "allowCredentials": True,
            "unmatchedPreflights": "IGNORE",
        }
    ),
    _rule(headers={"response": {"add": {"a": ""}}}),
    {"hosts": ["a"], "http": [{"route": [_WEB]}] * 5000},
    {
        "hosts": ["a"],
        "tls": [{"match": [{"port": 443, "sniHosts": ["*.a.example"]}], "route": [_WEB]}],
        "tcp": [{"match": [{"port": 80}], "route": [{**_WEB, "weight": 100}]}, {"route": [_WEB]}],
    },
]

BAD_VIRTUAL_SERVICES: Final[list[tuple[Spec, str]]] = [
    ({"hosts": ["a"]}, "it has no rules; write http, tcp or tls"),
    ({"tcp": [{"route": [_WEB]}]}, "without hosts it is a delegate"),
    ({"gateways": ["mesh"], "http": [{"route": [_WEB]}]}, "without hosts it is a delegate"),
    ({**_rule(), "hosts": ["a b"]}, r"hosts\[0\].*name_of_a_host_or_wildcard"),
    ({**_rule(), "hosts": ["*a"]}, r"hosts\[0\]"),
    ({**_rule(), "hosts": "a"}, "spec.hosts"),
    ({**_rule(), "htpp": []}, 'unknown field "spec.htpp"'),
    ({"hosts": ["a"], "http": [{}]}, "set exactly one of route, redirect, directResponse and"),
    (_rule(route=[_WEB], redirect={}), "set exactly one of route, redirect"),
    (_rule(route=[]), r"http\[0\].route.*at least 1"),
    (_rule(route=[{}]), r"route\[0\].destination: Required"),
    (_rule(route=[{"destination": {}}]), "destination.host: Required"),
    (_rule(route=[{"destination": {"host": "*a"}}]), "host.*name_of_a_host"),
    (_rule(route=[{**_WEB, "weight": -1}]), r"route\[0\].weight"),
    (_rule(route=[{"destination": {"host": "a", "port": {}}}]), "port.number: Required"),
    (_rule(route=[{"destination": {"host": "a", "port": {"number": 0}}}]), "port.number"),
    (_rule(route=[{"destination": {"host": "a", "subset": "A|b"}}]), "destination.subset"),
    (_match(uri={}), "uri.*at least 1"),
    (_match(uri={"exact": "a", "prefix": "b"}), "uri.*at most 1"),
    (_match(uri={"regexp": "a"}), r'unknown field "spec.http\[0\].match\[0\].uri.regexp"'),
    (_match(uri="/a"), r"match\[0\].uri"),
    (_match(headers={"x": {"exact": "a", "prefix": "b"}}), "headers.x.*at most 1"),
    (_match(headers={"x": {"exact": 5}}), "headers.x.exact"),
    (_match(port=65536), r"match\[0\].port"),
    (_match(sourceNamespace="a/b"), "sourceNamespace.*name_of_a_namespace"),
    (_rule(redirect={"redirectCode": 300}), "redirectCode.*supported values"),
    (_rule(redirect={"port": 80, "derivePort": "FROM_REQUEST_PORT"}), "set port or derivePort"),
    (_rule(redirect={"uri": "/a", "prefixRewrite": "/b"}), "set uri or prefixRewrite"),
    (_rule(redirect={"uri": "/a\r\nb"}), "uri.*text_of_one_line"),
    (_rule(redirect={"scheme": "ftp"}), "redirect.scheme"),
    (_rule(directResponse={}), "directResponse.status: Required"),
    (_rule(directResponse={"status": 100}), "directResponse.status"),
    (_rule(directResponse={"status": 200, "body": {"string": "x" * 4097}}), "body.string"),
    (_rule(directResponse={"status": 200, "body": {"bytes": "%"}}), "body.bytes"),
    (_rule(delegate={}), "delegate.name: Required"),
    (
        _rule(rewrite={"uri": "/", "uriRegexRewrite": {"match": "a", "rewrite": ""}}),
        "set uri or uriRegexRewrite",
    ),
    (_rule(rewrite={"uriRegexRewrite": {"rewrite": "a"}}), "match: Required"),
    (_rule(timeout="5"), "timeout.*duration_as_250ms_or_1h30m"),
    (_rule(timeout=5), "timeout"),
    (_rule(timeout="-1s"), "timeout"),
    (_rule(retries={"attempts": -1}), "retries.attempts"),
    (_rule(retries={"attempts": 1, "retryOn": "5xxx"}), "conditions_of_envoy"),
    (_rule(retries={"attempts": 1, "retryOn": "600"}), "conditions_of_envoy"),
    (_rule(fault={"delay": {}}), "set fixedDelay"),
    (
        _rule(fault={"delay": {"fixedDelay": "1s", "percentage": {"value": 101}}}),
        "percentage.value",
    ),
    (_rule(fault={"abort": {}}), "set one of httpStatus and grpcStatus"),
    (_rule(fault={"abort": {"httpStatus": 500, "grpcStatus": "OK"}}), "set one of httpStatus and"),
    (_rule(fault={"abort": {"grpcStatus": "NOPE"}}), "grpcStatus.*supported values"),
    (_rule(fault={"abort": {"httpStatus": 99}}), "abort.httpStatus"),
    (_rule(mirrors=[{}]), r"mirrors\[0\].destination: Required"),
    (_rule(mirrors=[{"destination": {"host": "a"}}] * 17), "mirrors.*at most 16"),
    (_rule(corsPolicy={"allowOrigins": [{}]}), r"allowOrigins\[0\].*at least 1"),
    (_rule(corsPolicy={"allowOrigins": ["*"]}), r"allowOrigins\[0\]"),
    (_rule(corsPolicy={"maxAge": "1d"}), "maxAge"),
    (_rule(headers={"request": {"set": {"a": "b\nc"}}}), "set.a.*text_of_one_line"),
    (_rule(headers={"set": {"a": "b"}}), r'unknown field "spec.http\[0\].headers.set"'),
    ({"hosts": ["a"], "tls": [{"route": [_WEB]}]}, r"tls\[0\].match: Required"),
    ({"hosts": ["a"], "tls": [{"match": [{}], "route": [_WEB]}]}, "sniHosts: Required"),
    ({"hosts": ["a"], "tcp": [{}]}, r"tcp\[0\].route: Required"),
]

GOOD_DESTINATION_RULES: Final[list[Spec]] = [
    {"host": "web"},
    {"host": "*.example.com", "exportTo": ["."]},
    {"host": "*"},
    {"host": "web", "workloadSelector": {"matchLabels": {"app": "a"}}},
    {
        "host": "web.ns.svc.cluster.local",
        "subsets": [
            {"name": "v1", "labels": {"app.kubernetes.io/version": "v1"}},
            {"name": "v2", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}},
        ],
    },
    *(
        _balancer(simple=simple)
        for simple in (
            "UNSPECIFIED",
            "LEAST_CONN",
            "RANDOM",
            "PASSTHROUGH",
            "ROUND_ROBIN",
            "LEAST_REQUEST",
        )
    ),
    _hash(httpHeaderName="x-user"),
    _hash(httpCookie={"name": "c", "path": "/", "ttl": "0s"}, maglev={"tableSize": 65537}),
    _hash(useSourceIp=True, ringHash={"minimumRingSize": 1024}),
    _hash(httpQueryParameterName="q", minimumRingSize=4),
    _balancer(
        simple="ROUND_ROBIN", warmup={"duration": "1m", "minimumPercent": 10, "aggression": 1}
    ),
    _balancer(localityLbSetting={"distribute": [{"from": "a/b/*", "to": {"a/b": 80, "c": 20}}]}),
    _balancer(localityLbSetting={"enabled": True, "failover": [{"from": "a", "to": "b"}]}),
    _balancer(localityLbSetting={"failoverPriority": ["topology.kubernetes.io/zone=a"]}),
    _policy(
        connectionPool={
            "tcp": {
                "maxConnections": 1,
                "connectTimeout": "30ms",
                "tcpKeepalive": {"time": "7200s"},
            },
            "http": {"http2MaxRequests": 1000, "h2UpgradePolicy": "UPGRADE", "maxRetries": 0},
        },
        outlierDetection={
            "consecutive5xxErrors": 7,
            "interval": "5m",
            "baseEjectionTime": "15m",
            "maxEjectionPercent": 100,
        },
    ),
    _policy(tls={"mode": "ISTIO_MUTUAL"}),
    _policy(tls={"mode": "DISABLE"}),
    _policy(tls={"mode": "SIMPLE", "sni": "a.example", "subjectAltNames": ["a.example"]}),
    _policy(tls={"mode": "MUTUAL", "credentialName": "certs"}),
    _policy(tls={"mode": "MUTUAL", "clientCertificate": "/a", "privateKey": "/b"}),
    _policy(
        portLevelSettings=[
            {"port": {"number": 80}, "loadBalancer": {"simple": "RANDOM"}},
            {"port": {"number": 9080}, "tls": {"mode": "SIMPLE"}},
        ]
    ),
    _policy(proxyProtocol={"version": "V2"}, retryBudget={"percent": 20.5}),
]

BAD_DESTINATION_RULES: Final[list[tuple[Spec, str]]] = [
    ({}, "spec.host: Required"),
    ({"host": ""}, "spec.host"),
    ({"host": "a b"}, "spec.host.*name_of_a_host_or_wildcard"),
    ({"host": "a.*"}, "spec.host"),
    ({"hosts": ["a"], "host": "a"}, 'unknown field "spec.hosts"'),
    ({"host": "a", "subsets": [{}]}, r"subsets\[0\].name: Required"),
    ({"host": "a", "subsets": [{"name": "V 1"}]}, r"subsets\[0\].name.*lower_case_letters"),
    ({"host": "a", "subsets": [{"name": "a"}, {"name": "a"}]}, r"subsets\[1\].*Duplicate value"),
    ({"host": "a", "subsets": [{"name": "a", "labels": {"v": 1}}]}, "labels.v"),
    (
        {"host": "a", "subsets": [{"name": "a", "label": {}}]},
        r'unknown field "spec.subsets\[0\].label"',
    ),
    (_balancer(simple="FASTEST"), "simple.*supported values"),
    (
        _balancer(simple="RANDOM", consistentHash={"useSourceIp": True}),
        "set simple or consistentHash",
    ),
    (_hash(), "set exactly one of httpHeaderName"),
    (_hash(useSourceIp=True, httpHeaderName="a"), "set exactly one of httpHeaderName"),
    (_hash(useSourceIp=True, ringHash={}, maglev={}), "set ringHash or maglev"),
    (_hash(httpCookie={}), "httpCookie.name: Required"),
    (_hash(useSourceIp=True, maglev={"tableSize": 5000012}), "tableSize"),
    (
        _balancer(
            localityLbSetting={
                "distribute": [{"from": "a", "to": {"b": 100}}],
                "failoverPriority": ["topology.kubernetes.io/zone"],
            }
        ),
        "set distribute or failover, not both",
    ),
    (
        _balancer(localityLbSetting={"distribute": [{"from": "*/a", "to": {"b": 100}}]}),
        "from.*place_as_region",
    ),
    (_balancer(localityLbSetting={"distribute": [{"from": "a", "to": {"b": 0}}]}), "to.b"),
    (_balancer(warmup={}), "warmup.duration: Required"),
    (_policy(connectionPool={"tcp": {"maxConnections": -1}}), "tcp.maxConnections"),
    (_policy(connectionPool={"tcp": {"maxConnections": "5"}}), "tcp.maxConnections"),
    (_policy(connectionPool={"tcp": {"connectTimeout": "5"}}), "connectTimeout.*duration_as"),
    (
        _policy(connectionPool={"htpp": {}}),
        'unknown field "spec.trafficPolicy.connectionPool.htpp"',
    ),
    (_policy(connectionPool={"http": {"h2UpgradePolicy": "YES"}}), "h2UpgradePolicy"),
    (_policy(outlierDetection={"maxEjectionPercent": 101}), "maxEjectionPercent"),
    (_policy(outlierDetection={"consecutive5xxErrors": -1}), "consecutive5xxErrors"),
    (_policy(tls={"mode": "MTLS"}), "tls.mode.*supported values"),
    (_policy(tls={"mode": "MUTUAL"}), "mode MUTUAL needs credentialName"),
    (_policy(tls={"mode": "ISTIO_MUTUAL", "credentialName": "a"}), "name no others"),
    (_policy(portLevelSettings=[{"port": {"number": 80}}] * 2), "every port may be there once"),
    (
        _policy(portLevelSettings=[{"port": {"name": "http"}}]),
        "port.number: Required|unknown field",
    ),
    (_policy(retryBudget={"percent": 101}), "retryBudget.percent"),
]

GOOD_REQUEST_AUTHENTICATIONS: Final[list[Spec]] = [
    {},
    {"jwtRules": []},
    _jwt(),
    _jwt(jwksUri="https://issuer.example/keys", audiences=["a"], timeout="5s"),
    _jwt(jwks='{"keys": []}', forwardOriginalToken=True),
    _jwt(fromHeaders=[{"name": "x-jwt", "prefix": "Bearer "}], fromParams=["t"], fromCookies=["c"]),
    _jwt(
        outputPayloadToHeader="x-payload", outputClaimToHeaders=[{"header": "x-a", "claim": "a.b"}]
    ),
    {"targetRefs": [{"kind": "Service", "name": "x"}], **_jwt()},
    {"targetRef": {"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "x"}, **_jwt()},
    {"selector": {"matchLabels": {"app": "a"}}, **_jwt()},
]

BAD_REQUEST_AUTHENTICATIONS: Final[list[tuple[Spec, str]]] = [
    ({"jwtRules": [{}]}, r"jwtRules\[0\].issuer: Required"),
    (_jwt(issuer=""), "issuer"),
    (_jwt(jwks="{}", jwksUri="https://a"), "set jwks or jwksUri, not both"),
    (_jwt(jwksUri="ftp://a"), "jwksUri.*url_that_begins_with_http_or_https"),
    (_jwt(jwksUri="https://"), "jwksUri"),
    (_jwt(fromHeaders=[{}]), r"fromHeaders\[0\].name: Required"),
    (_jwt(fromHeaders=[{"name": "a b"}]), "name.*name_of_a_header"),
    (_jwt(outputClaimToHeaders=[{"header": "x"}]), "claim: Required"),
    (_jwt(issuers=["a"]), 'unknown field "spec.jwtRules.0..issuers"'),
    (_jwt(timeout="5"), "timeout"),
    ({"jwtRules": [{"issuer": "a"}] * 65}, "jwtRules.*at most 64"),
    ({"selector": {}, "targetRefs": [{"kind": "Service", "name": "x"}]}, "set one of selector"),
    ({"targetRefs": [{"kind": "Pod", "name": "x"}]}, "kind must be Service"),
    ({"targetRefs": []}, "targetRefs.*at least 1"),
    ({"selector": {"matchLabels": {"a": "*"}}}, "value_of_a_label_without_wildcards"),
]

_GATEWAY: Final = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint"}
_ENVOY: Final = {"providers": [{"name": "envoy"}]}

GOOD_TELEMETRIES: Final[list[Spec]] = [
    {},
    {"accessLogging": [_ENVOY]},
    {"accessLogging": [{"disabled": True}]},
    {"accessLogging": [{**_ENVOY, "filter": {"expression": "response.code >= 400"}}]},
    {"accessLogging": [{"match": {"mode": "SERVER"}}], "targetRefs": [_GATEWAY]},
    {"targetRef": _GATEWAY, "tracing": [{"randomSamplingPercentage": 10.0}]},
    {"metrics": [{**_ENVOY, "overrides": [{"disabled": True}]}]},
    {"selector": {"matchLabels": {"app": "a"}}, "accessLogging": [_ENVOY]},
]

BAD_TELEMETRIES: Final[list[tuple[Spec, str]]] = [
    ({"accessLogging": {}}, "accessLogging"),
    ({"accessLogging": [{"providers": [{}]}]}, r"providers\[0\].name: Required"),
    ({"accessLogging": [{"match": {"mode": "BOTH"}}]}, "mode.*supported values"),
    ({"accessLogging": [{"filter": {"expression": "x" * 1025}}]}, "expression"),
    ({"accessLogging": [{"disable": True}]}, 'unknown field "spec.accessLogging.0..disable"'),
    ({"targetRefs": []}, "targetRefs.*at least 1"),
    ({"targetRefs": [{**_GATEWAY, "namespace": "b"}]}, "another namespace is not supported"),
    ({"selector": {}, "targetRefs": [_GATEWAY]}, "set one of selector"),
]

GROUPS: Final = {
    "Telemetry": "telemetry.istio.io",
    "VirtualService": "networking.istio.io",
    "DestinationRule": "networking.istio.io",
    "RequestAuthentication": "security.istio.io",
}
GOOD: Final[dict[str, list[Spec]]] = {
    "Telemetry": GOOD_TELEMETRIES,
    "VirtualService": GOOD_VIRTUAL_SERVICES,
    "DestinationRule": GOOD_DESTINATION_RULES,
    "RequestAuthentication": GOOD_REQUEST_AUTHENTICATIONS,
}
BAD: Final[dict[str, list[tuple[Spec, str]]]] = {
    "Telemetry": BAD_TELEMETRIES,
    "VirtualService": BAD_VIRTUAL_SERVICES,
    "DestinationRule": BAD_DESTINATION_RULES,
    "RequestAuthentication": BAD_REQUEST_AUTHENTICATIONS,
}
