"""Pages are fetched from the loopback of the namespace asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cli import target
from cli.target import LabTarget, Unreachable, get_page
from mesh.errors import NotFound


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
