"""The shop's services: who calls whom, and what a caller sees when somebody fails."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lab.apps import shop


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Services call each other directly instead of over the network; who was called."""
    made: list[str] = []

    def call(service: str, path: str) -> Any:
        made.append(service)
        return shop.ROLES[service](path)

    monkeypatch.setattr(shop, "call", call)
    return made


def test_the_front_page_takes_all_four_services(calls: list[str]) -> None:
    """frontend -> catalog and cart; cart -> catalog and payments."""
    page = shop.frontend("/")
    assert sorted(calls) == ["cart", "catalog", "catalog", "payments"]
    assert page["cart"]["items"][0]["cents"] == 2 * shop.PRODUCTS["teapot"]["cents"]
    assert "teapot" in json.dumps(page["catalog"])  # the demo looks for it on the wire


@pytest.fixture
def cart_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A running cart whose calls all fail; its port."""

    def call(service: str, path: str) -> Any:
        raise shop.CallFailed(f"{service}{path}: connection reset")

    monkeypatch.setattr(shop, "call", call)
    server = shop.Server(("::", 0), shop.handler("cart"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.socket.getsockname()[1]
    server.shutdown()
    server.server_close()


def get(host: str, port: int, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = json.load(answer)
    connection.close()
    return answer.status, body


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_failed_call_is_a_502_that_names_it(cart_server: int, host: str) -> None:
    """Over both families; the reader sees which service was missing."""
    status, body = get(host, cart_server, "/")
    assert status == 502
    assert "catalog/teapot: connection reset" in body["error"]


def test_health_does_not_depend_on_others(cart_server: int) -> None:
    """A probe asks about this process only."""
    assert get("127.0.0.1", cart_server, "/healthz") == (200, {"ok": True})
