"""AuthorizationPolicy where there is no HTTP, next to ztunnel's reading, and against odd values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from security_objects import ROOT, Issuer, authentication, policy, security, source, to
from security_rig import VIP, WEB, Rig, running

from control_plane.translate.policy import translate_policy
from mesh.authz import PolicySet, Subject
from mesh.model import SpiffeId

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


# ---- connections without HTTP ----------------------------------------------------------------


def talks(rig: Rig, number: int, peer: str = WEB) -> str:
    """Say what a caller hears without saying anything, and the answer to an "x"."""
    heard = b""
    with suppress(ConnectionError), rig.dial(number, peer) as sock:
        sock.settimeout(0.3)
        with suppress(TimeoutError):
            heard = sock.recv(100)
        sock.settimeout(5)
        sock.sendall(b"x")
        heard += sock.recv(100)
    return heard.decode()


def test_connections_are_judged(rig: Rig) -> None:
    """Who is refused does not even hear the greeting of a server that speaks first."""
    number = port(rig, policy("ALLOW", source(namespaces=["shop"])), tcp=True)
    assert talks(rig, number) == "hello\nx"
    assert not talks(rig, number, DEV)
    number = port(rig, policy("DENY", source(principals=["*/sa/web"])), tcp=True)
    assert not talks(rig, number)
    assert talks(rig, number, DEV) == "hello\nx"


def test_http_attributes_of_connections(rig: Rig) -> None:
    """ALLOW: the rule is left out. DENY: the rest of the rule counts."""
    rule = {**source(namespaces=["shop"]), **to(paths=["/a"])}
    assert not talks(rig, port(rig, policy("ALLOW", rule), tcp=True))
    number = port(rig, policy("DENY", rule), tcp=True)
    assert not talks(rig, number)
    assert talks(rig, number, DEV) == "hello\nx"
    assert not talks(rig, port(rig, policy("DENY", to(methods=["GET"])), tcp=True))
    issuer = Issuer()
    objects = (authentication(issuer.rule()), policy("ALLOW", source(requestPrincipals=["*"])))
    assert not talks(rig, port(rig, *objects, tcp=True))


def test_an_open_connection_ends_when_its_policy_changes(rig: Rig) -> None:
    """It would be judged no more: it is drained, and its next attempt is judged."""
    number = port(rig, policy("ALLOW", source(namespaces=["shop"])), tcp=True)
    with rig.dial(number) as sock:
        assert sock.recv(100) == b"hello\n"
        rig.put(number, security(policy("DENY", source(namespaces=["shop"]))), tcp=True)
        assert sock.recv(100) == b""
    assert not talks(rig, number)


# ---- the same as ztunnel ---------------------------------------------------------------------

_PEERS = [WEB, DEV, FOREIGN, "spiffe://cluster.local/ns/shop/sa/cart"]
_ADDRESSES = ["10.0.0.2", "10.0.1.9"]


def _random_rule(rng: random.Random, number: int) -> Any:
    values = {
        "principals": [
            "cluster.local/ns/shop/sa/web",
            "*/sa/web",
            "cluster.local/*",
            "*",
            "other*",
        ],
        "namespaces": ["shop", "d*", "*p", "*", "sh"],
        "serviceAccounts": ["web", "dev/tool", "cart"],
        "ipBlocks": ["10.0.0.0/24", "10.0.1.9", "10.0.0.0/8", "fd00::/8"],
    }
    rule: dict[str, Any] = {}
    if rng.random() < 0.8:
        rule["from"] = []
        for _ in range(rng.randint(1, 2)):
            fields: dict[str, Any] = {}
            for name in rng.sample(sorted(values), rng.randint(1, 2)):
                field = name if rng.random() < 0.7 else "not" + name[0].upper() + name[1:]
                fields[field] = rng.sample(values[name], rng.randint(1, 2))
            rule["from"].append({"source": fields})
    if rng.random() < 0.4:
        field = rng.choice(["ports", "notPorts"])
        rule["to"] = [{"operation": {field: [rng.choice([str(number), "1"])]}}]
    if rng.random() < 0.4:
        key = rng.choice(["source.principal", "source.namespace", "source.ip"])
        field = {"source.principal": "principals", "source.ip": "ipBlocks"}.get(key, "namespaces")
        rule["when"] = [
            {"key": key, rng.choice(["values", "notValues"]): rng.sample(values[field], 1)}
        ]
    return rule


@pytest.mark.parametrize("seed", range(25))
def test_l4_policies_mean_what_they_mean_to_ztunnel(rig: Rig, seed: int) -> None:
    """Random policies, read by both readers, decide alike: for requests and for connections."""
    rng = random.Random(seed)
    numbers = [next(_ports), next(_ports)]
    objects = [
        policy(rng.choice(["ALLOW", "ALLOW", "DENY"]), *[_random_rule(rng, numbers[0])])
        for _ in range(rng.randint(1, 3))
    ]
    selecting = [{**o, "spec": {**o["spec"], "targetRefs": None}} for o in objects]
    readings = [translate_policy(o, ROOT).authorization for o in selecting]
    judge = PolicySet([r for r in readings if r is not None])
    rig.put(numbers[0], security(*objects))
    rig.put(numbers[1], security(*objects), tcp=True)
    for peer in _PEERS:
        for address in _ADDRESSES:
            identity = SpiffeId.parse_untrusted(peer)
            meant = [judge.judge(Subject(identity, address, VIP, n)).allowed for n in numbers]
            caller = rig.call(numbers[0], peer, address)
            found = [caller.get().status == 200]
            caller.close()
            try:
                rig.dial(numbers[1], peer, address).close()
                found.append(True)
            except ConnectionRefusedError:
                found.append(False)
            assert found == meant, (peer, address, objects)


# ---- hostile values --------------------------------------------------------------------------

_ALPHABET = "aZ09/{}[]().\\|+?^$%#&;:=,'\"<>~`!@-_ \t\n\r\x7f\u00e9\u20ac\U0001f600"


@pytest.mark.parametrize("seed", range(20))
def test_envoy_takes_whatever_is_written_in_a_policy(rig: Rig, seed: int) -> None:
    """One policy that Envoy refused would stop all changes of its waypoint."""
    rng = random.Random(seed)

    def text() -> str:
        return "".join(rng.choice(_ALPHABET) for _ in range(rng.randint(1, 12)))

    def texts() -> list[str]:
        forms = ["/{}", "*{}", "/{}*", "{}"] if rng.random() < 0.2 else ["/{}", "*{}", "/{}*"]
        return [rng.choice(forms).format(text()) for _ in "123"]

    def rule() -> Any:
        fields = ["principals", "namespaces", "requestPrincipals", "trustDomains"]
        name = text().replace("[", "").replace("]", "") or "x"
        return {
            **source(**{rng.choice(fields): texts()}),
            **to(**{rng.choice(["paths", "hosts", "methods"]): texts()}),
            "when": [
                {
                    "key": f"request.{rng.choice(['headers', 'auth.claims'])}[{name}]",
                    rng.choice(["values", "notValues"]): texts(),
                },
                {"key": "connection.sni", "values": texts()},
            ],
        }

    claims = [{"header": text(), "claim": text()}, {"header": "x-a", "claim": text()}]
    tokens = Issuer(text() + ".example").rule(
        audiences=texts(), outputClaimToHeaders=claims, fromParams=texts(), fromCookies=texts()
    )
    objects = [policy(a, *[rule() for _ in "1234"]) for a in ("ALLOW", "DENY", "AUDIT")]
    number = port(rig, *objects, authentication(tokens))
    assert rig.get(number).status in (200, 403)
    port(rig, *objects, tcp=True)
