"""Every example of docs/routing.md, applied to the lab and tried through the real Envoy.

The names of Gateway API's conformance features are in the docstrings.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Lab
from tests.netns.mesh_objects import client, namespace, pod
from tests.netns.page_examples import examples
from tests.netns.tls_servers import certificates, tls_server
from tests.netns.waypoints import NS, Answer, Shop, echo, service, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
PAGE = examples("routing.md")
VISITOR = "visitors/visitor"
GRPC = str(Path(__file__).parent / "grpc_echo.py")
Apply = Callable[..., None]


def tcp(name: str, ports: dict[str, tuple[int, int]], **selector: str) -> dict[str, Any]:
    """A Service of ports without HTTP: name -> (port, targetPort)."""
    made = service(name, selector)
    made["spec"]["ports"] = [
        {"name": n, "port": port, "targetPort": target, "appProtocol": n.partition("-")[0]}
        for n, (port, target) in ports.items()
    ]
    return made


@pytest.fixture(scope="module")
def wp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    files = tmp_path_factory.mktemp("tls")
    ca = certificates(files, "echo.example.com", "a.example.com", "b.example.com")
    echo_ca = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "echo-ca", "namespace": NS},
        "data": {"ca.crt": ca},
    }
    secured = service("secured", {"app": "echo.example.com"})
    secured["spec"]["ports"][0]["targetPort"] = 8443
    prices = [("prices", {"app": "prices-v1"})]
    prices += [(f"prices-{v}", {"app": f"prices-{v}"}) for v in ("v1", "v2")]
    with Lab("t-wp-routes") as lab:
        lab.up(
            [
                *shop(),
                namespace("visitors"),
                *client("visitors", "visitor", "node1"),
                echo("lender", "visitors", app="lender", version="lent"),
                service("lender", {"app": "lender"}, ns="visitors"),
                tcp("tcp", {"tcp-echo": (9000, 9000), "tcp-count": (9001, 9001)}, app="echo"),
                *(tcp(name, {"grpc": (9090, 9090)}, **labels) for name, labels in prices),
                *(
                    obj
                    for v in ("v1", "v2")
                    for obj in pod(
                        *(NS, f"prices-{v}", "node2"),
                        [sys.executable, GRPC, "serve", "9090", v],
                        probe=9090,
                    )
                ),
                echo_ca,
                *(
                    tls_server(NS, name, "node2", files)
                    for name in ("echo.example.com", "a.example.com", "b.example.com")
                ),
                secured,
                tcp("tls", {"tls": (443, 8443)}, app="a.example.com"),
                tcp("tls-b", {"tls": (443, 8443)}, app="b.example.com"),
            ]
        )
        yield Shop(lab)


@pytest.fixture
def apply(wp: Shop) -> Iterator[Apply]:
    """Apply objects for one test, and take them away again."""
    applied: list[dict[str, Any]] = []

    def do(*objects: dict[str, Any]) -> None:
        applied.extend(o for o in objects if o not in applied)
        wp.lab.apply(list(objects))
        rules = [o for o in objects if o["kind"] in ("HTTPRoute", "GRPCRoute")]
        for obj in rules:
            wp.until(lambda o=obj: origin(o) in wp.admin("/config_dump"))  # type: ignore[misc]

    yield do
    wp.lab.delete(applied)
    for obj in applied:
        wp.until(lambda o=obj: origin(o) not in wp.admin("/config_dump"))  # type: ignore[misc]


def origin(obj: dict[str, Any]) -> str:
    """How Envoy's names of a route's rules begin, in its configuration's text."""
    metadata = obj["metadata"]
    return f'"name": "{metadata["namespace"]}.{metadata["name"]}.'


def many(wp: Shop, count: int, path: str = "/") -> Counter[str]:
    """Ask many times on one connection; says how often each version answered."""
    url = f"http://echo.{NS}{path}?n=[1-{count}]"
    done = wp.lab.exec(f"{NS}/client", ["curl", "-sS", "--max-time", "60", url], timeout=70)
    assert done.returncode == 0, done.stderr
    return Counter(json.loads(line)["version"] for line in done.stdout.splitlines())


def condition(wp: Shop, kind: str, name: str, type_: str, ns: str = NS) -> dict[str, Any]:
    return wp.condition(kind, name, type_, ns, parent=0)


# ---- where requests go -----------------------------------------------------------------------


def test_canary(wp: Shop, apply: Apply) -> None:
    """HTTPRouteWeight: shares are as they are written, and the route says who handles it."""
    apply(*PAGE["Canary"])
    found = many(wp, 400)
    assert found["v1"] + found["v2"] == 400
    assert 15 <= found["v2"] <= 75  # of 400 requests 40 are expected, +-6
    assert condition(wp, "HTTPRoute", "echo", "Accepted")["status"] == "True"
    assert condition(wp, "HTTPRoute", "echo", "ResolvedRefs")["status"] == "True"
    assert f"{NS}/waypoint" in condition(wp, "HTTPRoute", "echo", "ResolvedWaypoints")["message"]


def test_a_b_by_header(wp: Shop, apply: Apply) -> None:
    """HTTPRouteMatching, QueryParamMatching, NamedRouteRule: one of the matches is enough."""
    apply(*PAGE["A/B by header"])
    beta = [
        {"headers": {"X-Group": "beta"}},
        {"headers": {"cookie": "a=b; group=beta"}},
        {"path": "/?x=1&group=beta"},
    ]
    stable: list[dict[str, Any]] = [
        {},
        {"headers": {"x-group": "betas"}},
        {"headers": {"cookie": "subgroup=beta"}},
        {"path": "/?group=betas"},
    ]
    assert [wp.ask(**how).seen["version"] for how in beta] == ["v2"] * 3
    assert [wp.ask(**how).seen["version"] for how in stable] == ["v1"] * 4
    assert '"beta"' in wp.admin("/config_dump")


def test_by_path_and_method(wp: Shop, apply: Apply) -> None:
    """HTTPRouteMatching, MethodMatching, path match order."""
    apply(*PAGE["By path and method"])
    cases = {
        "/": "v1",
        "/v2": "v2",
        "/v2/": "v2",
        "/v2/x?y": "v2",
        "/v2x": "v1",
        "/user/7/v2": "v2",
    }
    assert {path: wp.ask(path).seen["version"] for path in cases} == cases
    assert wp.ask("/", "-X", "DELETE").seen["version"] == "v2"
    assert wp.ask("/v2/closed").status == 500
    assert wp.ask("/user/7/v2").seen["version"] == "v2"
    assert wp.ask("/user/x/v2").seen["version"] == "v1"


def test_redirect_and_rewrite(wp: Shop, apply: Apply) -> None:
    """HTTPRoutePathRedirect, SchemeRedirect, HostRewrite, PathRewrite."""
    apply(*PAGE["Redirect and rewrite"])
    old = wp.ask("/old/page?x=1")
    assert (old.status, old.headers["location"]) == (308, [f"http://echo.{NS}/new/page?x=1"])
    away = wp.ask("/away/any")
    assert (away.status, away.headers["location"]) == (302, ["https://www.example.com/home"])
    for asked, path in (("/api/x?y=1", "/x?y=1"), ("/api", "/"), ("/api/", "/")):
        seen = wp.ask(asked).seen
        assert (seen["path"], seen["headers"]["host"]) == (path, "api.example.com")
    assert wp.ask("/apis").status == 404


def test_headers(wp: Shop, apply: Apply) -> None:
    """HTTPRouteRequestHeaderModifier, ResponseHeaderModification, and those of one backend."""
    apply(*PAGE["Headers"])
    answer = wp.ask(headers={"X-Share": "1", "X-Trail": "start", "X-Secret": "s"})
    seen = {name.lower(): value for name, value in answer.seen["headers"].items()}
    assert seen["x-share"] == "100%"
    assert seen["x-backend"] == "first"
    assert seen["x-trail"] == "start, waypoint"
    assert "x-secret" not in seen
    assert answer.headers["x-served-by"] == ["waypoint"]


def test_another_namespaces_callers(wp: Shop, apply: Apply) -> None:
    """MeshConsumerRoute: only callers of the route's namespace are touched."""
    apply(*PAGE["Another namespace's callers"])
    theirs = wp.ask(who=VISITOR)
    assert theirs.seen["headers"]["x-from"] == "visitors"
    ours = wp.ask()
    assert ours.status == 200
    assert "x-from" not in ours.seen["headers"]
    told = condition(wp, "HTTPRoute", "echo-for-us", "Accepted", "visitors")
    assert told["status"] == "True"


def test_another_namespaces_backends(wp: Shop, apply: Apply) -> None:
    """ReferenceGrant: without one that share is answered with 500, once it is taken away too."""
    route, grant = PAGE["Another namespace's backends"]
    apply(route, grant)
    wp.until(lambda: wp.ask().status == 200)
    assert wp.ask().seen["version"] == "lent"
    wp.lab.delete([grant])
    wp.until(lambda: wp.ask().status == 500)
    wp.until(
        lambda: condition(wp, "HTTPRoute", "echo", "ResolvedRefs")["reason"] == "RefNotPermitted"
    )


# ---- when things go wrong --------------------------------------------------------------------


def test_timeouts(wp: Shop, apply: Apply) -> None:
    """HTTPRouteRequestTimeout: 504 after the time, not before."""
    apply(*PAGE["Timeouts"])
    late = wp.ask("/?delay=3")
    assert late.status == 504
    assert 0.45 <= late.seconds < 2
    assert wp.ask("/?delay=0.1").status == 200


def test_retries(wp: Shop, apply: Apply) -> None:
    """HTTPRouteRetry: a code that is named is tried again, up to that many times."""
    assert wp.ask("/?flaky=2&id=without", host=f"echo-v1.{NS}").status == 503
    apply(*PAGE["Retries"])
    assert wp.ask("/?flaky=2&id=two").status == 200
    assert wp.ask("/?flaky=4&id=four").status == 503
    assert wp.ask("/?status=500").status == 500


# ---- more than one answer --------------------------------------------------------------------


def count(wp: Shop, version: str) -> int:
    """How many requests a version has seen."""
    return int(wp.ask("/count", host=f"echo-{version}.{NS}").seen["requests"])


def test_mirror(wp: Shop, apply: Apply) -> None:
    """HTTPRouteRequestMirror: the copy goes there, and only the first answers."""
    apply(*PAGE["Mirror"])
    before = count(wp, "v2")
    assert many(wp, 20) == {"v1": 20}
    wp.until(lambda: count(wp, "v2") == before + 20)


def preflight(wp: Shop, origin_: str, method: str = "PUT") -> Answer:
    headers = {"origin": origin_, "access-control-request-method": method}
    return wp.ask("/", "-X", "OPTIONS", headers=headers)


def test_cors(wp: Shop, apply: Apply) -> None:
    """HTTPRouteCORS: origins that fit are answered, others get no permission."""
    apply(*PAGE["CORS"])
    for good in ("https://shop.example.com", "https://a.b.dev.example.com"):
        headers = preflight(wp, good).headers
        assert headers["access-control-allow-origin"] == [good]
        assert headers["access-control-allow-credentials"] == ["true"]
        assert headers["access-control-max-age"] == ["3600"]
        assert "PUT" in headers["access-control-allow-methods"][0]
        assert wp.ask(headers={"origin": good}).headers["access-control-expose-headers"] == [
            "x-total"
        ]
    for bad in ("http://shop.example.com", "https://dev.example.com.evil.org"):
        assert "access-control-allow-origin" not in preflight(wp, bad).headers
        assert "access-control-allow-origin" not in wp.ask(headers={"origin": bad}).headers


def test_sessions(wp: Shop, apply: Apply) -> None:
    """HTTPRouteSessionPersistence: the cookie keeps a client at one endpoint."""
    apply(*PAGE["Sessions"])
    first = wp.ask()
    (cookie,) = first.headers["set-cookie"]
    assert cookie.startswith("shop-session=")
    pinned = {"cookie": cookie.partition(";")[0]}
    assert {wp.ask(headers=pinned).seen["pod"] for _ in range(12)} == {first.seen["pod"]}
    assert len({wp.ask().seen["pod"] for _ in range(20)}) == 2


# ---- other kinds -----------------------------------------------------------------------------


def call(wp: Shop, method: str) -> dict[str, Any]:
    """One gRPC call: what the server saw, or {"status": its name}."""
    command = [sys.executable, GRPC, "call", f"prices.{NS}:9090", method]
    said_ = wp.lab.exec(f"{NS}/client", command, timeout=20).stdout.strip()
    found: dict[str, Any] = json.loads(said_) if said_.startswith("{") else {"status": said_}
    return found


def test_grpc(wp: Shop, apply: Apply) -> None:
    """GRPCRoute: calls go by service and method; what is no call is not found."""
    (route,) = PAGE["gRPC"]
    apply(route)
    cases = {
        "/shop.Prices/Get": "v2",
        "/shop.Prices/Set": "v1",
        "/shop.Stock/Any": "v2",
        "/shop.StockRoom/Any": "v1",
    }
    assert {method: call(wp, method).get("version") for method in cases} == cases
    plain = ("--http2-prior-knowledge",)
    assert wp.ask("/shop.Prices/Get", *plain, host=f"prices.{NS}", port=9090).status == 404
    gone = json.loads(json.dumps(route).replace("prices-v2", "nowhere"))
    wp.lab.apply([gone])
    wp.until(lambda: call(wp, "/shop.Stock/Any") == {"status": "UNAVAILABLE"})
    assert call(wp, "/other/Any")["version"] == "v1"


def said(wp: Shop, port: int, text: str) -> str:
    """Send text to the TCP service's port and its end; what comes back."""
    code = (
        "import socket,sys;s=socket.create_connection(('tcp.shop',int(sys.argv[1])),5);"
        "s.settimeout(5);s.sendall(sys.argv[2].encode());s.shutdown(1);"
        "print(b''.join(iter(lambda:s.recv(4096),b'')).decode())"
    )
    done = wp.lab.exec(f"{NS}/client", [sys.executable, "-c", code, str(port), text], timeout=20)
    return done.stdout.strip()


def test_tcp(wp: Shop, apply: Apply) -> None:
    """TCPRoute: connections go to another port of the backend."""
    assert said(wp, 9001, "hello") == "5"
    apply(*PAGE["TCP"])
    wp.until(lambda: said(wp, 9001, "hello") == "hello")
    assert said(wp, 9000, "hello") == "hello"
    assert condition(wp, "TCPRoute", "tcp", "Accepted")["status"] == "True"
    wp.lab.delete(PAGE["TCP"])
    wp.until(lambda: said(wp, 9001, "hello") == "5")


def certificate(wp: Shop, name: str) -> str:
    """Whose certificate answers for a name at the service `tls`; "" is none."""
    done = wp.lab.exec(
        f"{NS}/client",
        [
            *("curl", "-sk", "--max-time", "5", "-o", "/dev/null", "-w", "%{certs}"),
            *("--connect-to", f"{name}:443:tls.{NS}:443", f"https://{name}/"),
        ],
        timeout=15,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("Subject:")]
    return lines[0].partition("CN = ")[2] if lines else ""


def test_tls(wp: Shop, apply: Apply) -> None:
    """TLSRoute: connections go by the name that is asked for, and others are closed."""
    assert certificate(wp, "b.example.com") == "a.example.com"
    routes = [
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "TLSRoute",
            "metadata": {"name": backend, "namespace": NS},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "tls"}],
                "hostnames": [host],
                "rules": [{"backendRefs": [{"name": backend, "port": 443}]}],
            },
        }
        for host, backend in (("a.example.com", "tls"), ("*.b.example.com", "tls-b"))
    ]
    apply(*routes)
    wp.until(lambda: certificate(wp, "x.b.example.com") == "b.example.com")
    assert certificate(wp, "a.example.com") == "a.example.com"
    assert certificate(wp, "b.example.com") == ""


# ---- backends --------------------------------------------------------------------------------


def ancestor(wp: Shop, kind: str, name: str) -> dict[str, str]:
    """What a policy is told by its first ancestor: type -> reason."""
    status = wp.lab.get(kind, NS, name).get("status") or {}
    found = (status.get("ancestors") or [{}])[0].get("conditions") or []
    return {c["type"]: c["reason"] for c in found}


def test_retry_budget(wp: Shop, apply: Apply) -> None:
    """XBackendTrafficPolicy: its budget is the cluster's, and gone with it."""

    def budgets() -> set[str]:
        clusters = json.loads(wp.admin("/config_dump?resource=dynamic_active_clusters"))["configs"]
        return {
            c["cluster"]["name"]
            for c in clusters
            if json.dumps(c).find('"retry_budget": {"budget_percent"') >= 0
            and '"min_retry_concurrency": 3' in json.dumps(c)
        }

    apply(*PAGE["Retry budget"])
    wp.until(lambda: budgets() == {f"outbound|80||echo.{NS}.svc.cluster.local"})
    wp.until(lambda: ancestor(wp, "XBackendTrafficPolicy", "echo") == {"Accepted": "Accepted"})
    wp.lab.delete(PAGE["Retry budget"])
    wp.until(lambda: not budgets())


def test_tls_to_the_application(wp: Shop, apply: Apply) -> None:
    """BackendTLSPolicy: its name and CA are asked for, and nothing else is trusted."""
    (policy,) = json.loads(json.dumps(PAGE["TLS to the application"]))
    policy["spec"]["targetRefs"][0]["name"] = "secured"
    host = f"secured.{NS}"
    assert wp.ask(host=host).status in (0, 502, 503)  # plaintext is no TLS
    apply(policy)
    wp.until(lambda: wp.ask(host=host).status == 200)
    expected = {"Accepted": "Accepted", "ResolvedRefs": "ResolvedRefs"}
    wp.until(lambda: ancestor(wp, "BackendTLSPolicy", "echo") == expected)
    policy["spec"]["validation"]["hostname"] = "other.example.com"
    wp.lab.apply([policy])
    wp.until(lambda: wp.ask(host=host).status == 503)
    policy["spec"]["validation"] |= {
        "hostname": "echo.example.com",
        "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "gone"}],
    }
    wp.lab.apply([policy])
    wp.until(
        lambda: (
            ancestor(wp, "BackendTLSPolicy", "echo")
            == {"Accepted": "NoValidCACertificate", "ResolvedRefs": "InvalidCACertificateRef"}
        )
    )
    assert wp.ask(host=host).status == 503


# ---- mistakes --------------------------------------------------------------------------------


def test_mistakes_leave_the_rest_working(wp: Shop, apply: Apply) -> None:
    """A rule that cannot be used is dropped and named; a good one beside it works; repair heals."""
    good = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/good"}}],
        "backendRefs": [{"name": "echo-v2", "port": 80}],
    }
    bad = {
        "matches": [{"path": {"type": "RegularExpression", "value": "/a("}}],
        "backendRefs": [{"name": "echo-v1", "port": 80}],
    }
    (route,) = json.loads(json.dumps(PAGE["Canary"]))
    route["spec"]["rules"] = [bad, good]
    apply(route)
    assert wp.ask("/good").seen["version"] == "v2"
    assert wp.ask("/a(").status == 404
    told = wp.until(lambda: condition(wp, "HTTPRoute", "echo", "PartiallyInvalid"))
    assert "spec.rules[0].matches[0].path.value" in told["message"]
    bad["matches"] = [{"path": {"type": "RegularExpression", "value": "/a.*"}}]
    wp.lab.apply([route])
    wp.until(lambda: wp.ask("/abc").status == 200)
    wp.until(lambda: not condition(wp, "HTTPRoute", "echo", "PartiallyInvalid"))


def test_every_example_is_tried() -> None:
    """The page has no example that no test of this module applies."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [heading for heading in PAGE if f'PAGE["{heading}"]' not in text] == []
