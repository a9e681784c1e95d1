"""Pages are fetched from the loopback of the namespace asked for."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cli import target
from cli.target import LabTarget, Unreachable, choose_target, get_page
from lab import layout
from mesh.errors import ConfigError, NotFound


@pytest.fixture
def port() -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code = 200 if self.path == "/good" else 503
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"workers are starting\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_page_is_its_body(port: int) -> None:
    """Nothing but the body."""
    assert get_page(port, "/good") == b"workers are starting\n"


def test_a_refusal_carries_its_reason(port: int) -> None:
    """A readiness probe says in its body why not."""
    with pytest.raises(Unreachable, match="503: workers are starting"):
        get_page(port, "/bad")


def test_a_page_without_end_is_not_taken(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded."""
    monkeypatch.setattr(target, "_MAX_PAGE", 5)
    with pytest.raises(Unreachable, match="longer than"):
        get_page(port, "/good")


def test_an_unknown_lab_is_named_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message lists what could have been meant."""
    (tmp_path / "demo").mkdir()
    monkeypatch.setattr(target, "LABS", tmp_path)
    with pytest.raises(NotFound, match=r"no lab named 'nosuchlab' \(there are: demo"):
        LabTarget("nosuchlab")


def options(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"name": None, "kubeconfig": None, "context": None, **given})


@pytest.fixture
def labs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No lab, no cluster."""
    monkeypatch.setattr(target, "LABS", tmp_path)
    monkeypatch.setattr(layout, "LABS", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return tmp_path


def test_a_lab_is_meant_by_its_name_or_when_it_is_there(
    labs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where a kubeconfig is at hand: the lab is this machine's."""
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    (labs / "default").mkdir()
    (labs / "x").mkdir()
    assert choose_target(options()).log_command("agent/n1") == "ambit lab logs agent/n1"
    named = choose_target(options(name="x"))
    assert named.log_command("agent/n1") == "ambit lab logs agent/n1 --name x"


def test_without_lab_and_cluster_the_lab_is_missed(labs: Path) -> None:
    """The message says how to start one."""
    with pytest.raises(NotFound, match="no lab named 'default'"):
        choose_target(options())


def test_a_cluster_is_meant_by_its_kubeconfig(labs: Path) -> None:
    """Also when a lab is there; a file that is missing is named."""
    (labs / "default").mkdir()
    with pytest.raises(ConfigError, match=r"kubeconfig .*missing"):
        choose_target(options(kubeconfig=labs / "missing"))


def test_both_cannot_be_meant(labs: Path) -> None:
    """A lab is no context."""
    with pytest.raises(ConfigError, match="give one"):
        choose_target(options(name="x", context="y"))
