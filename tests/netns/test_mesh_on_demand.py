"""On-demand xDS in a whole mesh: proxies know only what their pods have asked for."""

from __future__ import annotations

import json

import pytest

from lab import Lab
from tests.netns.drive import tool
from tests.netns.mesh_objects import client, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


def test_traffic_flows_and_strangers_stay_unknown() -> None:
    """A service is fetched when it is first called; a pod that nobody calls is never sent."""
    with Lab("t-demand", env={"ztunnel": {"XDS_ON_DEMAND": "true"}}) as lab:
        lab.up([*shop(), *client("mesh", "stranger", "node2")])

        def known() -> set[str]:
            dump = json.loads(lab.fetch("node1", 15000, "/config_dump"))
            return {w["name"] for w in dump["workloads"]}

        assert "server" not in known()
        answer = tool(lab, "mesh/client", "who", "server")
        assert answer["seen"]["peer"] == answer["mine"][0], answer  # type: ignore[index]
        assert "server" in known()
        assert "stranger" not in known()
