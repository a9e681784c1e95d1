"""Nothing that restarts loses a connection attempt; nothing that lies stays `enabled`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import AWAY4, Rig, rig, run, until

from node_agent import nft
from node_agent.proof import prove
from node_agent.redirect import NftRedirect
from node_agent.sandbox import Sandbox, StepError, inside, listen
from node_agent.source import DesiredPod

pytestmark = pytest.mark.root


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Rig]:
    """A node with nothing running yet."""
    with rig(tmp_path) as made:
        yield made


@pytest.mark.parametrize("mode", ["ebpf", "nftables"])
def test_an_agent_restart_loses_no_connection(node: Rig, mode: str) -> None:
    """Agent ended, then agent and proxy killed together, under loops of connects out and in."""
    agent = node.start_agent("--redirect", mode)
    proxy = node.start_proxy()
    pod = node.pod("web")
    node.in_pod(pod, "serve", "8080")
    node.enrolled(pod)
    loops = [node.in_pod(pod, "loop", AWAY4, "80"), node.in_world("loop", pod.ipv4, "8080")]
    time.sleep(0.3)
    assert node.kill(agent, signal.SIGTERM) == 0
    time.sleep(0.2)
    assert node.mark(pod) == "enabled"
    agent = node.start_agent("--redirect", mode)
    until(lambda: node.log().count("has acknowledged every pod") == 2, "the proxy is back", 15)
    node.kill(agent, signal.SIGKILL)
    node.kill(proxy, signal.SIGKILL)
    node.start_agent("--redirect", mode)
    node.start_proxy()
    until(lambda: node.log().count("has acknowledged every pod") == 3, "both are back", 15)
    time.sleep(0.3)
    for outcomes in [node.outcomes(loop) for loop in loops]:
        refused = {k: v for k, v in outcomes.items() if "Error" in k}
        assert not refused, outcomes
        assert outcomes["ok"] > 50, outcomes
    assert node.mark(pod) == "enabled"
    assert "pending" not in [p["redirection"] for p in pods(node)]


def test_a_killed_holder_is_replaced_and_given_everything(node: Rig) -> None:
    """The agent notices within a second; its own kill after that still loses nothing."""
    agent = node.start_agent("--redirect", "nftables")
    node.start_proxy()
    pod = node.pod("web")
    node.enrolled(pod)
    (old,) = node.holder_pids()
    os.kill(old, signal.SIGKILL)
    until(lambda: node.holder_pids() not in ([], [old]), "another holder", 5)
    loop = node.in_pod(pod, "loop", AWAY4, "80")
    node.kill(agent)
    node.start_agent("--redirect", "nftables")
    until(lambda: node.log().count("has acknowledged every pod") == 2, "the proxy is back", 15)
    outcomes = node.outcomes(loop)
    assert not {k for k in outcomes if "Error" in k}, outcomes


def test_agent_and_holder_killed_together_heal(node: Rig) -> None:
    """Only the proxy has the listeners then: it is told to let go, and the pod is enrolled anew."""
    agent = node.start_agent("--redirect", "nftables")
    node.start_proxy()
    pod = node.pod("web")
    node.enrolled(pod)
    for pid in node.holder_pids():
        os.kill(pid, signal.SIGKILL)
    node.kill(agent)
    node.start_agent("--redirect", "nftables")
    until(lambda: node.mark(pod) == "pending", "it is not believed to be captured")
    node.enrolled(pod)
    assert node.ask(pod, AWAY4, 80).split()[1] == "OUT"


def test_a_pod_that_ended_while_no_agent_ran_is_cleaned_up(node: Rig) -> None:
    """And one that was unlabelled meanwhile is released."""
    agent = node.start_agent("--redirect", "ebpf")
    node.start_proxy()
    dead, left = node.pod("dead"), node.pod("left")
    node.in_pod(left, "serve", "8080")
    node.enrolled(dead, left)
    node.kill(agent)
    node.remove(dead)
    node.label(left, "none")
    node.start_agent("--redirect", "ebpf")
    until(lambda: node.mark(left) == "", "released")
    until(lambda: not pods(node), "nothing left to manage")
    assert "ended while no agent ran" in node.log()
    assert node.ask("world", left.ipv4, 8080)


def test_a_plain_ztunnel_that_opens_its_own_listeners_is_served_by_nftables(node: Rig) -> None:
    """The common ZDS contract and no more: namespace only, rules in the pod, source kept."""
    node.start_agent("--redirect", "nftables")
    node.start_proxy("--plain")
    pod = node.pod("web")
    node.in_pod(pod, "serve", "8080")
    node.enrolled(pod)
    assert pods(node)[0]["mode"] == "nftables"
    assert node.ask(pod, AWAY4, 80).split()[1] == "OUT"
    for target, client in ((pod.ipv4, "10.77.0.99"), (pod.ipv6, "fd77::99")):
        assert node.ask("world", target, 8080).split()[1] == client


def test_a_proxy_of_the_other_kind_takes_over(node: Rig) -> None:
    """From one that takes our listeners to one that opens its own, and back."""
    node.start_agent()
    first = node.start_proxy()
    pod = node.pod("web")
    node.enrolled(pod)
    for kind, mode in (("--plain", "nftables"), ("", "ebpf")):
        node.kill(first)
        first = node.start_proxy(*([kind] if kind else []))
        until(lambda mode=mode: pods(node)[0]["mode"] == mode, f"captured by {mode}", 15)
        node.enrolled(pod)
        assert node.ask(pod, AWAY4, 80).split()[1] == "OUT"


def test_broken_hooks_are_noticed_and_put_right(node: Rig) -> None:
    """Rules flushed behind the agent's back: the next proof fails, puts them in, and holds."""
    node.start_agent("--redirect", "nftables")
    proxy = node.start_proxy()
    pod = node.pod("web")
    node.enrolled(pod)
    run("nsenter", f"--net=/run/netns/{pod.netns}", "nft", "flush", "ruleset")
    node.kill(proxy)
    node.start_proxy()
    until(lambda: "not captured" in node.log(), "the proof fails", 15)
    until(lambda: node.log().count("has acknowledged every pod") == 2, "the proxy is back", 15)
    until(lambda: pods(node)[0]["state"] == "proved", "proved again", 15)
    assert node.ask(pod, AWAY4, 80).split()[1] == "OUT"


def test_a_detached_hook_makes_the_pod_pending(node: Rig) -> None:
    """What the agent cannot put right it does not call enabled: outbound IPv4 runs free here."""
    node.start_agent("--redirect", "ebpf")
    proxy = node.start_proxy()
    pod = node.pod("web")
    node.enrolled(pod)
    (node.pins / "hooks" / "connect4").unlink()
    node.kill(proxy)
    node.start_proxy()
    until(lambda: node.mark(pod) == "pending", "the lie is taken back", 15)
    assert node.condition(pod)["reason"] == "NotProved"
    assert "192.0.2.1" in node.condition(pod)["message"]


def test_a_hook_that_does_not_load_means_nftables_and_is_said(
    node: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message with hook, cause and way out; metric and status say the same."""
    monkeypatch.setenv("AMBIT_DISABLE_HOOKS", "sk_lookup")
    node.start_agent()
    node.start_proxy()
    pod = node.pod("web")
    node.enrolled(pod)
    messages = [line for line in node.log().splitlines() if "falling back" in line]
    assert len(messages) == 1
    assert "sk_lookup" in messages[0]
    redirect = json.loads(node.fetch(8000, "/status"))["redirect"]
    assert redirect["mode"] == "nftables"
    assert "sk_lookup" in redirect["cause"]
    assert (redirect["hooks"]["connect4"], redirect["hooks"]["sk_lookup"]) == (1, 0)
    metrics = node.fetch(15014, "/metrics")
    assert 'ambit_hook_loaded{hook="sk_lookup"} 0.0' in metrics
    assert 'ambit_redirect_mode{mode="nftables"} 1.0' in metrics
    assert node.ask(pod, AWAY4, 80).split()[1] == "OUT"


def test_cleanup_leaves_nothing(node: Rig) -> None:
    """Capture, rules, holder, annotations: all gone, and the pod is reachable as before."""
    agent = node.start_agent()
    proxy = node.start_proxy()
    pod = node.pod("web")
    node.in_pod(pod, "serve", "8080")
    node.enrolled(pod)
    refused = node.spawn(node.node, node.cgroup / "system/agent", *node.agent_command("--cleanup"))
    assert refused.wait(15) == 1
    assert "another node agent" in node.log()
    node.kill(agent, signal.SIGTERM)
    assert node.mark(pod) == "enabled"
    assert node.holder_pids()
    cleaner = node.spawn(node.node, node.cgroup / "system/agent", *node.agent_command("--cleanup"))
    assert cleaner.wait(15) == 0, node.log()
    node.kill(proxy)
    assert node.mark(pod) == ""
    assert node.condition(pod) == {}
    assert not node.pins.exists()
    until(lambda: not node.holder_pids(), "holder gone")
    rules = run("nsenter", f"--net=/run/netns/{pod.netns}", "nft", "list", "ruleset")
    assert rules.strip() == ""
    assert node.ask("world", pod.ipv4, 8080).split()[1] == "10.77.0.99"


@pytest.mark.parametrize(
    ("broken", "message"),
    [("nothing is captured", "inbound"), ("only inbound is captured", "outbound")],
)
def test_a_proof_fails_when_capture_is_missing(node: Rig, broken: str, message: str) -> None:
    """The proof is of the pod's own traffic: half a capture is none."""
    pod = node.pod("web", label="none")
    desired = DesiredPod(
        pod.uid, "mesh", "web", "default", (pod.ipv4, pod.ipv6), f"/run/netns/{pod.netns}",
        str(pod.cgroup), (), True,
    )  # fmt: skip
    redirect = NftRedirect(())
    with Path(desired.netns).open() as file, Path(f"/run/netns/{node.node}").open() as home:
        sandbox = Sandbox(pod.uid, file.fileno(), listen(file.fileno()))
        try:
            redirect.capture(desired, sandbox)
            with inside(sandbox.netns):
                run("nft", "flush", "chain", "inet", nft.TABLE, "outbound")
                if broken.startswith("nothing"):
                    run("nft", "flush", "chain", "inet", nft.TABLE, "inbound")
            with inside(home.fileno()), pytest.raises(StepError, match=message) as caught:
                asyncio.run(prove(desired, sandbox, redirect))
            assert caught.value.reason == "NotProved"
            redirect.capture(desired, sandbox)
            with inside(home.fileno()):
                asyncio.run(prove(desired, sandbox, redirect))
        finally:
            sandbox.close_listeners()


def pods(node: Rig) -> list[dict[str, str]]:
    """Give the agent's own view of its pods."""
    found = json.loads(node.fetch(8000, "/status"))["pods"]
    assert isinstance(found, list)
    return found
