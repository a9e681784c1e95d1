"""Identity and policy on real traffic: who is let in, who is not, and that it says so."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import pytest

from lab import Lab
from tests.netns.drive import tool
from tests.netns.mesh_objects import TOOL, client, line, policy, principal, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Lab]:
    with Lab("t-policy") as lab:
        lab.up([*shop(), *client("mesh", "stranger", "node1")])
        yield lab


@pytest.fixture
def apply(mesh: Lab) -> Iterator[object]:
    """Apply objects for one test and take them away again."""
    applied: list[dict[str, object]] = []

    def do(*objects: dict[str, object]) -> None:
        applied.extend(objects)
        mesh.apply(list(objects))
        time.sleep(1)

    yield do
    mesh.delete(applied)
    time.sleep(1)


def passes(lab: Lab, who: str, target: str = "server.mesh") -> bool:
    return tool(lab, who, "outcome", target, "9000")["end"] == "data"


def status(lab: Lab, kind: str, name: str) -> str:
    return json.dumps(lab.get(kind, "mesh", name).get("status", {}))


def test_allow_lets_only_the_named_principal_in(mesh: Lab, apply) -> None:  # type: ignore[no-untyped-def]
    """ALLOW for one identity: others and plaintext are refused, and the log names the policy."""
    rule = {"from": [{"source": {"principals": [principal("mesh", "client")]}}]}
    apply(policy("mesh", "only-client", "server", "ALLOW", [rule]))
    assert passes(mesh, "mesh/client")
    assert not passes(mesh, "mesh/stranger")
    assert not passes(mesh, "plain/outsider")
    assert passes(mesh, "mesh/stranger", "near")
    time.sleep(0.6)
    refusals = [
        x for x in mesh.logs("ztunnel/node2").splitlines() if "sa/stranger" in x and "error=" in x
    ]
    assert refusals
    assert "policy" in refusals[-1].lower()


def test_deny_refuses_one_caller_and_a_port(mesh: Lab, apply) -> None:  # type: ignore[no-untyped-def]
    """DENY with from and to: only that caller on that port."""
    apply(
        policy(
            "mesh",
            "deny-client",
            "server",
            "DENY",
            [
                {
                    "from": [{"source": {"principals": [principal("mesh", "client")]}}],
                    "to": [{"operation": {"ports": ["9000"]}}],
                }
            ],
        )
    )
    assert not passes(mesh, "mesh/client")
    assert passes(mesh, "mesh/other")
    assert tool(mesh, "mesh/client", "first", "server")["line"]


def test_dry_run_refuses_nobody(mesh: Lab, apply) -> None:  # type: ignore[no-untyped-def]
    """A dry-run DENY for everyone only reports."""
    apply(policy("mesh", "dry", "server", "DENY", [{}], dry_run=True))
    assert passes(mesh, "mesh/client")


def test_a_change_cuts_live_connections_within_a_second(mesh: Lab, apply) -> None:  # type: ignore[no-untyped-def]
    """A connection in use when a DENY arrives ends; another caller's does not."""
    victim = mesh.popen("mesh/client", [sys.executable, TOOL, "hold", "server", "10"])
    other = mesh.popen("mesh/other", [sys.executable, TOOL, "hold", "server", "4"])
    assert victim.stdout is not None
    assert other.stdout is not None
    victim.stdout.readline()
    other.stdout.readline()
    time.sleep(1)
    rule = {"from": [{"source": {"principals": [principal("mesh", "client")]}}]}
    start = time.monotonic()
    apply(policy("mesh", "cut", "server", "DENY", [rule]))
    end = line(victim.communicate(timeout=15)[0])
    assert end["end"] in ("ECONNRESET", "eof", "EPIPE"), end
    assert float(end["seconds"]) < 2.5, end
    assert time.monotonic() - start < 5
    assert line(other.communicate(timeout=15)[0])["end"] == "held"
    time.sleep(0.5)
    assert "connection closed due to policy change" in mesh.logs("ztunnel/node2")


def test_strict_refuses_plaintext_but_not_probes(mesh: Lab, apply) -> None:  # type: ignore[no-untyped-def]
    """STRICT: mesh callers pass, outsiders do not, the pod stays ready."""
    apply(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": "mesh"},
            "spec": {"mtls": {"mode": "STRICT"}},
        }
    )
    assert passes(mesh, "mesh/client")
    assert not passes(mesh, "plain/outsider")
    time.sleep(3)
    server = mesh.get("Pod", "mesh", "server")
    ready = [c["status"] for c in server["status"]["conditions"] if c["type"] == "Ready"]
    assert ready == ["True"]


def test_strict_with_a_permissive_port(mesh: Lab, apply) -> None:  # type: ignore[no-untyped-def]
    """portLevelMtls opens one port of a strict workload."""
    apply(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "server", "namespace": "mesh"},
            "spec": {
                "selector": {"matchLabels": {"app": "server"}},
                "mtls": {"mode": "STRICT"},
                "portLevelMtls": {"9002": {"mode": "PERMISSIVE"}},
            },
        }
    )
    assert not passes(mesh, "plain/outsider")
    assert tool(mesh, "plain/outsider", "first", "server.mesh")["line"]


def test_what_l4_cannot_enforce_is_reported_and_read_strictly(mesh: Lab, apply) -> None:  # type: ignore[no-untyped-def]
    """An ALLOW with a path: the rule is dropped (nobody gets in), and status names the field."""
    apply(
        policy(
            "mesh",
            "l7",
            "server",
            "ALLOW",
            [{"to": [{"operation": {"paths": ["/ok"], "ports": ["9000"]}}]}],
        )
    )
    assert not passes(mesh, "mesh/client")
    assert "paths" in status(mesh, "AuthorizationPolicy", "l7")


def test_status_of_an_enforced_policy_says_accepted(mesh: Lab, apply) -> None:  # type: ignore[no-untyped-def]
    """The author sees that the policy took effect."""
    rule = {"from": [{"source": {"namespaces": ["mesh"]}}]}
    apply(policy("mesh", "fine", "server", "ALLOW", [rule]))
    conditions = mesh.get("AuthorizationPolicy", "mesh", "fine")["status"]["conditions"]
    accepted = [c for c in conditions if c["type"] == "ZtunnelAccepted"]
    assert accepted
    assert accepted[0]["status"] == "True"
