"""The whole process with a real Envoy, against a control plane by hand."""

from __future__ import annotations

from pathlib import Path

from agent_rig import Process, run, until


def test_envoy_serves_what_the_control_plane_says(tmp_path: Path) -> None:
    """Certificate, first configuration, readiness, a request, and a change of it."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        assert await p.served()
        token, metadata = p.plane.issued[0]
        assert token == "Bearer a-token"
        assert metadata == {}, "a pod asks for its own identity, and does not impersonate"
        node = p.plane.streams[0].requests[0].node
        assert node.id == "waypoint~127.0.0.1~wp-1.shop~shop.svc.cluster.local"
        assert node.cluster == "wp.shop"
        assert dict(node.metadata)["GATEWAY_NAME"] == "wp"
        assert p.plane.streams[0].token == "Bearer a-token"
        p.configure(x_generation="2")
        await p.plane.push()
        await until(lambda: p.served(x_generation="2"))

    run(tmp_path, body)
