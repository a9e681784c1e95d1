"""Small parts of the agent: options, health pages, nftables text, addresses."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mesh.env import everywhere
from node_agent import nft, rtnl
from node_agent.config import parse
from node_agent.metrics import STATES, Metrics
from node_agent.redirect import probe_sources
from node_agent.web import Page, PageServer, verdict

BASE = [
    *("--node", "n1", "--objects", "/o", "--runtime", "/r", "--pins", "/p"),
    *("--cgroup", "/c", "--proxy-cgroup", "/c/z", "--zds", "/s/zds.sock"),
]


def test_options_have_defaults_that_fit_together() -> None:
    """State lies beside the ZDS socket; the ports are the contract's."""
    config = parse(BASE)
    assert config.state == Path("/s/agent")
    assert (config.metrics, config.health) == ((everywhere(), 15014), (everywhere(), 8000))
    assert (config.redirect, config.release_grace) == ("auto", 3.0)


def test_the_environment_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option has a variable; the command line wins."""
    for name, value in {
        "NODE_NAME": "n2",
        "AMBIT_OBJECTS": "/o",
        "AMBIT_RUNTIME": "/r",
        "AMBIT_PINS": "/p",
        "AMBIT_CGROUP": "/c",
        "AMBIT_PROXY_CGROUP": "/z",
        "ZTUNNEL_UDS_ADDRESS": "/x/zds",
        "AMBIT_NODE_ADDRESSES": "10.0.0.1, fd00::1",
        "AMBIT_REDIRECT": "nftables",
        "AMBIT_HEALTH": "[::1]:80",
    }.items():
        monkeypatch.setenv(name, value)
    config = parse(["--node", "n3"])
    assert config.node == "n3"
    assert config.node_addresses == ("10.0.0.1", "fd00::1")
    assert (config.redirect, config.health) == ("nftables", ("::1", 80))


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--node-address", "10.0.0"], "--node-address 10.0.0"),
        (["--redirect", "iptables"], "--redirect iptables"),
        (["--metrics", "15014x"], "ADDRESS:PORT"),
        (["--release-grace", "-1"], "seconds"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(
    more: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the option."""
    with pytest.raises(SystemExit):
        parse([*BASE, *more])
    assert complaint in capsys.readouterr().err


def test_missing_options_are_named_together(capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, not one at a time."""
    with pytest.raises(SystemExit):
        parse(["--node", "n1"])
    message = capsys.readouterr().err
    assert all(name in message for name in ("--objects", "--cgroup", "--proxy-cgroup"))


def test_health_pages_follow_what_the_agent_says() -> None:
    """200 while alive and ready, 503 when not; /status is its JSON."""
    state = {"alive": True, "ready": False}

    def busy() -> Page:
        raise TimeoutError

    server = PageServer(
        ("127.0.0.1", 0),
        {
            "/healthz": lambda: verdict(state["alive"]),
            "/readyz": lambda: verdict(state["ready"]),
            "/status": lambda: Page(b'{"node": "n1"}', "application/json"),
            "/busy": busy,
        },
    )
    port = server.server_address[1]

    def get(path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    assert get("/healthz")[0] == 200
    assert get("/readyz")[0] == 503
    state.update(alive=False, ready=True)
    assert get("/healthz")[0] == 503
    assert get("/readyz?verbose")[0] == 200
    assert json.loads(get("/status")[1]) == {"node": "n1"}
    assert get("/busy")[0] == 503
    assert get("/") == (404, b"try /healthz, /readyz, /status, /busy\n")


def test_more_requests_than_there_is_room_for_are_closed_and_room_comes_back() -> None:
    """Idle connections cost a bounded number of threads; when they end others are served."""
    server = PageServer(("127.0.0.1", 0), {"/": lambda: Page(b"here")})
    address = ("127.0.0.1", int(server.server_address[1]))
    idle = [socket.create_connection(address, timeout=3) for _ in range(16)]
    with socket.create_connection(address, timeout=3) as late:
        assert late.recv(10) == b""
    for sock in idle:
        sock.close()
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=3) as again:
            again.sendall(b"GET / HTTP/1.0\r\n\r\n")
            if again.recv(100).startswith(b"HTTP/1.0 200"):
                return
        time.sleep(0.02)
    raise AssertionError("it never serves again")


def test_the_rules_are_those_of_the_contract() -> None:
    """Exemptions come first, only SYNs are turned, the proxy's own mark is never."""
    text = nft.ruleset(["10.0.0.2", "fd00::2"], [8081, 8080])
    lines = [line.strip() for line in text.splitlines()]
    inbound = lines[lines.index("chain inbound {") + 2 :]
    assert inbound[:2] == [
        "ip saddr 10.0.0.2 tcp dport { 8080, 8081 } accept",
        "ip6 saddr fd00::2 tcp dport { 8080, 8081 } accept",
    ]
    turned = [line for line in lines if "redirect to" in line]
    assert len(turned) == 4
    assert all("tcp flags & (fin | syn | rst | ack) == syn" in line for line in turned)
    assert all("meta mark & 0xfff != 0x539" in line for line in turned)
    assert sum("tcp dport != 15008" in line and ":15006" in line for line in turned) == 2
    assert sum(":15001" in line for line in turned) == 2


def test_draining_rules_turn_nothing_and_keep_the_chains() -> None:
    """Open connections are translated on; no probe port means no exemption either."""
    text = nft.ruleset((), (), draining=True)
    assert "redirect" not in text
    assert text.count("type nat hook") == 2
    assert "saddr" not in nft.ruleset(["10.0.0.2"], [])


def test_addresses_of_this_namespace_are_found() -> None:
    """Over rtnetlink, without root."""
    assert "127.0.0.1" in rtnl.addresses()


def test_probe_sources_are_the_routes_own() -> None:
    """Toward loopback it is loopback; a destination nothing can be sent to has none."""
    assert probe_sources(["127.0.0.1", "255.255.255.255"]) == ("127.0.0.1",)


def test_metrics_count_pods_by_state_and_forget_what_is_over() -> None:
    """Every state is always there, so that dashboards can add and compare."""
    metrics = Metrics()
    metrics.set_states(["proved", "proved", "failed"])
    metrics.set_states(["proved"])
    value = metrics.registry.get_sample_value
    assert value("ambit_pods", {"state": "proved"}) == 1
    assert value("ambit_pods", {"state": "failed"}) == 0
    assert all(value("ambit_pods", {"state": state}) is not None for state in STATES)
    metrics.set_mode("nftables", {"connect4": False})
    assert value("ambit_redirect_mode", {"mode": "ebpf"}) == 0
    assert value("ambit_redirect_mode", {"mode": "nftables"}) == 1
    assert value("ambit_hook_loaded", {"hook": "connect4"}) == 0
