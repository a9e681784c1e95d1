"""A waypoint under load: crashes, rollouts, rotations, and a control plane that is away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Lab
from tests.netns.waypoints import NS, Shop, gateway, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
_LOAD = Path(__file__).with_name("http_load.py")
_KEEP, _FRESH = 4, 2


@pytest.fixture(scope="module")
def wp() -> Iterator[Shop]:
    with Lab("t-wp-life") as lab:
        lab.up(shop())
        yield Shop(lab)


class Load:
    """Requests from the client's pod for some seconds."""

    def __init__(self, wp: Shop, seconds: float) -> None:
        command = [sys.executable, str(_LOAD), f"http://echo.{NS}/", str(seconds)]
        self._process = wp.lab.popen(f"{NS}/client", [*command, str(_KEEP), str(_FRESH)])
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def result(self) -> dict[str, Any]:
        try:
            out, err = self._process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        assert out.strip(), err
        found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        assert found["ok"] > 100, found
        return found


def agent(wp: Shop) -> dict[str, Any]:
    return dict(json.loads(wp.admin("/agent")))


def kill_envoy(wp: Shop) -> None:
    pid = agent(wp)["envoy"]["pid"]
    os.kill(pid, signal.SIGKILL)


def test_killed_envoy_loses_what_was_in_flight_and_no_more(wp: Shop) -> None:
    """kill -9 under load: who had a request under way is told; who comes meanwhile waits.

    Between the kill and the moment when the process notices, which on a busy machine takes a few
    milliseconds, callers are refused; without parking it would be hundreds of them.
    """
    load = Load(wp, 6)
    time.sleep(2)
    before = agent(wp)["envoy"]["restarts"]
    kill_envoy(wp)
    found = load.result()
    assert agent(wp)["envoy"]["restarts"] == before + 1
    times = [at for at, _ in found["failed"]]
    assert len(times) <= 3 * (_KEEP + _FRESH), found["failed"]
    assert max(times, default=0) - min(times, default=0) < 0.2, found["failed"]


def test_rollout_of_two_replicas_fails_no_request(wp: Shop) -> None:
    """Every pod is replaced while requests run; the old ones drain."""
    wp.lab.scale(NS, "waypoint", 2)
    wp.lab.wait_ready(60)
    old = pods(wp)
    assert len(old) == 2
    load = Load(wp, 30)
    time.sleep(1)
    stamp = {"annotations": {"example.com/rolled": str(time.time())}}
    wp.lab.apply([gateway(infrastructure=stamp)])
    wp.until(lambda: not old & pods(wp), 40)
    found = load.result()
    assert found["failed"] == []
    wp.lab.wait_ready(60)
    assert len(pods(wp)) == 2


def pods(wp: Shop) -> set[str]:
    label = "gateway.networking.k8s.io/gateway-name"
    return {
        p["metadata"]["name"]
        for p in wp.lab.pods()
        if p["metadata"].get("labels", {}).get(label) == "waypoint"
    }


def test_certificates_rotate_under_load(wp: Shop) -> None:
    """A certificate of seconds: several renewals, no request fails."""
    overlay = (
        "spec: {template: {spec: {containers:"
        " [{name: waypoint, env: [{name: SECRET_TTL, value: '8'}]}]}}}"
    )
    short = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "short", "namespace": NS},
        "data": {"deployment": overlay},
    }
    wp.lab.scale(NS, "waypoint", 1)
    old = pods(wp)
    reference = {"group": "", "kind": "ConfigMap", "name": "short"}
    wp.lab.apply([short, gateway(infrastructure={"parametersRef": reference})])
    wp.until(lambda: not old & pods(wp) and len(pods(wp)) == 1, 60)
    wp.lab.wait_ready(60)
    first = serial(wp)
    load = Load(wp, 12)
    time.sleep(11)
    assert serial(wp) != first
    found = load.result()
    assert found["failed"] == []
    wp.lab.apply([gateway()])
    wp.until(lambda: len(pods(wp)) == 1, 60)
    wp.lab.wait_ready(60)


def serial(wp: Shop) -> str:
    return str(agent(wp)["certificate"]["chain"][0]["serial"])


def test_control_plane_away_and_envoy_killed_meanwhile(wp: Shop) -> None:
    """The next Envoy serves what the last one had; what changed meanwhile comes afterwards."""
    plane = wp.lab.components()["control-plane"]["pid"]
    wp.until(lambda: wp.ask().status == 200)
    os.kill(plane, signal.SIGSTOP)
    try:
        kill_envoy(wp)
        wp.until(lambda: wp.ask().status == 200, 10)
        load = Load(wp, 3)
        found = load.result()
        assert found["failed"] == []
        wp.lab.apply([redirect_all()])
        assert wp.ask().status == 200
    finally:
        os.kill(plane, signal.SIGCONT)
    wp.until(lambda: wp.ask().status == 302, 30)


def redirect_all() -> dict[str, Any]:
    """A route that answers otherwise than the server does."""
    redirect = {"type": "RequestRedirect", "requestRedirect": {"hostname": "elsewhere"}}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "away", "namespace": NS},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "echo"}],
            "rules": [{"filters": [redirect]}],
        },
    }
