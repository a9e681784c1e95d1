"""The echo servers say what they saw."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.apps import echo


@contextmanager
def running(server: echo.Server) -> Iterator[int]:
    """Serve in a thread; the port."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("host", "peer"), [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")])
def test_the_caller_is_named_in_its_own_family(host: str, peer: str) -> None:
    """IPv4 on a dual-stack socket is shown as IPv4."""
    with (
        running(echo.Server(("::", 0), echo.HttpEcho)) as port,
        urllib.request.urlopen(f"http://{host}:{port}/x", timeout=5) as response,
    ):
        body = json.load(response)
    assert (body["peer"], body["local"], body["path"]) == (peer, peer, "/x")


def test_count_answers_after_the_clients_end_of_stream() -> None:
    """The answer comes back over the half that is still open."""
    with (
        running(echo.tcp_server(0, echo.count)) as port,
        socket.create_connection(("127.0.0.1", port), 5) as client,
    ):
        client.sendall(b"x" * 100_000)
        client.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").read() == b"100000\n"
