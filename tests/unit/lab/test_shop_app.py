"""The shop's services: who calls whom, and what a caller sees when somebody fails."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from lab.apps import echo, shop
from lab.apps.shop import CallFailed, Json, answer


def everything_works(service: str) -> Json:
    """Answer as the real services would."""
    return answer(service, "/", "pod-of-" + service, everything_works)[1]


def failing(*down: str) -> Callable[[str], Json]:
    """Answer as the real services would, but for some that fail."""

    def call(service: str) -> Json:
        if service in down:
            raise CallFailed(f"{service}: connection reset")
        status, body = answer(service, "/", "pod", call)
        if status != 200:
            raise CallFailed(f"{service}: answered {status}")
        return body

    return call


def test_the_front_page_shows_products_and_the_priced_cart() -> None:
    """frontend -> catalog, and frontend -> cart -> catalog and payments."""
    status, page = answer("frontend", "/", "front-1", everything_works)
    assert status == 200
    assert page["served_by"] == "front-1"
    assert page["catalog"]["served_by"] == "pod-of-catalog"
    assert "teapot" in json.dumps(page["catalog"])  # the demo looks for it on the wire
    assert page["cart"]["total"] == 42 + 4 * 6
    assert page["cart"]["payable"] is True


def test_one_failing_part_does_not_take_the_page_down() -> None:
    """The other part is shown, and the failure is named."""
    status, page = answer("frontend", "/", "p", failing("cart"))
    assert status == 200
    assert page["catalog"]["products"]
    assert page["cart"] == {"error": "cart: connection reset"}


@pytest.mark.parametrize(("role", "down"), [("frontend", "catalog"), ("cart", "payments")])
def test_a_service_without_what_it_needs_answers_502(role: str, down: str) -> None:
    """cart needs all it calls; frontend fails only when both of its parts do."""
    needs = (down, "cart") if role == "frontend" else (down,)
    status, body = answer(role, "/", "p", failing(*needs))
    assert status == 502
    assert down in body["error"]


def test_health_does_not_depend_on_others() -> None:
    """A probe asks about this process only."""
    assert answer("cart", shop.HEALTH, "p", failing("catalog", "payments")) == (200, {"ok": True})


@pytest.fixture
def http_echo() -> Iterator[int]:
    """A running HTTP echo on a free port."""
    server = shop.DualStackServer(("::", 0), echo.HttpEcho)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("host", "peer"), [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")])
def test_echo_names_the_caller_in_its_own_family(http_echo: int, host: str, peer: str) -> None:
    """IPv4 on a dual-stack socket is shown as IPv4."""
    with urllib.request.urlopen(f"http://{host}:{http_echo}/x", timeout=5) as response:
        body = json.load(response)
    assert (body["peer"], body["path"]) == (peer, "/x")


def test_count_answers_after_the_clients_end_of_stream() -> None:
    """The answer comes back over the half that is still open."""
    server = echo.TcpServer(0, echo.count)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with socket.create_connection(("127.0.0.1", server.server_address[1]), 5) as client:
            client.sendall(b"x" * 100_000)
            client.shutdown(socket.SHUT_WR)
            assert client.makefile("rb").read() == b"100000\n"
    finally:
        server.shutdown()
        server.server_close()
