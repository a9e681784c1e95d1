"""CUSTOM policies as the real Envoy enforces them: providers are really asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from google.rpc import code_pb2
from security_apps import serving
from security_objects import (
    CART,
    Issuer,
    authentication,
    condition,
    indexed,
    policy,
    security,
    source,
    to,
)
from security_rig import WEB, Rig, running

from waypoint.config.routing import BackendRef
from waypoint.config.security import Provider, filters, read_providers

DEV = "spiffe://cluster.local/ns/dev/sa/tool"


@dataclass
class Asked:
    """What the providers were asked: (provider, path, headers)."""

    http: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    grpc: list[Any] = field(default_factory=list)


@contextmanager
def _http_provider(asked: Asked) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {k.lower(): v for k, v in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length") or 0))
            asked.http.append((self.path, {**headers, "body": body.decode()}))
            ok = headers.get("x-pass") == "yes"
            self.send_response(200 if ok else 401)
            self.send_header("x-user", "alice")
            self.send_header("x-reason", "because")
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    with serving(Handler) as port:
        yield port


@contextmanager
def _grpc_provider(asked: Asked) -> Iterator[int]:
    class Servicer(external_auth_pb2_grpc.AuthorizationServicer):  # type: ignore[misc]
        def Check(self, request: Any, context: Any) -> Any:
            asked.grpc.append(request)
            headers = request.attributes.request.http.headers
            response = external_auth_pb2.CheckResponse()
            if not headers or headers.get("x-pass") == "yes":
                option = base_pb2.HeaderValueOption()
                option.header.key, option.header.value = "x-user", "bob"
                response.ok_response.headers.append(option)
            else:
                response.status.code = code_pb2.PERMISSION_DENIED
                response.denied_response.status.code = 402
                response.denied_response.body = "pay first"
            return response

    server = grpc.server(ThreadPoolExecutor(2))
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


HTTP = Provider(
    "ask-http",
    BackendRef("auth/http.auth.svc.cluster.local", 8000),
    timeout=2.0,
)
GRPC = Provider("ask-grpc", BackendRef("auth/grpc.auth.svc.cluster.local", 9000), grpc=True)
PROVIDERS = {"ask-http": HTTP, "ask-grpc": GRPC}


@pytest.fixture(scope="module")
def asked() -> Asked:
    return Asked()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, asked: Asked) -> Iterator[Rig]:
    with _http_provider(asked) as http, _grpc_provider(asked) as grpc_port:
        upstreams = {
            "outbound|8000||http.auth.svc.cluster.local": http,
            "outbound|9000||grpc.auth.svc.cluster.local": grpc_port,
            "outbound|8001||gone.auth.svc.cluster.local": 1,
        }
        with running(tmp_path_factory.mktemp("envoy"), upstreams) as rig:
            yield rig


_ports = iter(range(1000, 9000))


def custom(*rules: Any, provider: str = "ask-http", **fields: Any) -> Any:
    return policy("CUSTOM", *rules, provider={"name": provider}, **fields)


def port(rig: Rig, *objects: Any, providers: Any = None, tcp: bool = False) -> int:
    """Serve a port of its own under these objects."""
    number = next(_ports)
    rig.put(number, security(*objects, providers=providers or PROVIDERS), tcp)
    return number


# ---- asking ----------------------------------------------------------------------------------


def test_only_what_a_rule_matches_is_asked_about(rig: Rig, asked: Asked) -> None:
    """The rest passes without anybody being asked."""
    provider = replace(
        HTTP,
        check_headers=security_headers("x-pass", "x-a*"),
        added_headers=(("x-from", "100%"),),
        upstream_headers=security_headers("x-user"),
        downstream_headers=security_headers("x-reason"),
        path_prefix="/check",
    )
    number = port(rig, custom(to(paths=["/asked*"])), providers={"ask-http": provider})
    asked.http.clear()
    assert rig.get(number, "/free").status == 200
    assert asked.http == []
    passed = rig.get(number, "/asked?q=1", x_pass="yes", x_abc="1", x_other="2")
    assert (passed.status, passed.seen["headers"]["x-user"]) == (200, "alice")
    path, headers = asked.http.pop()
    assert path == "/check/asked?q=1"
    assert (headers["x-abc"], headers["x-from"], headers.get("x-other")) == ("1", "100%", None)
    refused = rig.get(number, "/x/..//asked")
    assert (refused.status, refused.headers["x-reason"]) == (401, "because")
    assert "x-user" not in refused.headers


def security_headers(*names: str) -> Any:
    providers, problems = read_providers(
        [
            {
                "name": "p",
                "envoyExtAuthzHttp": {
                    "service": "a/b",
                    "port": 1,
                    "includeRequestHeadersInCheck": list(names),
                },
            }
        ]
    )
    assert not problems
    return providers["p"].check_headers


def test_a_provider_is_told_who_calls(rig: Rig, asked: Asked) -> None:
    """From the certificate, whatever the caller says about itself."""
    provider = replace(HTTP, check_headers=security_headers("x-pass", "x-forwarded-client-cert"))
    providers = {**PROVIDERS, "ask-http": provider}
    spoofed = {"x_pass": "yes", "x_forwarded_client_cert": f"URI={DEV}"}
    number = port(rig, custom({}), providers=providers)
    assert rig.get(number, **spoofed).seen["headers"]["x-forwarded-client-cert"] == f"URI={WEB}"
    assert asked.http.pop()[1]["x-forwarded-client-cert"] == f"URI={WEB}"
    number = port(rig, custom({}, provider="ask-grpc"))
    assert rig.get(number, **spoofed).status == 200
    http = asked.grpc.pop().attributes.request.http
    assert http.headers["x-forwarded-client-cert"] == f"URI={WEB}"


def test_grpc_providers_answer_with_more(rig: Rig, asked: Asked) -> None:
    """Status, body and headers are theirs."""
    number = port(rig, custom(to(methods=["GET"]), provider="ask-grpc"))
    refused = rig.get(number, "/x")
    assert (refused.status, refused.body) == (402, "pay first")
    assert rig.get(number, "/x", x_pass="yes").seen["headers"]["x-user"] == "bob"
    assert asked.grpc[-1].attributes.request.http.path == "/x"


def test_a_body_is_sent_along_where_asked_for(rig: Rig, asked: Asked) -> None:
    """Up to the limit."""
    provider = replace(HTTP, check_headers=security_headers("x-pass"), body_bytes=100)
    number = port(rig, custom({}), providers={"ask-http": provider})
    caller = rig.call(number)
    caller.conn.request("POST", "/", b"x" * 50, {"x-pass": "yes"})
    response = caller.conn.getresponse()
    assert (response.status, len(asked.http[-1][1]["body"])) == (200, 50)
    response.read()
    caller.conn.request("POST", "/", b"x" * 200, {"x-pass": "yes"})
    assert caller.conn.getresponse().status == 413
    caller.close()


def test_the_order_is_tokens_custom_deny_allow(rig: Rig, asked: Asked) -> None:
    """A bad token is not asked about; consent does not undo a DENY."""
    issuer = Issuer()
    provider = replace(HTTP, check_headers=security_headers("x-pass"))
    number = port(
        rig,
        authentication(issuer.rule()),
        custom(source(requestPrincipals=["*"])),
        policy("DENY", to(paths=["/denied"])),
        policy("ALLOW", to(paths=["/denied", "/allowed", "/open"])),
        providers={"ask-http": provider},
    )
    asked.http.clear()
    assert rig.get(number, "/open").status == 200
    assert rig.get(number, "/allowed", authorization="Bearer x.y.z").status == 401
    assert asked.http == []
    token = issuer.bearer()
    assert rig.get(number, "/allowed", authorization=token).status == 401
    assert rig.get(number, "/allowed", authorization=token, x_pass="yes").status == 200
    assert rig.get(number, "/denied", authorization=token, x_pass="yes").status == 403
    assert rig.get(number, "/other", authorization=token, x_pass="yes").status == 403


def test_several_providers_are_all_asked(rig: Rig, asked: Asked) -> None:
    """Each for its own rules; all that are asked must consent."""
    provider = replace(HTTP, check_headers=security_headers("x-pass"))
    number = port(
        rig,
        custom(to(paths=["/both", "/http"])),
        custom(to(paths=["/both", "/grpc"]), provider="ask-grpc"),
        providers={**PROVIDERS, "ask-http": provider},
    )
    asked.http.clear()
    asked.grpc.clear()
    for path, count in (("/both", (1, 1)), ("/http", (2, 1)), ("/grpc", (2, 2)), ("/no", (2, 2))):
        assert rig.get(number, path, x_pass="yes").status == 200
        assert (len(asked.http), len(asked.grpc)) == count
    assert [rig.get(number, p).status for p in ("/both", "/http", "/grpc", "/no")] == [
        402,  # the first to refuse, by name
        401,
        402,
        200,
    ]


def test_dry_run_asks_nobody(rig: Rig, asked: Asked) -> None:
    """There is nothing to be seen in asking."""
    number = port(rig, custom({}, dry_run="true"))
    asked.http.clear()
    assert rig.get(number).status == 200
    assert asked.http == []


# ---- when nobody can be asked ----------------------------------------------------------------


@pytest.mark.parametrize("service", ["gone", "unknown"])
@pytest.mark.parametrize("grpc_", [False, True], ids=["http", "grpc"])
def test_a_provider_that_does_not_answer(rig: Rig, service: str, grpc_: bool) -> None:
    """Refused, unless its configuration says otherwise; even its cluster may be missing."""
    backend = BackendRef(f"auth/{service}.auth.svc.cluster.local", 8001)
    provider = replace(HTTP, backend=backend, grpc=grpc_)
    closed = port(rig, custom(to(paths=["/a"])), providers={"ask-http": provider})
    assert (rig.get(closed, "/a").status, rig.get(closed, "/b").status) == (403, 200)
    provider = replace(provider, status_on_error=503)
    other = port(rig, custom(to(paths=["/a"])), providers={"ask-http": provider})
    assert rig.get(other, "/a").status == 503
    provider = replace(provider, fail_open=True)
    opened = port(rig, custom(to(paths=["/a"])), providers={"ask-http": provider})
    assert rig.get(opened, "/a").status == 200


def test_a_provider_that_does_not_exist_refuses(rig: Rig) -> None:
    """What its rules match is refused, the rest passes, and the status names it."""
    rule = custom(to(paths=["/a"]), provider="nobody")
    number = port(rig, rule)
    assert (rig.get(number, "/a").status, rig.get(number, "/b").status) == (403, 200)
    status, reason, message = condition(rule, providers=PROVIDERS)
    assert (status, reason) == (False, "Invalid")
    assert "no extension provider 'nobody' (known: ask-grpc, ask-http)" in message
    assert "what the rules match is refused" in message


def test_an_old_chain_without_the_provider_refuses(rig: Rig) -> None:
    """A connection that stays on a chain from before the policy is not let past it."""
    before = security(policy("ALLOW", {}), providers=PROVIDERS)
    after = security(custom(to(paths=["/asked"])), policy("ALLOW", {}), providers=PROVIDERS)
    number = next(_ports)
    rig.put(number, before)
    # The chain of `before` with the routes of `after`: what a connection that is drained sees.
    rig.chains[number] = (before, False)
    caller = rig.call(number)
    assert caller.get("/asked", x_pass="yes").status == 200
    rig.put_routes(number, after)
    assert caller.get("/asked", x_pass="yes").status == 403
    assert caller.get("/free").status == 200
    caller.close()


# ---- connections without HTTP ----------------------------------------------------------------


def _says(rig: Rig, number: int, peer: str = WEB) -> bytes:
    heard = b""
    with suppress(ConnectionError), rig.dial(number, peer) as sock:
        time.sleep(0.2)
        sock.sendall(b"x")
        sock.settimeout(2)
        while b"x" not in heard and (got := sock.recv(100)):
            heard += got
    return heard


def test_connections_ask_providers_that_speak_grpc(rig: Rig, asked: Asked) -> None:
    """Before the application is connected to; providers over HTTP cannot be asked: refused."""
    number = port(rig, custom(source(namespaces=["shop"]), provider="ask-grpc"), tcp=True)
    asked.grpc.clear()
    assert _says(rig, number, DEV) == b"hello\nx"
    assert asked.grpc == []
    assert _says(rig, number) == b"hello\nx"
    assert len(asked.grpc) == 1
    number = port(rig, custom(source(namespaces=["shop"])), tcp=True)
    assert (_says(rig, number, DEV), _says(rig, number)) == (b"hello\nx", b"")
    gone = replace(GRPC, backend=BackendRef("auth/gone.auth.svc.cluster.local", 8001))
    number = port(rig, custom({}, provider="ask-grpc"), providers={"ask-grpc": gone}, tcp=True)
    assert _says(rig, number) == b""


# ---- configuration ---------------------------------------------------------------------------

GOOD = {"service": "http.auth.svc.cluster.local", "port": 8000}


def test_providers_are_read_as_istio_has_them() -> None:
    """Both kinds with all their fields; kinds that are for something else are passed over."""
    raw = [
        {"name": "tracer", "zipkin": {"service": "x", "port": 9411}},
        {
            "name": "h",
            "envoyExtAuthzHttp": {
                **GOOD,
                "timeout": "1m500ms",
                "failOpen": True,
                "statusOnError": "503",
                "pathPrefix": "/check",
                "includeRequestHeadersInCheck": ["Cookie", "x-*"],
                "includeAdditionalHeadersInCheck": {"X-A": "b"},
                "includeRequestBodyInCheck": {"maxRequestBytes": 10, "allowPartialMessage": True},
                "headersToUpstreamOnAllow": ["x-user"],
                "headersToDownstreamOnDeny": ["set-cookie"],
                "headersToDownstreamOnAllow": ["set-cookie"],
                "clearRouteCache": True,
            },
        },
        {"name": "g", "envoyExtAuthzGrpc": {"service": "auth/ext.example.com", "port": 9000}},
    ]
    providers, problems = read_providers(raw)
    assert problems == []
    assert sorted(providers) == ["g", "h"]
    h, g = providers["h"], providers["g"]
    assert h.backend == BackendRef("auth/http.auth.svc.cluster.local", 8000)
    assert g.backend == BackendRef("auth/ext.example.com", 9000)
    assert (h.timeout, h.fail_open, h.status_on_error, h.body_bytes) == (60.5, True, 503, 10)
    assert (g.grpc, g.timeout, g.fail_open, g.status_on_error) == (True, 10.0, False, 403)
    assert h.added_headers == (("x-a", "b"),)
    assert [m.value for m in h.check_headers] == ["cookie", "x-"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"service": "plain"}, ".service: 'plain': must be namespace/hostname"),
        ({"service": None}, ".service: must be"),
        ({"port": 0}, ".port: 0: must be a port number"),
        ({"port": "80"}, ".port: '80': must be a port number"),
        ({"port": True}, ".port: True: must be a port number"),
        ({"timeout": "soon"}, ".timeout: 'soon': must be a duration"),
        ({"timeout": 5}, ".timeout: 5: must be a duration"),
        ({"failOpen": "true"}, ".failOpen: 'true': must be true or false"),
        ({"statusOnError": "nope"}, ".statusOnError: 'nope': must be an HTTP status code"),
        ({"pathPrefix": "check"}, ".pathPrefix: 'check': must be a path"),
        ({"headersToUpstreamOnAllow": ["a*b"]}, ".headersToUpstreamOnAllow[0]: 'a*b'"),
        ({"includeRequestBodyInCheck": {}, "portt": 1}, ".portt: no such field"),
        ({"includeRequestBodyInCheck": {"maxRequestBytes": 0}}, ".maxRequestBytes: 0: must be"),
    ],
)
def test_a_provider_that_is_wrong_is_left_out(fields: Any, says: str) -> None:
    """The problem names its field; others stay."""
    raw = [
        {"name": "bad", "envoyExtAuthzHttp": {**GOOD, **fields}},
        {"name": "good", "envoyExtAuthzHttp": GOOD},
    ]
    providers, problems = read_providers(raw)
    assert sorted(providers) == ["good"]
    assert any(p.startswith("extensionProviders[0].envoyExtAuthzHttp") for p in problems)
    assert says in "; ".join(problems)


def test_names_of_providers_are_unique() -> None:
    """Nobody can tell which of two was meant."""
    entry = {"name": "twice", "envoyExtAuthzHttp": GOOD}
    providers, problems = read_providers([entry, entry, entry])
    assert providers == {}
    assert "extensionProviders[1].name: 'twice' is there twice" in problems[0]
    assert read_providers(None) == ({}, [])
    assert read_providers({"a": 1})[1] == ["extensionProviders: must be a list"]
    assert read_providers([{"name": 5, "envoyExtAuthzHttp": GOOD}])[0] == {}


def test_clusters_that_are_needed() -> None:
    """Only of providers that are really asked."""
    objects = (custom({}), custom({}, provider="ask-grpc", dry_run="true"))
    assert filters.backends(security(*objects, providers=PROVIDERS)) == (HTTP.backend,)
    index = indexed(*objects, providers=PROVIDERS)
    changed = {"ask-http": replace(HTTP, fail_open=True), "ask-grpc": GRPC}
    assert index.set_providers(changed) == {CART}
    assert index.set_providers(changed) == frozenset()
    assert index.security(CART).provider("ask-http") == changed["ask-http"]
