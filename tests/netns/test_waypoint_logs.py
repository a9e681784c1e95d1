"""Access logs of waypoints: the examples of docs/telemetry.md, with requests through Envoy."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab import Lab
from tests.netns.page_examples import examples
from tests.netns.waypoints import NS, WAYPOINT, Shop, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

PAGE = "telemetry.md"
TEXT, FAILED, QUIET = "Access logs of waypoints", "Only what failed, as JSON", "Not this waypoint"
_COUNT = iter(range(1000))
ROOT = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": "istio-system"},
}


@pytest.fixture(scope="module")
def wp() -> Iterator[Shop]:
    with Lab("t-wp-logs") as lab:
        lab.up([*shop(), ROOT])
        found = Shop(lab)
        found.until(lambda: found.ask().status == 200)
        yield found


def lines(wp: Shop) -> list[str]:
    """What the waypoint has said."""
    return wp.lab.logs(wp.waypoint()).splitlines()


def about(wp: Shop, path: str) -> list[str]:
    return [line for line in lines(wp) if path in line]


def accepted(wp: Shop, name: str) -> dict[str, Any]:
    found = wp.condition("Telemetry", name, "WaypointAccepted")
    return found if found.get("status") == "True" else {}


def logged(wp: Shop) -> str:
    """Make requests until one of them is written (Envoy writes once a second); returns its line."""
    mark = f"/text-{next(_COUNT)}-"

    def once() -> list[str]:
        wp.ask(f"{mark}x", headers={"user-agent": 'x" response_code=999 y="'})
        return about(wp, mark)

    found: list[str] = wp.until(once)
    return found[0]


def failed(wp: Shop) -> str:
    """Make requests that are answered 404 until one is written; returns its line."""
    mark = f"/failed-{next(_COUNT)}-"

    def once() -> list[str]:
        answer = wp.ask(f"{mark}?status=404", headers={"user-agent": 'a "quoted" one'})
        assert answer.status == 404, answer
        return about(wp, mark)

    found: list[str] = wp.until(once)
    return found[0]


def read(line: str) -> dict[str, Any]:
    """Read a line of JSON; {} for one of text."""
    found: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
    return found


def written(wp: Shop, mark: str) -> bool:
    """Whether requests leave anything, given time to be written."""
    wp.ask(mark)
    time.sleep(1.5)
    return bool(about(wp, mark))


def test_everything_as_text_then_what_failed_as_json_then_nothing(wp: Shop) -> None:
    assert set(examples(PAGE)) == {TEXT, FAILED, QUIET}
    wp.ask("/before-")
    wp.lab.apply(examples(PAGE)[TEXT])
    wp.until(lambda: accepted(wp, "logs"))
    line = logged(wp)
    assert about(wp, "/before-") == []
    fields = [word.partition("=") for word in line.split()]
    first = dict((k, v) for k, _, v in reversed(fields))  # noqa: C402
    assert first["response_code"] == "200"  # and not what the caller wrote
    assert first["method"] == "GET"
    assert first["source_principal"] == f"spiffe://cluster.local/ns/{NS}/sa/client"
    assert first["upstream_workload"] in ("echo-v1", "echo-v2")
    assert first["service"] == f"echo.{NS}.svc.cluster.local"

    wp.lab.apply(examples(PAGE)[FAILED])
    said = wp.until(lambda: read(failed(wp)))
    assert said["response_code"] == 404
    assert said["user_agent"] == 'a "quoted" one'
    assert said["source_workload"] == "client"
    assert not written(wp, "/good-")

    wp.lab.apply(examples(PAGE)[QUIET])
    found = wp.until(lambda: accepted(wp, "quiet"))
    assert found["message"] == f"in effect at {NS}/{WAYPOINT}"
    wp.until(lambda: not written(wp, f"/quiet-{next(_COUNT)}-?status=404"))


def test_what_is_wrong_is_told(wp: Shop) -> None:
    obj = {
        "apiVersion": "telemetry.istio.io/v1",
        "kind": "Telemetry",
        "metadata": {"name": "wrong", "namespace": NS},
        "spec": {
            "targetRefs": [
                {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "nobody"}
            ],
            "accessLogging": [{"filter": {"expression": "request.path == '/'"}}],
        },
    }
    wp.lab.apply([obj])
    told = wp.until(lambda: wp.condition("Telemetry", "wrong", "WaypointAccepted"))
    assert told["status"] == "False"
    assert "spec.accessLogging[0].filter.expression" in told["message"]
    assert "there is no waypoint shop/nobody" in told["message"]
