"""AuthorizationPolicy as the real Envoy enforces it: requests through its filters, on loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from security_objects import policy, security, source, to, when
from security_rig import VIP, WEB, Rig, running

from waypoint.config.security import OPEN

DEV = "spiffe://cluster.local/ns/dev/sa/tool"
FOREIGN = "spiffe://other.example/ns/shop/sa/web"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running(tmp_path_factory.mktemp("envoy")) as rig:
        yield rig


_ports = iter(range(1000, 9000))


def port(rig: Rig, *objects: Any, tcp: bool = False) -> int:
    """Serve a port of its own under these objects."""
    number = next(_ports)
    rig.put(number, security(*objects), tcp)
    return number


def statuses(rig: Rig, number: int, *requests: Any) -> list[int]:
    return [rig.get(number, **r).status for r in requests]


# ---- actions ---------------------------------------------------------------------------------


def test_without_policies_everything_passes(rig: Rig) -> None:
    """The filters that are always there refuse nothing by themselves."""
    number = port(rig)
    assert rig.get(number, "/anything").seen["path"] == "/anything"


def test_a_request_needs_one_allow_and_no_deny(rig: Rig) -> None:
    """DENY counts before ALLOW, ALLOW policies are alternatives."""
    number = port(
        rig,
        policy("ALLOW", to(paths=["/a*"])),
        policy("ALLOW", source(namespaces=["dev"])),
        policy("DENY", to(paths=["/a/secret"]), name="no-secret"),
    )
    assert rig.get(number, "/a/b").status == 200
    assert rig.get(number, "/b").status == 403
    assert rig.get(number, "/b", DEV).status == 200
    refused = rig.get(number, "/a/secret", DEV)
    assert (refused.status, refused.body) == (403, "RBAC: access denied")


@pytest.mark.parametrize(
    ("rules", "status"),
    [([], 403), ([{}], 200)],
    ids=["no rule allows nothing", "an empty rule allows everything"],
)
def test_empty_allow(rig: Rig, rules: list[Any], status: int) -> None:
    """What is empty means what it means to ztunnel."""
    assert rig.get(port(rig, policy("ALLOW", *rules))).status == status


def test_audit_and_dry_run_refuse_nothing_and_are_logged(rig: Rig) -> None:
    """They are seen in the access log, by the name of the policy."""
    number = port(
        rig,
        policy("AUDIT", to(paths=["/audit*"])),
        policy("DENY", to(paths=["/dry*"]), name="tried", dry_run="true"),
        policy("ALLOW", to(paths=["/a*"]), dry_run="true"),
    )
    assert statuses(rig, number, {"path": "/audit-1"}, {"path": "/dry-2"}) == [200, 200]
    log = rig.folder / "access.log"
    deadline = time.monotonic() + 5
    while "/dry-2" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    lines = {line.split()[0]: line for line in log.read_text().splitlines()}
    assert lines["/audit-1"].endswith("audit=true deny=- allow=allowed")
    assert lines["/dry-2"].endswith("audit=false deny=shop/tried#0 allow=denied")


def test_a_change_counts_for_the_next_request_of_a_live_connection(rig: Rig) -> None:
    """Rules travel in the routes: the connection stays and its requests are judged anew."""
    number = port(rig)
    caller = rig.call(number)
    assert caller.get("/admin").status == 200
    local = caller.conn.sock.getsockname()
    rig.put(number, security(policy("DENY", to(paths=["/admin"]))))
    assert [caller.get("/admin").status, caller.get("/other").status] == [403, 200]
    rig.put(number, security(policy("ALLOW", to(paths=["/admin"]))))
    assert [caller.get("/admin").status, caller.get("/other").status] == [200, 403]
    rig.put(number, OPEN)
    assert caller.get("/other").status == 200
    assert caller.conn.sock.getsockname() == local
    caller.close()


# ---- who -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "peers"),
    [
        ({"principals": ["cluster.local/ns/shop/sa/web"]}, [WEB]),
        ({"principals": ["spiffe://cluster.local/ns/shop/sa/web"]}, [WEB]),
        ({"principals": ["cluster.local/ns/shop/*"]}, [WEB]),
        ({"principals": ["*/sa/web"]}, [WEB, FOREIGN]),
        ({"principals": ["*"]}, [WEB, DEV, FOREIGN]),
        ({"principals": ["cluster.local/ns/shop/sa/we"]}, []),
        ({"namespaces": ["shop"]}, [WEB, FOREIGN]),
        ({"namespaces": ["sho*"]}, [WEB, FOREIGN]),
        ({"namespaces": ["*hop"]}, [WEB, FOREIGN]),
        ({"namespaces": ["hop", "sho"]}, []),
        ({"serviceAccounts": ["web"]}, [WEB, FOREIGN]),
        ({"serviceAccounts": ["dev/tool"]}, [DEV]),
        ({"trustDomains": ["cluster.local"]}, [WEB, DEV]),
        ({"trustDomains": ["cluster*"], "namespaces": ["shop"]}, [WEB]),
        ({"notPrincipals": ["*/sa/web"]}, [DEV]),
        ({"notNamespaces": ["dev"], "notTrustDomains": ["other.example"]}, [WEB]),
        ({"ipBlocks": ["10.0.0.0/24"]}, [WEB, DEV, FOREIGN]),
        ({"ipBlocks": ["10.0.1.0/24", "fd00::/8"]}, []),
        ({"notIpBlocks": ["10.0.0.2"]}, []),
        ({"remoteIpBlocks": ["10.0.0.2"]}, [WEB, DEV, FOREIGN]),
    ],
    ids=str,
)
def test_who_calls(rig: Rig, fields: Any, peers: list[str]) -> None:
    """Callers are told apart by what their certificate says and by their pod's address."""
    number = port(rig, policy("ALLOW", source(**fields)))
    assert [p for p in (WEB, DEV, FOREIGN) if rig.get(number, peer=p).status == 200] == peers


def test_nobody_can_claim_an_address_or_an_identity_by_header(rig: Rig) -> None:
    """X-Forwarded-For and the like are believed from nobody."""
    number = port(
        rig,
        policy("ALLOW", source(ipBlocks=["192.0.2.7"])),
        policy("ALLOW", source(remoteIpBlocks=["192.0.2.7"])),
        policy("ALLOW", source(namespaces=["dev"])),
    )
    spoofed = {
        "x_forwarded_for": "192.0.2.7",
        "x_envoy_external_address": "192.0.2.7",
        "x_real_ip": "192.0.2.7",
        "forwarded": "for=192.0.2.7",
        "x_forwarded_client_cert": f"URI={DEV}",
        "x_peer": DEV,
    }
    assert rig.get(number, **spoofed).status == 403


def test_callers_do_not_steer_the_proxy(rig: Rig) -> None:
    """Headers that Envoy takes as orders from inside are gone; the request's id stays."""
    number = port(rig)
    orders = {
        "x_envoy_upstream_rq_timeout_ms": "1",
        "x_envoy_max_retries": "1000",
        "x_envoy_retry_on": "5xx",
        "x_envoy_internal": "true",
        "x_envoy_original_path": "/x",
        "x_request_id": "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    }
    seen = rig.get(number, **orders).seen["headers"]
    found = {k: v for k, v in seen.items() if k.replace("-", "_") in orders}
    assert found == {"x-request-id": orders["x_request_id"]}


# ---- what ------------------------------------------------------------------------------------

SAME_AS_ADMIN = [
    "/admin",
    "/admin?x=1",
    "/a/../admin",
    "/./admin",
    "//admin",
    "///admin//",
    "/%61dmin",
    "/%2e%2e/admin",
    "/x/%2E%2E/admin",
    "/x/.%2e/admin",
    "/x\\..\\admin",
    "/x/..;/admin",
]


@pytest.mark.parametrize("path", SAME_AS_ADMIN)
def test_a_path_cannot_be_written_past_a_policy(rig: Rig, path: str) -> None:
    """Policies, routes and the application see one and the same normal form."""
    denying = port(rig, policy("DENY", to(paths=["/admin", "/admin/*"])))
    allowing = port(rig, policy("ALLOW", to(paths=["/x/*", "/a/*", "/public/*"])))
    assert statuses(rig, denying, {"path": path}) == [403]
    assert statuses(rig, allowing, {"path": path}) == [403]
    seen = rig.get(port(rig), path).seen["path"]
    assert seen.partition("?")[0].rstrip("/") == "/admin"


@pytest.mark.parametrize("path", ["/x%2f..%2fadmin", "/x/..%2Fadmin", "/x%5c..%5cadmin", "/x%5Cy"])
def test_escaped_slashes_are_refused_where_paths_are_compared(rig: Rig, path: str) -> None:
    """Whether such a path is below /x depends on who reads it, so nobody gets it."""
    for objects in (policy("DENY", to(paths=["/admin"])), policy("ALLOW", to(paths=["/x*"]))):
        assert rig.get(port(rig, objects), path).status == 403
    without = port(rig, policy("ALLOW", to(methods=["GET"])))
    assert rig.get(without, path).seen["path"] == path
    tried = port(rig, policy("DENY", to(paths=["/admin"]), dry_run="true"))
    assert rig.get(tried, path).status == 200


def test_escaped_slashes_in_the_query_are_nobodys_business(rig: Rig) -> None:
    """Only the path is compared."""
    number = port(rig, policy("ALLOW", to(paths=["/x*"])))
    assert rig.get(number, "/x?next=%2fadmin%5c").status == 200


def test_letters_count_in_paths(rig: Rig) -> None:
    """Paths are compared letter by letter, as HTTP has it: ALLOW is safe, DENY needs care."""
    assert rig.get(port(rig, policy("ALLOW", to(paths=["/public*"]))), "/PUBLIC").status == 403
    assert rig.get(port(rig, policy("DENY", to(paths=["/admin"]))), "/ADMIN").status == 200


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("/u/{*}", ["/u/1"]),
        ("/u/{*}/cart", ["/u/1/cart", "/u/a.b-c~d/cart"]),
        ("/u/{**}", ["/u/1", "/u/", "/u/1/cart", "/u/a.b-c~d/cart"]),
        ("/{**}/cart", ["/u/1/cart", "/u/a.b-c~d/cart"]),
        ("/u/{*}/{**}", ["/u/1/cart", "/u/a.b-c~d/cart"]),
        ("/u*", ["/u", "/u/1", "/u/", "/u/1/cart", "/u/a.b-c~d/cart"]),
        ("*/cart", ["/u/1/cart", "/u/a.b-c~d/cart"]),
        ("/u", ["/u"]),
        ("*", ["/u", "/u/1", "/u/", "/u/1/cart", "/u/a.b-c~d/cart"]),
    ],
)
def test_forms_of_paths(rig: Rig, pattern: str, paths: list[str]) -> None:
    """{*} is one segment, {**} any number; the query is not part of the path."""
    every = ["/u", "/u/1", "/u/", "/u/1/cart", "/u/a.b-c~d/cart"]
    number = port(rig, policy("ALLOW", to(paths=[pattern])))
    assert [p for p in every if rig.get(number, p + "?q=/u/1/cart").status == 200] == paths


@pytest.mark.parametrize(
    ("value", "hosts"),
    [
        ("admin.example.com", {"admin.example.com", "ADMIN.example.com", "admin.example.com:80"}),
        ("*.example.com", {"admin.example.com", "ADMIN.example.com", "admin.example.com:80"}),
        ("admin.*", {"admin.example.com", "ADMIN.example.com", "admin.example.com:80"}),
        ("admin.example.com:80", {"admin.example.com:80"}),
        ("example.com", set()),
    ],
)
def test_hosts(rig: Rig, value: str, hosts: set[str]) -> None:
    """Hosts are compared without case, and without port where the policy has none."""
    every = ["admin.example.com", "ADMIN.example.com", "admin.example.com:80", "other.com"]
    denying = port(rig, policy("DENY", to(hosts=[value])))
    found = {h for h in every if rig.get(denying, host=h).status == 403}
    assert found == hosts
    if value == "admin.example.com":
        assert rig.get(denying, host="admin.example.com.").status == 403


def test_methods_ports_and_addresses(rig: Rig) -> None:
    """Ports and addresses are those that the caller asked for."""
    number = next(_ports)
    rig.put(
        number,
        security(
            policy("ALLOW", {"to": [{"operation": {"methods": ["GET"], "ports": [str(number)]}}]}),
            policy("ALLOW", {**to(methods=["PUT"]), **when("destination.ip", VIP)}),
            policy("ALLOW", {**to(methods=["POST"]), **when("destination.ip", "10.0.0.0/16")}),
            policy("ALLOW", {**to(methods=["DELETE"], notPorts=[str(number)])}),
        ),
    )
    caller = rig.call(number)
    found = [caller.get("/", m).status for m in ("GET", "PUT", "POST", "DELETE")]
    assert found == [200, 200, 403, 403]
    caller.close()


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        (when("request.headers[X-Role]", "admin"), ["admin"]),
        (when("request.headers[x-role]", "adm*"), ["admin", "adm"]),
        (when("request.headers[x-role]", "*min"), ["admin"]),
        (when("request.headers[x-role]", "*"), ["admin", "adm", "user", ""]),
        (when("request.headers[x-role]", notValues=["*"]), [None]),
        (when("request.headers[x-role]", notValues=["admin", "adm"]), ["user", "", None]),
    ],
    ids=str,
)
def test_headers(rig: Rig, rule: Any, values: list[Any]) -> None:
    """Headers by name, in any case; a header that is not there has no value."""
    number = port(rig, policy("ALLOW", rule))
    every: list[Any] = ["admin", "adm", "user", "", None]
    assert [
        v for v in every if rig.get(number, **({} if v is None else {"x_role": v})).status == 200
    ] == values


def test_a_header_cannot_be_hidden_among_others(rig: Rig) -> None:
    """What refuses by a header finds it among several lines, and in a line of several values."""
    denying = port(rig, policy("DENY", when("request.headers[x-role]", "guest")))
    excluding = port(rig, policy("ALLOW", when("request.headers[x-role]", notValues=["guest"])))
    for values in (["guest", "x"], ["x", "guest"], ["x, guest ,y"]):
        lines = [("x-role", v) for v in values]
        assert rig.call(denying).send("/", "GET", lines).status == 403
        assert rig.call(excluding).send("/", "GET", lines).status == 403
    assert rig.call(denying).send("/", "GET", [("x-role", "guests")]).status == 200


def test_the_host_header_is_a_header(rig: Rig) -> None:
    """request.headers[Host] means what it says although Envoy calls it otherwise."""
    number = port(rig, policy("DENY", when("request.headers[Host]", "a.example")))
    assert statuses(rig, number, {"host": "a.example"}, {"host": "b.example"}) == [403, 200]


def test_conditions_and_alternatives(rig: Rig) -> None:
    """from, to and every condition must match; entries of from and to are alternatives."""
    rule = {
        "from": [{"source": {"namespaces": ["shop"]}}, {"source": {"namespaces": ["dev"]}}],
        "to": [
            {"operation": {"paths": ["/a"], "methods": ["GET"]}},
            {"operation": {"paths": ["/b"]}},
        ],
        "when": [
            {"key": "request.headers[x-ok]", "values": ["yes"]},
            {"key": "source.principal", "notValues": ["*/sa/tool"]},
        ],
    }
    number = port(rig, policy("ALLOW", rule))
    ok = {"x_ok": "yes"}
    assert statuses(
        rig, number, {"path": "/a", **ok}, {"path": "/b", **ok}, {"path": "/c", **ok}
    ) == [200, 200, 403]
    assert statuses(rig, number, {"path": "/a"}, {"path": "/a", "peer": DEV, **ok}) == [403, 403]


# ---- what cannot be understood ---------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        to(paths=["admin"]),
        to(pathz=["/admin"]),
        {"to": [{"operation": {}}]},
        {"from": [{"source": {"principals": ["a*b"]}}]},
        {"from": []},
        when("request.headers[]", "x"),
        when("no.such.attribute", "x"),
        {"form": []},
        None,
        "text",
    ],
    ids=str,
)
def test_what_is_wrong_opens_nothing(rig: Rig, rule: Any) -> None:
    """An ALLOW rule is left out, a DENY rule matches without what is wrong in it."""
    assert rig.get(port(rig, policy("ALLOW", rule)), "/").status == 403
    assert rig.get(port(rig, policy("DENY", rule)), "/").status == 403


def test_what_is_right_in_a_deny_rule_still_constrains_it(rig: Rig) -> None:
    """Only the wrong part is read as matching everything."""
    number = port(rig, policy("DENY", to(paths=["/a", "nonsense"], methods=["GET"])))
    caller = rig.call(number)
    assert [caller.get("/b", m).status for m in ("GET", "PUT")] == [403, 200]
    caller.close()


def test_an_unknown_action_refuses(rig: Rig) -> None:
    """It might have been meant to refuse."""
    assert rig.get(port(rig, policy("DENNY", {}))).status == 403
