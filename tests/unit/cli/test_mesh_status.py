"""`ambit status` says what is wrong, where, and what to do; and says nothing when all is well."""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from cli import status
from cli.health import Facts, NodeFacts, agent_status_untrusted, assess
from cli.target import Unreachable
from mesh.errors import BadInput

NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
DUMP: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "ztunnel.json").read_bytes())
HEALTHY_DUMP = {
    **DUMP,
    "version": {"version": "0.1.0"},
    "certificates": [c for c in DUMP["certificates"] if c["state"] == "Available"],
}
AGENT: dict[str, Any] = {
    "node": "node1",
    "redirect": {"mode": "ebpf", "cause": "", "hooks": {"connect4": 1, "sk_lookup": 1}},
    "pods": [
        {
            "uid": "1",
            "namespace": "shop",
            "name": "web-1",
            "state": "proved",
            "redirection": "enabled",
            "mode": "ebpf",
            "reason": "Proved",
            "message": "a connection through its own hooks arrived",
        },
        {"uid": "2", "namespace": "plain", "name": "old", "state": "absent", "redirection": ""},
    ],
    "proxies": [{"held_listeners": True, "synced": True, "pods": 1, "waiting": 0}],
}
METRICS = """\
# TYPE pilot_xds gauge
pilot_xds{version="0.1.0"} 1.0
# TYPE pilot_resources gauge
pilot_resources{type="address"} 5.0
pilot_resources{type="authorization"} 2.0
# TYPE pilot_malformed_objects gauge
pilot_malformed_objects 0.0
# TYPE citadel_server_root_cert_expiry_timestamp gauge
citadel_server_root_cert_expiry_timestamp 2.1e+09
"""


class FakeTarget:
    """A mesh of one node; `pages` by port, an exception is raised instead of served."""

    def __init__(self, **changes: Any) -> None:
        self.pages: dict[int, Any] = {
            15014: METRICS.encode(),
            8000: json.dumps(AGENT).encode(),
            15021: b"ready\n",
            15000: json.dumps(HEALTHY_DUMP).encode(),
        }
        self.pages.update({int(k.lstrip("p")): v for k, v in changes.items() if k != "objects_"})
        self.objects_ = changes.get("objects_", [])

    def nodes(self) -> list[str]:
        return ["node1"]

    def fetch(self, node: str, port: int, path: str, method: str = "GET") -> bytes:
        page = self.pages[port]
        if isinstance(page, Exception):
            raise page
        assert isinstance(page, bytes)
        return page

    def fetch_control_plane(self, port: int, path: str) -> list[bytes]:
        pages = self.pages[port]
        if isinstance(pages, list):
            return pages
        return [self.fetch("", port, path)]

    def objects(self, kind: str) -> list[dict[str, Any]]:
        return [o for o in self.objects_ if o["kind"] == kind]

    def log_command(self, component: str) -> str:
        return f"ambit lab logs {component} --name x"


def judge(**changes: Any) -> dict[str, Any]:
    return assess(status.gather(FakeTarget(**changes)), NOON, lambda c: f"ambit lab logs {c}")


def agent(**changes: Any) -> bytes:
    return json.dumps({**AGENT, **changes}).encode()


def test_a_healthy_mesh_has_nothing_to_say() -> None:
    """No problem, no note, and the facts an operator looks for."""
    report = judge()
    assert (report["ok"], report["problems"], report["notes"]) == (True, [], [])
    (node,) = report["nodes"]
    assert (node["redirect"], node["hooks"]) == ("ebpf", {"connect4": True, "sk_lookup": True})
    assert node["pods"] == {"enrolled": 1, "pending": []}
    assert (node["ztunnel"]["ready"], node["ztunnel"]["version"]) == (True, "0.1.0")
    assert node["connections"] == 3
    assert report["controlPlane"] == {
        "up": True,
        "connectedProxies": 1,
        "resources": {"address": 5, "authorization": 2},
    }
    assert status.render(report).endswith("all is well")


def test_proxies_of_all_replicas_are_counted_and_resources_once() -> None:
    """A proxy is connected to one replica, and every replica has all resources."""
    none = METRICS.replace('pilot_xds{version="0.1.0"} 1.0', "pilot_xds 0.0").encode()
    report = judge(p15014=[none, METRICS.encode()])
    assert report["ok"]
    assert report["controlPlane"]["connectedProxies"] == 1
    assert report["controlPlane"]["resources"]["address"] == 5


DOWN = Unreachable("node node1, port 1: Connection refused")


@pytest.mark.parametrize(
    ("changes", "where", "what", "following"),
    [
        ({"p15014": DOWN}, "control plane", "does not answer", "control-plane"),
        ({"p15014": b"pilot_xds 0\n"}, "control plane", "0 of 1", "control-plane"),
        ({"p15014": b"pilot_xds{ 0\n"}, "control plane", "cannot be read", "control-plane"),
        (
            {"p15014": METRICS.replace("objects 0", "objects 2").encode()},
            "control plane",
            "2 documents",
            "control-plane",
        ),
        (
            {"p15014": METRICS.replace("2.1e+09", str(NOON.timestamp() + 86400 * 3)).encode()},
            "control plane",
            "root certificate expires in 3d",
            "new root",
        ),
        ({"p8000": DOWN}, "node node1", "agent does not answer", "agent/node1"),
        ({"p8000": b"[]"}, "node node1", "not an agent's status", "agent/node1"),
        ({"p8000": agent(proxies=[])}, "node node1", "no ztunnel is connected", "ztunnel/node1"),
        ({"p15021": DOWN}, "node node1", "not ready", "ztunnel/node1"),
        ({"p15000": DOWN}, "node node1", "admin page", "ztunnel/node1"),
        ({"p15000": b"{}"}, "node node1", "not a ztunnel config dump", "ztunnel/node1"),
    ],
)
def test_a_process_that_is_down_is_named_with_its_log(
    changes: dict[str, Any], where: str, what: str, following: str
) -> None:
    """Each problem says where, what, and the next step; everything else is still shown."""
    report = judge(**changes)
    assert not report["ok"]
    (problem,) = [p for p in report["problems"] if what in p["what"]]
    assert problem["where"] == where
    assert following in problem["next"]
    assert what in status.render(report)


def test_a_pending_pod_is_shown_with_its_reason() -> None:
    """By name, with the agent's reason and message."""
    pod = {
        "namespace": "shop",
        "name": "new-1",
        "state": "failed",
        "redirection": "pending",
        "reason": "ProofFailed",
        "message": "connect() to the probe address timed out",
    }
    report = judge(p8000=agent(pods=[*AGENT["pods"], pod]))
    (problem,) = report["problems"]
    assert problem["where"] == "pod shop/new-1"
    assert "ProofFailed: connect() to the probe address timed out" in problem["what"]
    assert report["nodes"][0]["pods"]["pending"][0]["name"] == "new-1"


def test_a_fallback_is_a_note_and_no_fault() -> None:
    """Captured otherwise is still captured: exit code 0, but said."""
    redirect = {
        "mode": "nftables",
        "cause": "not all hooks load here",
        "hooks": {"connect4": 1, "sk_lookup": 0},
        "causes": {"sk_lookup": "this kernel refuses it"},
    }
    pods = [{**AGENT["pods"][0], "mode": "nftables"}]
    report = judge(p8000=agent(redirect=redirect, pods=pods))
    assert report["ok"]
    assert report["nodes"][0]["hooks"] == {"connect4": True, "sk_lookup": False}
    assert [note["what"] for note in report["notes"]] == [
        "pods are captured by nftables: not all hooks load here",
        "the hook sk_lookup is not loaded: this kernel refuses it",
    ]
    assert "this kernel refuses it" in status.render(report)


def test_pods_captured_otherwise_than_preferred_are_told() -> None:
    """A ztunnel that opens its own listeners is steered to by nftables: said, with the cause."""
    pods = [{**AGENT["pods"][0], "mode": "nftables"}]
    proxies = [{**AGENT["proxies"][0], "held_listeners": False}]
    report = judge(p8000=agent(pods=pods, proxies=proxies))
    assert report["ok"]
    assert report["nodes"][0]["redirect"] == "nftables"
    assert report["notes"][0]["what"] == (
        "1 pods are captured by nftables, not ebpf:"
        " this ztunnel does not take the listeners that the agent holds"
    )


@pytest.mark.parametrize(
    ("hours", "what"), [(17, None), (19, "expires in 5h"), (26, "expired 2h ago")]
)
def test_a_certificate_that_is_not_renewed_is_reported(hours: int, what: str | None) -> None:
    """After three quarters of its life renewal is overdue; half is the normal time."""
    begins = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
    facts = status.gather(FakeTarget())
    report = assess(facts, begins + dt.timedelta(hours=hours), str)
    late = [p["what"] for p in report["problems"]]
    assert late == (
        [f"the certificate of spiffe://cluster.local/ns/shop/sa/web {what} and is not renewed"]
        if what
        else []
    )


def test_an_identity_without_a_certificate_is_reported() -> None:
    """Unavailable with its cause; one still being fetched is not wrong yet."""
    dump = copy.deepcopy(DUMP)
    report = judge(p15000=json.dumps(dump).encode())
    (problem,) = report["problems"]
    assert "sa/old" in problem["what"]
    assert "no longer needed" in problem["what"]


def test_a_policy_that_cannot_be_enforced_is_reported() -> None:
    """With the reason in its own status; an accepted one is counted only."""

    def policy(name: str, reason: str) -> dict[str, Any]:
        condition = {
            "type": "ZtunnelAccepted",
            "status": "True",
            "reason": reason,
            "message": "not enforceable by ztunnel (needs a waypoint): methods",
        }
        return {
            "kind": "AuthorizationPolicy",
            "metadata": {"namespace": "shop", "name": name},
            "status": {"conditions": [condition]},
        }

    report = judge(objects_=[policy("good", "Accepted"), policy("http", "UnsupportedValue")])
    assert report["policies"]["total"] == 2
    (problem,) = report["problems"]
    assert problem["where"] == "AuthorizationPolicy shop/http"
    assert "UnsupportedValue" in problem["what"]


@pytest.mark.parametrize("raw", [b"", b"3", b'{"pods": []}', b'{"redirect": {}, "pods": [null]}'])
def test_what_is_no_agent_status_is_refused(raw: bytes) -> None:
    """The agent's page is input, too."""
    with pytest.raises(BadInput, match="not an agent's status"):
        agent_status_untrusted(raw)


@pytest.mark.parametrize(("page", "code"), [(agent(), 0), (DOWN, 1)])
def test_the_exit_code_says_whether_something_is_wrong(
    page: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 or 1, in every form of output."""
    dump = {**HEALTHY_DUMP, "certificates": []}
    target = FakeTarget(p8000=page, p15000=json.dumps(dump).encode())
    monkeypatch.setattr(status, "choose_target", lambda options: target)
    parser = argparse.ArgumentParser()
    status.register(parser.add_subparsers())
    options = parser.parse_args(["status", "-o", "json", "--name", "x"])
    assert options.run(options) == code
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (code == 0)
    assert all(p["next"].endswith("--name x") for p in report["problems"])


def test_a_mesh_without_nodes_is_wrong() -> None:
    """An empty lab is not a healthy one."""
    report = assess(Facts((), (METRICS,), "", ()), NOON, str)
    assert [p["where"] for p in report["problems"]] == ["mesh"]


def test_facts_of_a_silent_node_do_not_break_the_judgement() -> None:
    """Nothing answers: every part is reported, nothing raises."""
    node = NodeFacts("node1", None, "refused", "refused", None, "refused")
    report = assess(Facts((node,), None, "refused", ()), NOON, str)
    assert len(report["problems"]) == 4
    assert "node1" in status.render(report)
