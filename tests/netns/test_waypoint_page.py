"""The examples of docs/waypoints.md with real requests, and `ambit waypoint` as one types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from lab import Lab, cleanup
from lab.layout import NETNS, Layout
from tests.netns.page_examples import DOCS, examples
from tests.netns.waypoints import NS, WAYPOINT, Shop, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(150)]

NAME: Final = "t-wp-page"
PAGE: Final = "waypoints.md"
ONE, MADE = "One", "What is made of a Gateway"
USE: Final = "istio.io/use-waypoint"


@pytest.fixture(scope="module")
def wp() -> Iterator[Shop]:
    """A shop without a waypoint."""
    with Lab(NAME) as lab:
        lab.up(shop(waypoint=None))
        yield Shop(lab)


def ambit(verb: str, *words: str, ns: str = NS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "waypoint", verb, *words, "-n", ns, "--lab", NAME],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def through(wp: Shop) -> bool:
    """Whether a request passes Envoy."""
    answer = wp.ask()
    return answer.status == 200 and "x-envoy-attempt-count" in answer.seen["headers"]


def container(wp: Shop) -> dict[str, Any]:
    spec = wp.lab.get("Deployment", NS, WAYPOINT)["spec"]["template"]["spec"]
    return dict(spec["containers"][0])


def test_the_first_example_is_what_the_command_makes(wp: Shop) -> None:
    """Applied, ready, used; the command finds nothing to change, and labels the namespace."""
    assert set(examples(PAGE)) == {ONE, MADE}
    (gateway,) = examples(PAGE)[ONE]
    generated = subprocess.run(
        [sys.executable, "-m", "cli.main", "waypoint", "generate", "-n", NS],
        capture_output=True,
        check=True,
    )
    assert yaml.safe_load(generated.stdout) == gateway
    assert wp.ask().status == 200
    assert not through(wp)
    wp.lab.apply([gateway])
    done = ambit("status", WAYPOINT, "--timeout", "60s")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert not through(wp)
    done = ambit("apply", "--enroll-namespace", "--wait")
    assert done.returncode == 0, done.stderr
    assert f"waypoint {NS}/{WAYPOINT} unchanged" in done.stdout
    assert f"namespace {NS} labelled {USE}={WAYPOINT}" in done.stdout
    wp.until(lambda: through(wp))
    (listed,) = json.loads(ambit("list", "-o", "json").stdout)
    assert (listed["trafficType"], listed["programmed"]) == ("service", "True")


def test_its_sockets_are_in_the_labs_own_folder(wp: Shop) -> None:
    """And not in /tmp, where a lab that is killed would leave them."""
    pod = wp.lab.pod(f"{NS}/{WAYPOINT}")["metadata"]
    folder = wp.lab.layout.pod_files(pod["uid"]) / "tmp"
    assert (folder / "admin.sock").is_socket()
    space = os.stat(NETNS / wp.lab.layout.pod_netns(NS, pod["name"])).st_ino
    assert not Path(f"/tmp/ambit-waypoint-{space}").exists()


def test_the_config_map_example_shapes_what_runs(wp: Shop) -> None:
    """Envoy has its four workers; a ConfigMap that turns wrong changes nothing, and is told."""
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    line = re.search(r"spec\.infrastructure\.parametersRef: (\{.*\})", text)
    assert line is not None
    (gateway,), (config,) = examples(PAGE)[ONE], examples(PAGE)[MADE]
    gateway["spec"]["infrastructure"] = {"parametersRef": yaml.safe_load(line[1])}
    wp.lab.apply([config, gateway])
    wp.until(lambda: container(wp)["resources"]["requests"]["cpu"] == "500m")
    assert container(wp)["resources"]["requests"]["memory"]
    scaler = wp.lab.get("HorizontalPodAutoscaler", NS, WAYPOINT)["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 10)
    wp.lab.wait_ready(40)
    options = json.loads(wp.admin("/server_info"))["command_line_options"]
    assert options["concurrency"] == 4
    assert through(wp)
    wp.lab.apply([{**config, "data": {"depolyment": "{}"}}])
    wp.until(lambda: "data.depolyment: no such object" in wp.lab.logs("manager"))
    assert container(wp)["resources"]["requests"]["cpu"] == "500m"
    assert through(wp)


def test_a_waypoint_that_is_refused_is_not_waited_for(wp: Shop) -> None:
    """The control plane's words, and the next step."""
    (gateway,) = examples(PAGE)[ONE]
    gateway["metadata"]["name"] = "third"
    gateway["spec"]["addresses"] = [{"value": "10.1.2.3"}]
    wp.lab.apply([gateway])
    done = ambit("status", "third", "--timeout", "30s")
    assert done.returncode == 1
    assert "UnsupportedAddress: spec.addresses" in done.stdout
    assert f"next: correct Gateway {NS}/third" in done.stdout
    assert ambit("delete", "third", "-y").returncode == 0


def test_a_waypoint_whose_pods_do_not_come_up_is_explained(wp: Shop) -> None:
    """The pod is named, with what it waits for and its log; the namespace is not enrolled."""
    (config,) = examples(PAGE)[MADE]
    broken = yaml.safe_load(config["data"]["deployment"])
    settings = broken["spec"]["template"]["spec"]["containers"][0]
    settings["env"] = [{"name": "CONCURRENCY", "value": "many"}]
    config["metadata"]["name"] = "broken"
    config["data"] = {"deployment": yaml.safe_dump(broken)}
    (gateway,) = examples(PAGE)[ONE]
    gateway["metadata"]["name"] = "second"
    reference = {"group": "", "kind": "ConfigMap", "name": "broken"}
    gateway["spec"]["infrastructure"] = {"parametersRef": reference}
    wp.lab.apply([config, gateway])
    words = ("--name", "second", "--enroll-namespace", "--overwrite", "--wait", "--timeout", "4s")
    done = ambit("apply", *words)
    assert done.returncode == 3, done.stdout + done.stderr
    pod = wp.lab.pod(f"{NS}/second")["metadata"]["name"]
    assert f"pod {NS}/{pod}: " in done.stdout
    assert f"next: ambit lab logs {NS}/{pod} --name {NAME}" in done.stdout
    labels = wp.lab.get("Namespace", None, NS)["metadata"]["labels"]
    assert labels[USE] == WAYPOINT
    assert ambit("delete", "second", "-y").returncode == 0


def test_deleting_says_whose_traffic_is_refused_and_it_is(wp: Shop) -> None:
    """Nobody can say yes here; with -y it goes, and nothing goes around it."""
    done = ambit("delete", WAYPOINT)
    assert done.returncode == 1
    assert f"their traffic will be refused: Namespace {NS}" in done.stdout
    assert through(wp)
    assert ambit("delete", "--all", "-y").returncode == 0
    wp.until(lambda: wp.ask().status == 0)
    wp.lab.label("Namespace", None, NS, {USE: None})
    wp.until(lambda: wp.ask().status == 200)
    assert not through(wp)


def test_a_lab_that_is_killed_leaves_no_sockets() -> None:
    """kill -9 of the manager: what is left is the lab's, and goes with it."""
    layout = Layout(f"{NAME}-dead")
    before = set(Path("/tmp").glob("ambit-waypoint-*"))
    with Lab(layout.name) as lab:
        lab.up(shop())
        pod = lab.pod(f"{NS}/{WAYPOINT}")["metadata"]
        space = os.stat(NETNS / layout.pod_netns(NS, pod["name"])).st_ino
        os.kill(int(layout.lock.read_text()), signal.SIGKILL)
    assert cleanup.remains(layout) == []
    assert Path(f"/tmp/ambit-waypoint-{space}") not in set(Path("/tmp").glob("*")) - before
