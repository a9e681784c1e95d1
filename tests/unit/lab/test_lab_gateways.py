"""How a lab runs the process of a waypoint."""

from __future__ import annotations

import uuid
from pathlib import Path

from lab.gateways import runtime
from lab.layout import Layout, check_name
from lab.volumes import FILES
from waypoint.agent.config import Machine, from_environment

MACHINE = Machine(cpus=1, memory=0, netns=1, envoy=Path("/bin/true"))
POD = {"GATEWAY_NAME": "waypoint", "POD_NAME": "waypoint-1", "POD_NAMESPACE": "shop"}


def test_a_waypoints_sockets_are_with_its_pods_files() -> None:
    """So they go with the pod and with the lab; also in the lab with the longest name."""
    layout = Layout(check_name("l" * 32))
    files = layout.pod_files(str(uuid.uuid4()))
    env = {k: v.replace(f"$({FILES})", str(files)) for k, v in runtime(layout, {}).env}
    config = from_environment({**POD, **env}, MACHINE)
    assert config.run_dir == files / "tmp"
    assert len(str(config.admin_socket)) <= 107  # unix(7)


def test_a_lab_may_be_told_otherwise() -> None:
    """What the lab's owner says of the component counts."""
    given = {"RUN_DIR": "/run/mine", "CONCURRENCY": "1"}
    assert dict(runtime(Layout("a"), given).env) == given
