"""ambit waypoint in a lab's folder, and what needs neither lab nor cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import main, target
from cli import waypoint as command
from cli.waypoint import shape, verbs
from lab import api, layout
from lab.api import Lab
from mesh.errors import ConfigError
from tests.unit.cli.fake_waypoints import NAMES, USE, namespace


def test_what_is_laid_over_keeps_what_it_does_not_say() -> None:
    """As server-side apply: other labels, listeners and fields; the traffic type is ours."""
    old = shape.manifest("wp", "shop", "all")
    old["metadata"] |= {"uid": "u", "labels": {"istio.io/waypoint-for": "all", "team": "x"}}
    old["spec"]["listeners"][0] |= {"port": 1, "allowedRoutes": {"namespaces": {"from": "All"}}}
    old["spec"]["infrastructure"] = {"labels": {"a": "b"}}
    new = shape.laid_over(old, shape.manifest("wp", "shop"))
    assert new["metadata"] == {
        "name": "wp",
        "namespace": "shop",
        "uid": "u",
        "labels": {"team": "x"},
    }
    assert new["spec"]["listeners"] == [
        {
            "name": "mesh",
            "port": 15008,
            "protocol": "HBONE",
            "allowedRoutes": {"namespaces": {"from": "All"}},
        }
    ]
    assert new["spec"]["infrastructure"] == {"labels": {"a": "b"}}
    old["spec"]["listeners"][0]["name"] = "else"
    assert shape.laid_over(new, new) == new
    plain = shape.manifest("wp", "shop")
    assert shape.laid_over(plain, plain) == plain
    names = [li["name"] for li in shape.laid_over(old, new)["spec"]["listeners"]]
    assert names == ["else", "mesh"]


def test_times() -> None:
    """As istioctl writes them, or in seconds."""
    assert [command.seconds(t) for t in ("30", "1.5", "90s", "2m", "1h")] == [
        30,
        1.5,
        90,
        120,
        3600,
    ]
    for text in ("", "-1", "1d", "1m30s", "inf"):
        with pytest.raises(Exception, match="write seconds"):
            command.seconds(text)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    """A lab's folder, without a lab behind it."""
    for module in (layout, target):
        monkeypatch.setattr(module, "LABS", tmp_path)
    monkeypatch.setattr(command.host, "check", lambda: None)
    made = Lab("x")
    made.layout.objects.mkdir(parents=True)
    space = namespace("shop")
    made.store.apply(space)
    return made


def test_in_a_lab(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same verbs; the next steps are the lab's."""
    monkeypatch.setattr(verbs, "_TURN", 0.0)
    at = ["-n", "shop", "--lab", "x"]
    assert main.main(["waypoint", "apply", "--enroll-namespace", "--for", "all", *at]) == 0
    said = capsys.readouterr().out
    assert "next: ambit lab label namespace shop istio.io/dataplane-mode=ambient --name x" in said
    assert "✔ waypoint shop/waypoint created" in said
    assert lab.store.get("Namespace", None, "shop")["metadata"]["labels"][USE] == "waypoint"  # type: ignore[index]
    main.main(["waypoint", "apply", *at, "--for", "all"])
    main.main(["waypoint", "apply", *at, "--for", "none"])
    said = capsys.readouterr().out
    assert said == "✔ waypoint shop/waypoint unchanged\n✔ waypoint shop/waypoint configured\n"
    assert main.main(["waypoint", "apply", "--wait", "--timeout", "0", *at]) == verbs.NOT_READY
    assert "the manager of lab 'x' is gone" in capsys.readouterr().out
    assert main.main(["waypoint", "list", *at, "-n", "gone"]) == 1
    assert "ambit lab apply -f FILE --name x, with a Namespace gone" in capsys.readouterr().err
    assert main.main(["waypoint", "delete", "--all", "-y", *at]) == 0
    said = capsys.readouterr().out
    assert "will be refused: Namespace shop" in said
    assert f"next: ambit lab label namespace shop {USE}- --name x" in said
    assert lab.store.list("Gateway") == []


def test_in_a_lab_the_pod_that_holds_it_up_is_named(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its log."""
    monkeypatch.setattr(api.cleanup, "is_live", lambda _: True)
    lab.store.apply(shape.manifest("waypoint", "shop"))
    for name, labels in (("waypoint-1", NAMES), ("other", {})):
        meta = {"name": name, "namespace": "shop", "labels": labels}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": []}}
        lab.store.apply(pod)
        ready = {"type": "Ready", "status": "False", "message": "readiness probe: 503"}
        lab.store.patch("Pod", "shop", name, "kubelet", {"status": {"conditions": [ready]}})
    assert main.main(["waypoint", "status", "--no-wait", "-n", "shop", "--lab", "x"]) == 1
    said = capsys.readouterr().out
    assert "pod shop/waypoint-1: readiness probe: 503" in said
    assert "next: ambit lab logs shop/waypoint-1 --name x" in said
    assert "other" not in said


def test_a_lab_is_no_cluster(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """One of both is meant."""
    assert main.main(["waypoint", "list", "--lab", "x", "--context", "y"]) == 1
    assert "--lab is a lab" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="give one"):
        target.is_lab_meant("x", "--lab", None, "y")
