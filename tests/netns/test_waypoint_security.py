"""Policies at a waypoint, with real requests through client, ztunnel, Envoy, ztunnel, server."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from lab import Lab
from tests.netns.drive import tool
from tests.netns.mesh_objects import client, namespace, pod, principal, server
from tests.netns.waypoints import NS, WAYPOINT, Shop, echo, gateway, service, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
ROOT = "istio-system"
ISSUER = "https://issuer.example"
AUTHZ = str(Path(__file__).parent / "authz_server.py")
Apply = Callable[..., None]

_KEY = rsa.generate_private_key(65537, 2048)
_PUBLIC = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(_KEY.public_key()))
JWKS = json.dumps({"keys": [{**_PUBLIC, "kid": "one", "alg": "RS256", "use": "sig"}]})


def token(issuer: str = ISSUER, **claims: Any) -> dict[str, str]:
    claims = {"iss": issuer, "sub": "alice", "exp": time.time() + 600, **claims}
    return {"authorization": f"Bearer {jwt.encode(claims, _KEY, 'RS256', headers={'kid': 'one'})}"}


def authz() -> list[dict[str, Any]]:
    """Who is asked, and where keys are, on node1 beside the client."""
    ports = [
        {"name": "http", "port": 8000, "appProtocol": "http"},
        {"name": "grpc", "port": 9000, "appProtocol": "grpc"},
    ]
    return [
        *pod(NS, "authz", "node1", [sys.executable, AUTHZ, JWKS], probe=9000),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "authz",
                "namespace": NS,
                "labels": {"istio.io/use-waypoint": "none"},
            },
            "spec": {"selector": {"app": "authz"}, "ports": ports},
        },
    ]


def mesh_config() -> dict[str, Any]:
    """The extension providers, where Istio has them."""
    host = f"authz.{NS}.svc.cluster.local"
    http = {
        "service": f"{NS}/{host}",
        "port": 8000,
        "timeout": "2s",
        "includeRequestHeadersInCheck": ["x-pass", "x-forwarded-client-cert"],
        "headersToUpstreamOnAllow": ["x-user"],
    }
    gone = {"service": f"{NS}/nobody.{NS}.svc.cluster.local", "port": 8000}
    providers = [
        {"name": "ask-http", "envoyExtAuthzHttp": http},
        {"name": "ask-grpc", "envoyExtAuthzGrpc": {"service": host, "port": 9000}},
        {"name": "gone", "envoyExtAuthzHttp": gone},
    ]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": ROOT},
        "data": {"mesh": json.dumps({"extensionProviders": providers})},
    }


@pytest.fixture(scope="module")
def wp() -> Iterator[Shop]:
    with Lab("t-wp-sec") as lab:
        lab.up(
            [
                *shop(),
                *server(NS, "server", "node2"),
                *authz(),
                namespace("other"),
                *client("other", "visitor", "node2"),
                namespace("plain", captured=False),
                *client("plain", "outsider", "node2"),
                mesh_config(),
            ]
        )
        yield Shop(lab)


@pytest.fixture
def apply(wp: Shop) -> Iterator[Apply]:
    """Apply policies for one test, wait until they are in force, and take them away again."""
    applied: list[dict[str, Any]] = []

    def do(*objects: dict[str, Any]) -> None:
        applied.extend(o for o in objects if o not in applied)
        wp.lab.apply(list(objects))
        for obj in objects:
            wp.until(lambda o=obj: accepted(wp, o))  # type: ignore[misc]

    yield do
    wp.lab.delete(applied)
    wp.until(lambda: wp.ask("/admin").status == 200)


def accepted(wp: Shop, obj: dict[str, Any]) -> dict[str, Any]:
    """The condition of a policy, as soon as there is one of this generation."""
    metadata = obj["metadata"]
    return wp.condition(obj["kind"], metadata["name"], "WaypointAccepted", metadata["namespace"])


def ref(kind: str = "Service", name: str = "echo") -> dict[str, str]:
    group = {"Service": ""}.get(kind, "gateway.networking.k8s.io")
    return {"group": group, "kind": kind, "name": name}


def policy(
    name: str, action: str, *rules: Any, ns: str = NS, dry_run: bool = False, **spec: Any
) -> dict[str, Any]:
    annotations = {"istio.io/dry-run": "true"} if dry_run else {}
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": ns, "annotations": annotations},
        "spec": {"targetRefs": [ref()], "action": action, "rules": list(rules), **spec},
    }


def authentication(**rule: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": {"name": "tokens", "namespace": NS},
        "spec": {"targetRefs": [ref()], "jwtRules": [{"issuer": ISSUER, **rule}]},
    }


def to(**operation: Any) -> dict[str, Any]:
    return {"to": [{"operation": operation}]}


def source(**fields: Any) -> dict[str, Any]:
    return {"from": [{"source": fields}]}


def statuses(wp: Shop, *paths: str, **options: Any) -> list[int]:
    return [wp.ask(path, **options).status for path in paths]


# ---- actions ---------------------------------------------------------------------------------


def test_allow_and_deny_by_path_method_and_identity(wp: Shop, apply: Apply) -> None:
    """One ALLOW must match, no DENY may; the caller is who its ztunnel proved it to be."""
    shopper = source(principals=[principal(NS, "client")])
    apply(
        policy("readers", "ALLOW", {**shopper, **to(methods=["GET"])}),
        policy("visitors", "ALLOW", {**source(namespaces=["other"]), **to(paths=["/public*"])}),
        policy("no-admin", "DENY", to(paths=["/admin", "/admin/*"])),
    )
    wp.until(lambda: wp.ask("/admin").status == 403)
    assert statuses(wp, "/", "/admin", "/a/../admin", "//admin/x", "/%2e/admin", "/x%2fadmin") == [
        200,
        *[403] * 5,
    ]
    assert wp.ask("/", "-X", "POST").status == 403
    assert statuses(wp, "/", "/public/x", "/admin", who="other/visitor") == [403, 200, 403]
    refused = wp.ask("/admin")
    assert refused.body.strip() == "RBAC: access denied"
    for name in ("readers", "visitors", "no-admin"):
        told = wp.condition("AuthorizationPolicy", name, "WaypointAccepted")
        assert (told["status"], told["reason"]) == ("True", "Accepted")
        assert f"Service {NS}/echo at {NS}/{WAYPOINT}" in told["message"]


def test_other_services_are_not_concerned(wp: Shop, apply: Apply) -> None:
    """A policy holds where it is attached."""
    apply(policy("nobody", "ALLOW"))
    wp.until(lambda: wp.ask().status == 403)
    assert wp.ask(host=f"echo-v1.{NS}").status == 200


def test_policies_of_the_waypoint_and_of_its_class(wp: Shop, apply: Apply) -> None:
    """A Gateway's policies hold for all behind it, those of the class for all waypoints."""
    apply(
        policy("gw", "DENY", to(paths=["/gw"]), targetRefs=[ref("Gateway", WAYPOINT)]),
        policy(
            "everywhere",
            "DENY",
            to(paths=["/class"]),
            ns=ROOT,
            targetRefs=[ref("GatewayClass", "istio-waypoint")],
        ),
    )
    for host in (f"echo.{NS}", f"echo-v1.{NS}"):
        wp.until(lambda h=host: statuses(wp, "/gw", "/class", "/", host=h) == [403, 403, 200])  # type: ignore[misc]


def test_audit_and_dry_run_refuse_nothing(wp: Shop, apply: Apply) -> None:
    """What they would do is counted."""
    apply(
        policy("audit", "AUDIT", to(paths=["/tried"])),
        policy("tried", "DENY", to(paths=["/tried"]), dry_run=True),
        policy("tried-too", "ALLOW", to(paths=["/other"]), dry_run=True),
    )

    def counted(name: str) -> int:
        text = wp.admin(f"/stats?filter=istio_dry_run_{name}")
        return sum(int(line.rpartition(" ")[2]) for line in text.splitlines())

    def seen() -> bool:
        assert wp.ask("/tried").status == 200
        return counted("deny_.shadow_denied") > 0 and counted("allow_.shadow_denied") > 0

    wp.until(seen)
    told = wp.condition("AuthorizationPolicy", "tried", "WaypointAccepted")
    assert "dry run" in told["message"]


def test_a_policy_that_is_wrong_says_so_and_opens_nothing(wp: Shop, apply: Apply) -> None:
    """ALLOW with nothing that can be understood lets nobody in."""
    apply(policy("typo", "ALLOW", to(pathz=["/"])))
    wp.until(lambda: wp.ask().status == 403)
    told = wp.condition("AuthorizationPolicy", "typo", "WaypointAccepted")
    assert (told["status"], told["reason"]) == ("False", "Invalid")
    assert "spec.rules[0].to[0].operation.pathz: no such field" in told["message"]
    lost = policy("lost", "DENY", {}, targetRefs=[ref(name="no-such-service")])
    apply(lost)
    told = wp.condition("AuthorizationPolicy", "lost", "WaypointAccepted")
    assert (told["status"], told["reason"]) == ("False", "TargetNotFound")


# ---- tokens ----------------------------------------------------------------------------------


def test_tokens(wp: Shop, apply: Apply) -> None:
    """Missing passes, wrong is 401, a path may need one, and claims reach the application."""
    claims = [{"header": "x-sub", "claim": "sub"}]
    apply(
        authentication(jwks=JWKS, outputClaimToHeaders=claims),
        policy(
            "admins",
            "DENY",
            {
                **to(paths=["/admin*"]),
                "when": [{"key": "request.auth.claims[role]", "notValues": ["admin"]}],
            },
        ),
    )
    wp.until(lambda: wp.ask(headers={"authorization": "Bearer x.y.z"}).status == 401)
    assert wp.ask(headers=token(issuer="https://other.example")).status == 401
    assert wp.ask(headers=token(exp=time.time() - 120)).status == 401
    assert statuses(wp, "/", "/admin") == [200, 403]
    assert wp.ask("/admin", headers=token()).status == 403
    answer = wp.ask("/admin", headers={**token(role="admin"), "x-sub": "root"})
    assert answer.status == 200
    seen = {k.lower(): v for k, v in answer.seen["headers"].items()}
    assert seen["x-sub"] == "alice"
    assert "authorization" not in seen
    spoofed = {k.lower(): v for k, v in wp.ask(headers={"x-sub": "root"}).seen["headers"].items()}
    assert "x-sub" not in spoofed


def test_keys_are_fetched(wp: Shop, apply: Apply) -> None:
    """By the control plane; until it has them, and where there are none, tokens are refused."""
    address = wp.lab.pod(f"{NS}/authz")["status"]["podIP"]
    apply(authentication(jwksUri=f"http://{address}:8000/keys"))
    wp.until(lambda: wp.ask(headers={"authorization": "Bearer x.y.z"}).status == 401)
    wp.until(lambda: wp.ask(headers=token()).status == 200)
    wp.until(
        lambda: (
            wp.condition("RequestAuthentication", "tokens", "WaypointAccepted")["status"] == "True"
        )
    )
    apply(authentication(jwksUri=f"http://{address}:8000/nothing"))
    wp.until(lambda: wp.ask(headers=token()).status == 401)
    assert wp.ask().status == 200

    def told() -> bool:
        found = wp.condition("RequestAuthentication", "tokens", "WaypointAccepted")
        return found["status"] == "False" and "answered with status 401" in found["message"]

    wp.until(told)


# ---- asking others ---------------------------------------------------------------------------


@pytest.mark.parametrize(("provider", "refusal"), [("ask-http", 401), ("ask-grpc", 402)])
def test_custom(wp: Shop, apply: Apply, provider: str, refusal: int) -> None:
    """A service in the mesh is asked, through the mesh, and told who calls."""
    apply(policy("ask", "CUSTOM", to(paths=["/asked*"]), provider={"name": provider}))
    wp.until(lambda: wp.ask("/asked").status == refusal)
    assert wp.ask("/").status == 200
    spoofed = {"x-pass": "yes", "x-forwarded-client-cert": "URI=spiffe://cluster.local/ns/x/sa/y"}
    answer = wp.ask("/asked", headers=spoofed)
    assert answer.status == 200
    seen = {k.lower(): v for k, v in answer.seen["headers"].items()}
    assert seen["x-user"] == f"URI=spiffe://{principal(NS, 'client')}"


def test_custom_without_anybody_to_ask(wp: Shop, apply: Apply) -> None:
    """Refused: a provider that does not exist (status says so), and one that does not answer."""
    apply(policy("ask", "CUSTOM", to(paths=["/asked"]), provider={"name": "typo"}))
    wp.until(lambda: wp.ask("/asked").status == 403)
    told = wp.condition("AuthorizationPolicy", "ask", "WaypointAccepted")
    assert (told["status"], told["reason"]) == ("False", "Invalid")
    assert "no extension provider 'typo'" in told["message"]
    apply(policy("ask", "CUSTOM", to(paths=["/asked"]), provider={"name": "gone"}))
    wp.until(
        lambda: wp.condition("AuthorizationPolicy", "ask", "WaypointAccepted")["status"] == "True"
    )
    assert statuses(wp, "/asked", "/") == [403, 200]


# ---- around the waypoint ---------------------------------------------------------------------


def test_nobody_goes_around_the_waypoint(wp: Shop, apply: Apply) -> None:
    """With a policy at the waypoint, pods refuse whoever dials them; without one they do not."""
    address = wp.lab.pod(f"{NS}/echo-v1")["status"]["podIP"]
    around: dict[str, Any] = {"host": address, "port": 8080}
    callers = (f"{NS}/client", "other/visitor", "plain/outsider")
    wp.until(lambda: all(wp.ask(**around, who=w).status == 200 for w in callers))
    apply(policy("no-admin", "DENY", to(paths=["/admin"])))
    wp.until(lambda: all(wp.ask("/admin", **around, who=w).status == 0 for w in callers))
    assert statuses(wp, "/", "/admin") == [200, 403]
    time.sleep(2)  # probes of the node still pass: the pods stay ready
    conditions = wp.lab.pod(f"{NS}/echo-v1")["status"]["conditions"]
    assert [c["status"] for c in conditions if c["type"] == "Ready"] == ["True"]
    wp.lab.delete([policy("no-admin", "DENY")])
    wp.until(lambda: all(wp.ask(**around, who=w).status == 200 for w in callers))


def test_nobody_goes_around_the_waypoint_of_a_pod(wp: Shop, apply: Apply) -> None:
    """Not by a Service that passes no waypoint, either; the probes of the node go on."""
    lone = echo("lone", app="lone")
    lone["spec"]["template"]["metadata"]["labels"]["istio.io/use-waypoint"] = "own"
    side = service("side", {"app": "lone"}, labels={"istio.io/use-waypoint": "none"})
    wp.lab.apply([gateway(name="own", traffic="workload"), lone, side])
    wp.lab.wait_ready(60)
    by_service = {"host": f"side.{NS}"}
    direct = {"host": wp.lab.pod(f"{NS}/lone")["status"]["podIP"], "port": 8080}
    wp.until(lambda: statuses(wp, "/admin", **by_service) == [200])
    wp.until(lambda: statuses(wp, "/admin", **direct) == [200])
    gate = ref("Gateway", "own")
    apply(policy("lone-admin", "DENY", to(paths=["/admin"]), targetRefs=[gate]))
    wp.until(lambda: statuses(wp, "/", "/admin", **direct) == [200, 403])
    wp.until(lambda: wp.ask("/admin", **by_service).status == 0)
    assert wp.ask("/admin", **direct, who="plain/outsider").status == 0
    assert statuses(wp, "/admin") == [200]  # others are not concerned
    time.sleep(2)
    conditions = wp.lab.pod(f"{NS}/lone")["status"]["conditions"]
    assert [c["status"] for c in conditions if c["type"] == "Ready"] == ["True"]
    wp.lab.delete([gateway(name="own"), lone, side])


# ---- live connections ------------------------------------------------------------------------

_LOOP = """
import http.client, sys, time
conn = http.client.HTTPConnection(sys.argv[1], 80, timeout=10)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    conn.request("GET", "/admin")
    answer = conn.getresponse()
    answer.read()
    print(conn.sock.getsockname()[1] if conn.sock else 0, answer.status, flush=True)
    time.sleep(0.02)
"""


def test_a_change_takes_effect_on_a_live_connection(wp: Shop, apply: Apply) -> None:
    """The same TCP connection throughout: 200, then 403, then 200 again."""
    loop = wp.lab.popen(f"{NS}/client", [sys.executable, "-c", _LOOP, f"echo.{NS}", "6"])
    try:
        time.sleep(1)
        deny = policy("live", "DENY", to(paths=["/admin"]))
        apply(deny)
        wp.until(lambda: wp.ask("/admin").status == 403)
        wp.lab.delete([deny])
        out, errors = loop.communicate(timeout=30)
    finally:
        loop.kill()
    lines = [line.split() for line in out.splitlines()]
    assert len({port for port, _ in lines}) == 1, errors
    seen = [status for _, status in lines]
    changes = [s for i, s in enumerate(seen) if i == 0 or seen[i - 1] != s]
    assert changes == ["200", "403", "200"], Counter(seen)


# ---- connections without HTTP ----------------------------------------------------------------


def test_connections(wp: Shop, apply: Apply) -> None:
    """Who is refused hears nothing, not even a server that speaks first."""

    def hears(who: str) -> str:
        script = (
            "import socket\n"
            f"s = socket.create_connection(('server.{NS}', 9002), 5)\n"
            "s.settimeout(3)\n"
            "try: print(s.recv(100).decode())\n"
            "except OSError as e: print('refused', e)\n"
        )
        return wp.lab.exec(who, [sys.executable, "-c", script]).stdout.strip()

    assert hears(f"{NS}/client") == hears("other/visitor") == "220 hello"
    apply(
        policy(
            "tcp",
            "ALLOW",
            source(principals=[principal(NS, "client")]),
            targetRefs=[ref(name="server")],
        )
    )
    wp.until(lambda: "220" not in hears("other/visitor"))
    assert hears(f"{NS}/client") == "220 hello"
    assert tool(wp.lab, f"{NS}/client", "outcome", f"server.{NS}", "9000")["end"] == "data"
    apply(
        policy(
            "http-only", "DENY", to(paths=["/x"], ports=["9002"]), targetRefs=[ref(name="server")]
        )
    )
    wp.until(lambda: "220" not in hears(f"{NS}/client"))
    assert tool(wp.lab, f"{NS}/client", "outcome", f"server.{NS}", "9000")["end"] == "data"
    told = wp.condition("AuthorizationPolicy", "http-only", "WaypointAccepted")
    assert "have no request.path" in told["message"]
