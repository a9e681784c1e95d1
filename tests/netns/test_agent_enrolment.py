"""The node agent on a real node: real hooks, real namespaces, a stand-in for ztunnel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_rig import AWAY4, AWAY6, NODE4, WORLD4, WORLD6, Pod, Rig, rig, until

from bpf.datapath import Datapath
from mesh.ports import PROBE_PORT
from node_agent import nft

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=["ebpf", "nftables"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One node with agent and stand-in, captured in either way."""
    with rig(tmp_path_factory.mktemp("node")) as made:
        made.start_agent("--redirect", request.param)
        made.start_proxy("--refuse", str(made.folder / "refuse"))
        yield made


@pytest.fixture(scope="module")
def web(node: Rig) -> Pod:
    """An enrolled pod that serves on 8080 and is probed on 8081."""
    pod = node.pod("web")
    node.in_pod(pod, "serve", "8080")
    node.in_pod(pod, "serve", "8081")
    node.enrolled(pod)
    return pod


def test_a_labelled_pod_is_proved_and_says_so(node: Rig, web: Pod) -> None:
    """Annotation and condition are written, in `pods` of /status too."""
    condition = node.condition(web)
    assert (condition["status"], condition["reason"]) == ("True", "Proved")
    status = json.loads(node.fetch(8000, "/status"))
    states = {p["name"]: (p["state"], p["mode"]) for p in status["pods"]}
    assert states["web"] == ("proved", status["redirect"]["mode"])
    assert status["proxies"][0]["held_listeners"] is True


@pytest.mark.parametrize("address", [AWAY4, AWAY6])
def test_outbound_goes_to_the_proxy_which_knows_where_it_was_meant_for(
    node: Rig, web: Pod, address: str
) -> None:
    """The application sees the peer it asked for, the proxy the original destination."""
    source = web.ipv6 if ":" in address else web.ipv4
    peer, said = node.ask(web, address, 80).split(" ", 1)
    assert peer == address
    assert said.split()[:3] == ["OUT", address, "80"]
    assert said.split()[3] in (source, "127.0.0.1", "::1")


@pytest.mark.parametrize("family", [4, 6])
def test_inbound_passes_the_proxy_and_keeps_the_clients_address(
    node: Rig, web: Pod, family: int
) -> None:
    """A connection from outside reaches the application as from the client."""
    target, client = (web.ipv4, WORLD4) if family == 4 else (web.ipv6, WORLD6)
    before = inbound(node, web)
    assert node.ask("world", target, 8080).split()[1] == client
    assert inbound(node, web) > before


def test_probes_from_the_node_reach_the_application_directly(node: Rig, web: Pod) -> None:
    """Declared probe ports bypass the proxy for the node's own addresses, and for no other."""
    before = inbound(node, web)
    assert node.ask("node", web.ipv4, 8081).split()[1] == NODE4
    assert inbound(node, web) == before
    node.ask("world", web.ipv4, 8081)
    assert inbound(node, web) > before


def test_the_pod_talks_to_itself_without_the_proxy(node: Rig, web: Pod) -> None:
    """Over its own address and over loopback."""
    assert node.ask(web, web.ipv4, 8080).split()[1] == web.ipv4
    assert node.ask(web, "127.0.0.1", 8080).split()[1] == "127.0.0.1"


def test_hbone_reaches_its_own_listener(node: Rig, web: Pod) -> None:
    """15008 is not steered to 15006."""
    assert node.ask("world", web.ipv4, 15008).split()[1] == "HBONE"


def test_an_opted_out_pod_is_left_alone(node: Rig, web: Pod) -> None:
    """`none` on the pod beats the namespace: not captured, not marked."""
    pod = node.pod("out", label="none")
    node.in_pod(pod, "serve", "8080")
    other = node.pod("later")
    node.enrolled(other)
    assert node.mark(pod) == ""
    assert node.ask(web, pod.ipv4, 8080).split()[1] == "OUT"  # web is captured, `out` never saw it
    assert node.ask("world", pod.ipv4, 8080).split()[1] == WORLD4
    node.remove(pod)
    node.remove(other)


def test_another_pods_namespace_is_refused(node: Rig, web: Pod) -> None:
    """A pod paired with the wrong namespace would get the wrong identity."""
    pod = node.pod("thief", netns_of=web)
    condition = until(
        lambda: c if (c := node.condition(pod)).get("reason") == "WrongNetns" else None,
        "the mismatch in the status",
    )
    assert condition["status"] == "False"
    assert pod.ipv4 in condition["message"]
    assert web.ipv4 in condition["message"]
    assert node.mark(pod) == "pending"
    (node.runtime / f"{pod.uid}.json").unlink()
    node.store.delete("Pod", "mesh", "thief")


def test_a_refusal_by_ztunnel_keeps_the_pod_pending_until_it_is_lifted(node: Rig) -> None:
    """The ack's text is in the condition, nothing is captured, and a retry enrols it."""
    refuse = node.folder / "refuse"
    refuse.write_text("no certificate for spiffe://x")
    pod = node.pod("unlucky")
    until(lambda: "no certificate" in node.condition(pod).get("message", ""), "the refusal")
    assert node.mark(pod) == "pending"
    refuse.unlink()
    node.enrolled(pod)
    node.remove(pod)


def test_label_and_unlabel_under_traffic_lose_no_connection(node: Rig) -> None:
    """A server pod that enters and leaves twice while a client outside connects all the time."""
    pod = node.pod("flap", label="none")
    node.in_pod(pod, "serve", "8080")
    loop = node.in_world("loop", pod.ipv4, "8080")
    for _ in range(2):
        node.label(pod, "ambient")
        node.enrolled(pod)
        node.label(pod, "none")
        until(lambda: node.mark(pod) == "", "annotation removed")
    node.label(pod, "ambient")
    node.enrolled(pod)
    outcomes = node.outcomes(loop)
    assert set(outcomes) == {"ok"}, outcomes
    assert outcomes["ok"] > 20
    node.remove(pod)


def test_an_unlabelled_pod_is_free_again(node: Rig) -> None:
    """After the grace nothing of ours is left inside it."""
    pod = node.pod("leaver", label="ambient")
    node.in_pod(pod, "serve", "8080")
    node.enrolled(pod)
    node.label(pod, "none")
    until(lambda: node.mark(pod) == "", "annotation removed")
    until(lambda: state_of(node, pod) == "", "agent lets go of it")
    assert node.ask("world", pod.ipv4, PROBE_PORT) == ""
    assert node.ask("world", pod.ipv4, 15008) == ""
    assert node.ask("world", pod.ipv4, 8080).split()[1] == WORLD4
    node.remove(pod)


def test_a_pod_that_is_gone_leaves_nothing_open(node: Rig) -> None:
    """Its namespace dies although agent, holder and proxy had descriptors of it."""
    pod = node.pod("mortal")
    node.enrolled(pod)
    inode = Path(f"/run/netns/{pod.netns}").stat().st_ino
    node.remove(pod)
    until(lambda: state_of(node, pod) == "", "agent lets go of it")
    assert node.agent is not None
    pids = [node.agent.pid, *node.holder_pids()]
    until(lambda: not any(holds(pid, inode) for pid in pids), "descriptors closed")


def test_metrics_and_health_say_what_is(node: Rig, web: Pod) -> None:
    """The names of the contract, on the contract's ports."""
    text = node.fetch(15014, "/metrics")
    mode = json.loads(node.fetch(8000, "/status"))["redirect"]["mode"]
    assert f'ambit_redirect_mode{{mode="{mode}"}} 1.0' in text
    assert 'ambit_pods{state="proved"} 1.0' in text
    assert "ztunnel_connected 1.0" in text
    assert 'nodeagent_reconcile_events_total{type="add"}' in text
    assert "ambit_enrolment_duration_seconds_bucket" in text
    assert node.fetch(8000, "/healthz").strip() == "ok"
    assert node.fetch(8000, "/readyz").strip() == "ok"


def inbound(node: Rig, pod: Pod) -> int:
    """Count connections to the pod that were captured."""
    mode = json.loads(node.fetch(8000, "/status"))["redirect"]["mode"]
    counts = {"ebpf": ebpf_inbound, "nftables": nft_inbound}
    return counts[mode](node, pod)


def nft_inbound(node: Rig, pod: Pod) -> int:
    with Path(f"/run/netns/{pod.netns}").open() as netns:
        return nft.counters(netns.fileno())[1]


def ebpf_inbound(node: Rig, pod: Pod) -> int:
    path = Datapath.peek(node.pins)
    try:
        return path.pod_counters(pod.uid)[1]
    finally:
        path.close()


def state_of(node: Rig, pod: Pod) -> str:
    """Give a pod's state as the agent sees it, "" when it does not know it."""
    pods = json.loads(node.fetch(8000, "/status"))["pods"]
    return next((p["state"] for p in pods if p["uid"] == pod.uid), "")


def holds(pid: int, netns_inode: int) -> bool:
    """Say whether a process has a network namespace open."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if entry.readlink().name == f"net:[{netns_inode}]":
                return True
        except OSError:
            continue
    return False
