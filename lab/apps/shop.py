"""A small shop of four HTTP services that call each other: `python3 -m lab.apps.shop ROLE`.

frontend -> cart -> catalog        every service listens on port 8080
frontend -> catalog                every call is a new connection, as from many small clients
cart -> payments
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 8080
TIMEOUT = 5.0
PRODUCTS = {
    "teapot": {"name": "Stoneware teapot", "cents": 3450},
    "kettle": {"name": "Copper kettle", "cents": 7900},
    "cup": {"name": "Cup without a handle", "cents": 950},
}


class CallFailed(Exception):
    """Another service did not answer as it should."""


def call(service: str, path: str) -> Any:
    """GET a JSON answer from another service over a connection of its own."""
    connection = http.client.HTTPConnection(service, PORT, timeout=TIMEOUT)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise CallFailed(f"{service}{path} answered {answer.status}")
        return json.loads(body)
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise CallFailed(f"{service}{path}: {e!r}") from e
    finally:
        connection.close()


def catalog(path: str) -> Any:
    """List products, or show one."""
    name = path.rpartition("/")[2]
    return PRODUCTS if not name else {name: PRODUCTS[name]}


def payments(path: str) -> Any:
    """Say how one can pay."""
    return {"methods": ["card", "invoice"], "currency": "EUR"}


def cart(path: str) -> Any:
    """Show what is in the cart, at the catalog's prices."""
    teapot = call("catalog", "/teapot")["teapot"]
    items = [{"product": teapot["name"], "count": 2, "cents": 2 * teapot["cents"]}]
    return {"items": items, "pay": call("payments", "/")["methods"]}


def frontend(path: str) -> Any:
    """Show the page: everything the others say."""
    return {"catalog": call("catalog", "/"), "cart": call("cart", "/")}


ROLES: dict[str, Callable[[str], Any]] = {
    "frontend": frontend,
    "cart": cart,
    "catalog": catalog,
    "payments": payments,
}


def handler(role: str) -> type[BaseHTTPRequestHandler]:
    """Make the request handler of a role."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/healthz":
                self.reply(200, {"ok": True})
                return
            try:
                self.reply(200, ROLES[role](self.path))
            except KeyError:
                self.reply(404, {"error": f"{role} has no {self.path}"})
            except CallFailed as e:
                self.reply(502, {"error": f"{role}: {e}"})

        def reply(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            if self.path != "/healthz":
                sys.stderr.write(f"{self.client_address[0]} {format % args}\n")

    return Handler


class Server(ThreadingHTTPServer):
    """Listens on IPv4 and IPv6."""

    address_family = socket.AF_INET6
    request_queue_size = 1024
    daemon_threads = True

    def server_bind(self) -> None:
        """Take both families; ask no name server who we are."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = os.environ.get("POD_NAME", "shop"), PORT


def main() -> None:
    """Serve a role until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=sorted(ROLES))
    role = parser.parse_args().role
    Server(("::", PORT), handler(role)).serve_forever()


if __name__ == "__main__":
    main()
