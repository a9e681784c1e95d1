"""`ambit lab` as it is typed, and its tables."""

from __future__ import annotations

from typing import Any

import pytest

from cli.main import build_parser, main
from cli.shelf import rows


@pytest.mark.parametrize(
    "typed",
    [
        "exec shop/cart --name x -- curl -s http://a -- b",
        "exec --name x shop/cart -- curl -s http://a -- b",
    ],
)
def test_a_command_after_two_dashes_is_the_pods_own(typed: str) -> None:
    """Its options are not ours, wherever --name stands."""
    options = build_parser(["lab"]).parse_args(["lab", *typed.split()])
    assert (options.pod, options.name) == ("shop/cart", "x")
    assert options.command == ["curl", "-s", "http://a", "--", "b"]


def test_exec_without_a_command_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    """The next step is in the message."""
    assert main(["lab", "exec", "shop/cart"]) == 1
    assert "lab exec shop/cart -- CMD" in capsys.readouterr().err


def test_tcpdump_needs_no_arguments() -> None:
    """A capture of everything is one, too."""
    options = build_parser(["lab"]).parse_args(["lab", "capture", "node1"])
    assert (options.node, options.arguments) == ("node1", [])


@pytest.mark.parametrize("verb", ["up f", "down", "list", "wait", "get pods", "logs dns"])
def test_every_verb_takes_a_name(verb: str) -> None:
    """Several labs stand side by side."""
    options = build_parser(["lab"]).parse_args(["lab", *verb.split(), "--name", "other"])
    assert options.name == "other"


def test_a_malformed_label_is_one_line_that_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    """And no traceback."""
    assert main(["lab", "label", "pod", "p", "nonsense"]) == 1
    assert "key=value" in capsys.readouterr().err


def test_tables_show_what_the_mesh_says() -> None:
    """Readiness, restarts and capture of a pod."""
    pod: dict[str, Any] = {
        "metadata": {
            "name": "p",
            "namespace": "shop",
            "annotations": {"ambient.istio.io/redirection": "enabled"},
        },
        "spec": {"nodeName": "n1"},
        "status": {
            "phase": "Running",
            "podIP": "10.244.1.2",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"restartCount": 2}, {"restartCount": 1}],
        },
    }
    head, line = rows("Pod", [pod], all_namespaces=True).splitlines()
    assert head.split()[:6] == ["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "MESH"]
    assert line.split() == ["shop", "p", "yes", "Running", "3", "enabled", "10.244.1.2", "n1"]
    assert "NAMESPACE" not in rows("Pod", [pod], all_namespaces=False)
    assert rows("Odd", [pod], all_namespaces=False).split() == ["NAME", "AGE", "p"]
