"""Where a hook does not load, in-pod nftables carries the same traffic to the same ports."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab import Lab
from tests.netns.drive import tool
from tests.netns.mesh_objects import policy, principal, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Lab]:
    with Lab("t-nft", env={"agent": {"AMBIT_DISABLE_HOOKS": "sk_lookup"}}) as lab:
        lab.up(shop())
        yield lab


def test_one_clear_message_names_hook_cause_and_way_out(mesh: Lab) -> None:
    """The operator reads which hook failed and what is used instead; metric and status agree."""
    log = mesh.logs("agent/node1")
    assert "sk_lookup" in log
    assert "nftables" in log
    assert 'ambit_redirect_mode{mode="nftables"} 1' in mesh.fetch("node1", 15014, "/metrics")
    assert json.loads(mesh.fetch("node1", 8000, "/status"))["redirect"]["mode"] == "nftables"


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_addresses_are_kept(mesh: Lab, family: str) -> None:
    """The application sees the real client and the asked-for peer here too."""
    ips = {
        p["metadata"]["name"]: next(
            i["ip"] for i in p["status"]["podIPs"] if (":" in i["ip"]) == (family == "v6")
        )
        for p in mesh.pods()
    }
    answer = tool(mesh, "mesh/client", "who", ips["server"])
    assert answer["peer"] == [ips["server"], 9005]
    assert answer["seen"]["peer"].removeprefix("::ffff:") == ips["client"]  # type: ignore[index]


def test_transfer_half_close_and_policy(mesh: Lab) -> None:
    """Bytes arrive whole, and a DENY refuses."""
    assert tool(mesh, "mesh/client", "upload", "server", "9001", "64")["ok"]
    deny = policy(
        "mesh",
        "no",
        "server",
        "DENY",
        [{"from": [{"source": {"principals": [principal("mesh", "client")]}}]}],
    )
    mesh.apply([deny])
    try:
        import time

        time.sleep(1)
        assert tool(mesh, "mesh/client", "outcome", "server", "9000")["end"] != "data"
    finally:
        mesh.delete([deny])
