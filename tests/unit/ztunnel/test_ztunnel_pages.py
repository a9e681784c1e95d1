"""What operators set and read: configuration, log levels, pages, the config dump."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ztunnel_rig import Authority

from cli import dump as cli_dump
from mesh.ca.csr import held_untrusted, new_request
from mesh.ca.store import CertStore
from mesh.errors import BadInput, ConfigError
from mesh.logs import Levels, parse
from mesh.model import (
    Action,
    Authorization,
    Clause,
    Gateway,
    LoadBalancing,
    Locality,
    Match,
    Port,
    Rule,
    Scope,
    Service,
    StringMatch,
    Tunnel,
    Workload,
)
from mesh.web import Answer, Page, Request, answer, request_untrusted
from ztunnel import dump, ipc, netns
from ztunnel.config import from_environment, help_text
from ztunnel.pods import LocalPod
from ztunnel.route import peer_of
from ztunnel.state import Effects, State

# ---- configuration -----------------------------------------------------------------------------


def test_defaults() -> None:
    """Without any variable: the contract's ports, two workers, 25 s to drain."""
    config = from_environment({}, cpus=8)
    assert config.xds_address == config.ca_address == "https://istiod.istio-system.svc:15012"
    assert config.workers == 2
    assert config.drain_seconds == 25
    assert config.admin == ("127.0.0.1", 15000)
    assert (config.ready[1], config.metrics[1]) == (15021, 15020)
    assert not config.on_demand


@pytest.mark.parametrize(("text", "workers"), [("0", 8), ("3", 3), ("50%", 4), ("1%", 1), ("", 2)])
def test_workers(text: str, workers: int) -> None:
    """A number, all, or a share."""
    assert from_environment({"ZTUNNEL_WORKER_THREADS": text}, cpus=8).workers == workers


def test_grace_period_leaves_time_to_end() -> None:
    """grace - 5, at least 1; its own variable beats it."""
    grace = "TERMINATION_GRACE_PERIOD_SECONDS"
    assert from_environment({grace: "3"}, 1).drain_seconds == 1
    assert from_environment({grace: "60s"}, 1).drain_seconds == 55
    own = {grace: "60", "CONNECTION_TERMINATION_DEADLINE": "7s"}
    assert from_environment(own, 1).drain_seconds == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ZTUNNEL_WORKER_THREADS", "many"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "-1"),
        ("SECRET_TTL", "a day"),
        ("XDS_ADDRESS", "ftp://x"),
        ("XDS_ON_DEMAND", "maybe"),
        ("LOG_FORMAT", "xml"),
        ("ADMIN_ADDR", "15000"),
        ("READY_ADDR", "0.0.0.0:99999"),
    ],
)
def test_wrong_values_are_named(name: str, value: str) -> None:
    """The error says which variable, what it was, and what to write."""
    with pytest.raises(ConfigError, match=f"{name}='{value}': write"):
        from_environment({name: value}, 1)


def test_help_names_every_variable() -> None:
    """Those of the relay workers too."""
    for name in ("XDS_ADDRESS", "INPOD_UDS", "POOL_MAX_STREAMS_PER_CONNECTION", "LOG_FORMAT"):
        assert name in help_text()


def test_secrets_stay_out_of_the_dump() -> None:
    """Headers may carry them."""
    config = from_environment({"XDS_HEADER_X": "hush", "CA_HEADER_Y": "hush"}, 1)
    assert config.headers == {"xds": {"x": "hush"}, "ca": {"y": "hush"}}
    assert "hush" not in json.dumps(config.for_dump())


# ---- logging -----------------------------------------------------------------------------------


@pytest.fixture
def levels() -> Iterator[Levels]:
    root, access = logging.getLogger(), logging.getLogger("access")
    before = root.level, access.level
    yield Levels("info,access=error")
    root.setLevel(before[0])
    access.setLevel(before[1])


def test_levels_by_scope(levels: Levels) -> None:
    """Set, shown, reset; other scopes go back to inheriting."""
    assert str(levels) == "info,access=error"
    levels.set("xds:debug")
    levels.set("warn")
    assert str(levels) == "warn,access=error,xds=debug"
    assert logging.getLogger("mesh.xds.client").isEnabledFor(logging.DEBUG)
    levels.reset()
    assert str(levels) == "info,access=error"
    assert not logging.getLogger("mesh.xds.client").isEnabledFor(logging.DEBUG)


def test_workers_get_a_level_they_know(levels: Levels) -> None:
    """Their logging has no `off`; a level it does not know would end them at once."""
    for text, expected in (("off", "CRITICAL"), ("warn", "WARNING"), ("trace", "DEBUG")):
        levels.set(text)
        assert levels.for_workers == expected


@pytest.mark.parametrize("text", ["loud", "access=", "a=b=c", ""])
def test_unknown_levels_change_nothing(levels: Levels, text: str) -> None:
    """Refused as a whole."""
    with pytest.raises(BadInput, match="log level"):
        levels.set(f"debug,{text}")
    assert str(levels) == "info,access=error"
    with pytest.raises(BadInput):
        parse(text)


# ---- pages -------------------------------------------------------------------------------------


async def _hello(request: Request) -> Answer:
    return Answer(f"hello {request.query.get('name', '')}".encode())


async def _broken(request: Request) -> Answer:
    raise RuntimeError("oops")


PAGES: dict[tuple[str, str], Page] = {("GET", "/hello"): _hello, ("POST", "/broken"): _broken}


@pytest.mark.parametrize(
    ("head", "status", "body"),
    [
        (b"GET /hello?name=you&x= HTTP/1.1\r\nHost: a\r\n\r\n", 200, b"hello you"),
        (b"HEAD /hello HTTP/1.0\r\n\r\n", 200, b"hello "),
        (b"POST /hello HTTP/1.1\r\n\r\n", 405, b"POST is not for /hello"),
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404, b"there are: /broken /hello"),
        (b"POST /broken HTTP/1.1\r\n\r\n", 500, b"see the log"),
        (b"PRI * HTTP/2.0\r\n\r\n", 400, b"not HTTP/1"),
        (b"\x16\x03\x01\r\n\r\n", 400, b"not an HTTP request"),
    ],
)
def test_pages(head: bytes, status: int, body: bytes) -> None:
    """Every request has an answer, and a wrong one says what would be right."""
    made = asyncio.run(answer(PAGES, head))
    assert made.status == status
    assert body in made.body


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_bad_input(head: bytes) -> None:
    """The parser raises nothing else."""
    try:
        request_untrusted(head)
    except BadInput:
        return


# ---- config dump -------------------------------------------------------------------------------

POD = Workload(
    "c//Pod/shop/web-1",
    "web-1",
    "shop",
    ("10.244.1.5", "fd00::5"),
    "web",
    tunnel=Tunnel.HBONE,
    node="n1",
    locality=Locality("r"),
    waypoint=Gateway(15008, namespace="shop", hostname="wp.shop"),
    network_gateway=Gateway(15008, address="1.2.3.4"),
    application_tunnel_port=15088,
    services={"shop/web.shop": (Port(80, 8080),)},
)
SERVICE = Service(
    "web",
    "shop",
    "web.shop",
    vips=("10.96.0.1",),
    cidrs=("10.0.0.0/8",),
    ports=(Port(80, 8080),),
    waypoint=Gateway(15008, address="10.96.0.9"),
    load_balancing=LoadBalancing((4, 99), 2, 1),
)
POLICY = Authorization(
    "p",
    "shop",
    Scope.NAMESPACE,
    Action.DENY,
    (
        Rule(
            (
                Clause(
                    (
                        Match(
                            not_principals=(StringMatch("presence"), StringMatch("prefix", "a")),
                            service_accounts=(("shop", "web"),),
                            destination_ports=(80,),
                        ),
                    )
                ),
            )
        ),
    ),
)
IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"


def made_dump() -> dump.Json:
    state = State()
    state.set_address(POD.uid, POD, Effects())
    state.set_address(SERVICE.key, SERVICE, Effects())
    state.set_policy(POLICY, Effects())
    certs = CertStore(lambda: 0.5)
    certs.acquire(IDENTITY, "uid-1", 0)
    certs.acquire("spiffe://cluster.local/ns/shop/sa/none", "uid-2", 0)
    request = new_request(IDENTITY)
    held = held_untrusted(IDENTITY, request.key_pem, Authority().sign(request.csr_pem))
    certs.granted(IDENTITY, held, held.not_before)
    pod = LocalPod("uid-1", "web-1", "shop", "web", "cluster.local", [], (), 1, POD, serving=True)
    conn = ipc.Connection(
        "uid-1",
        "outbound",
        ("10.244.1.5", 4000),
        ("10.244.2.9", 8080),
        ("10.96.0.7", 80),
        ("10.244.2.9", 15008),
        True,
        peer_of(POD),
        peer_of(replace(POD, service_account="echo")),
    )
    inbound = replace(conn, direction="inbound", hbone=None, secure=False, src=("fd00::9", 1))
    return dump.config_dump(
        state,
        certs.identities.values(),
        [pod],
        {"uid-1": [(conn, 10, 20), (inbound, 1, 2)]},
        from_environment({"NODE_NAME": "n1"}, 1).for_dump(),
        "1.2.3",
        held.not_before + 5,
    )


def test_dump_is_read_by_our_cli() -> None:
    """Names and forms of Istio's ztunnel, as the command line reads them."""
    text = json.dumps(made_dump()).encode()
    read = cli_dump.parse_untrusted(text)
    wanted = cli_dump.Filter()
    (row,) = cli_dump.workload_rows(cli_dump.workloads([read], wanted), [read])
    assert row == ["shop", "web-1", "10.244.1.5,fd00::5", "n1", "shop/wp.shop", "HBONE"]
    (row,) = cli_dump.service_rows(cli_dump.services([read], wanted), [read])
    assert row == ["shop", "web", "10.96.0.1", "/10.96.0.9", "1/1"]
    (row,) = cli_dump.policy_rows(cli_dump.policies([read], wanted))
    assert row == ["shop", "p", "Deny", "Namespace"]
    outbound, inbound = sorted(
        cli_dump.connection_rows(
            cli_dump.connections(read, wanted), [read], cli_dump.Filter(raw=True)
        ),
        key=lambda r: r[1],
        reverse=True,
    )
    assert outbound == [
        "web-1.shop",
        "Outbound",
        "10.244.1.5:4000",
        "10.244.2.9:15008",
        "10.96.0.7:80",
        "HBONE",
    ]
    assert inbound[3] == "[fd00::9]:1"
    assert inbound[5] == "TCP"


def test_dump_of_rules_and_certificates() -> None:
    """Rules nest as on the wire; certificates come without their key, missing ones with a state."""
    made = made_dump()
    assert made["policies"][0]["rules"] == [
        [
            [
                {
                    "notPrincipals": [{"Presence": []}, {"Prefix": "a"}],
                    "serviceAccounts": [{"namespace": "shop", "serviceAccount": "web"}],
                    "destinationPorts": [80],
                }
            ]
        ]
    ]
    states = {c["identity"]: c["state"] for c in made["certificates"]}
    assert states == {
        IDENTITY: "Available",
        "spiffe://cluster.local/ns/shop/sa/none": "Initializing",
    }
    assert "PRIVATE KEY" not in json.dumps(made)
    assert made["services"][0]["loadBalancer"]["routingPreferences"] == ["Node", "99"]
    assert made["version"]["version"] == "1.2.3"


# ---- namespaces --------------------------------------------------------------------------------


def test_own_addresses_from_the_kernels_tables() -> None:
    """Local addresses without loopback and broadcast; of IPv6 the global ones."""
    trie = """Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.244.1.0
        /24 link UNICAST
     |-- 10.244.1.5
        /32 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 10.244.1.255
        /32 link BROADCAST
"""
    v6 = (
        "fe80000000000000000000000000abcd 02 40 20 80 eth0\n"
        "fd000010024400010000000000000005 02 40 00 80 eth0\n"
        "00000000000000000000000000000001 01 80 10 80 lo\n"
    )
    assert netns._local_v4(trie) == ["10.244.1.5"]
    assert netns._local_v6(v6) == ["fd00:10:244:1::5"]


def test_work_in_no_namespace_fails_with_its_cause(tmp_path: Path) -> None:
    """A descriptor of something else: the error says what was tried."""
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError, match="network namespace"):
        netns.inside(file.fileno(), lambda: None)
