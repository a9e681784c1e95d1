"""A small shop of HTTP services that call each other: `python3 -m lab.apps.shop ROLE`.

    frontend ──► catalog
        └──────► cart ──► catalog, payments

Each answers JSON on PORT (8080) and says which pod served it, so that a caller sees who answered.
The role `echo` is a server that says who it thinks called (lab.apps.echo). What a role answers is
decided in `answer`, which calls others through a function it is given.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

PORT: Final = 8080
TIMEOUT: Final = 2.0  # seconds for a call to another service
HEALTH: Final = "/healthz"
PRODUCTS: Final = (
    {"sku": "t-1", "name": "teapot", "price": 42},
    {"sku": "k-7", "name": "kettle", "price": 31},
    {"sku": "c-3", "name": "cup", "price": 6},
)
BASKET: Final = {"t-1": 1, "c-3": 4}
# Headers that tie the calls of one request together; Envoy and Istio know these.
TRACE_HEADERS: Final = ("x-request-id", "traceparent", "tracestate")

Json = dict[str, Any]
Call = Callable[[str], Json]  # name of a service -> its answer; raises CallFailed


class CallFailed(Exception):
    """Another service did not answer as it should; the message says how."""


# ---- what each role answers (pure) -------------------------------------------------------------


def catalog(call: Call) -> Json:
    """List what is for sale."""
    return {"products": list(PRODUCTS)}


def payments(call: Call) -> Json:
    """Accept every payment."""
    return {"accepted": True}


def cart(call: Call) -> Json:
    """Price the basket by the catalog and ask whether it can be paid; both are needed."""
    prices = {p["sku"]: p["price"] for p in call("catalog")["products"]}
    total = sum(prices[sku] * count for sku, count in BASKET.items())
    return {"items": BASKET, "total": total, "payable": call("payments")["accepted"]}


def frontend(call: Call) -> Json:
    """Show both parts of the page; one that fails is shown as such, without the other's loss."""
    page: Json = {"shop": "teapots and more"}
    failures = 0
    for part in ("catalog", "cart"):
        try:
            page[part] = call(part)
        except CallFailed as e:
            failures += 1
            page[part] = {"error": str(e)}
    if failures == 2:
        raise CallFailed(f"{page['catalog']['error']}; {page['cart']['error']}")
    return page


ROLES: Final[Mapping[str, Callable[[Call], Json]]] = {
    "frontend": frontend,
    "cart": cart,
    "catalog": catalog,
    "payments": payments,
}


def answer(role: str, path: str, pod: str, call: Call) -> tuple[int, Json]:
    """Answer GET `path` as `role`; returns HTTP status and body."""
    if path == HEALTH:
        return 200, {"ok": True}
    try:
        return 200, {**ROLES[role](call), "served_by": pod}
    except CallFailed as e:
        return 502, {"error": str(e), "served_by": pod}


# ---- the shell ---------------------------------------------------------------------------------


def url_of(service: str) -> str:
    """Where a service is: its name on PORT, unless e.g. CATALOG_URL says otherwise."""
    return os.environ.get(f"{service.upper()}_URL", f"http://{service}:{PORT}/")


def fetch(service: str, headers: Mapping[str, str]) -> Json:
    """Call another service; raises CallFailed."""
    try:
        request = urllib.request.Request(url_of(service), headers=dict(headers))
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            found = json.load(response)
    except urllib.error.HTTPError as e:
        raise CallFailed(f"{service}: answered {e.code}") from e
    except (OSError, ValueError) as e:
        raise CallFailed(f"{service}: {getattr(e, 'reason', e)}") from e
    if not isinstance(found, dict):
        raise CallFailed(f"{service}: answered something that is not an object")
    return found


class DualStackServer(ThreadingHTTPServer):
    """Listens on IPv6 and IPv4 with one socket."""

    address_family = socket.AF_INET6
    request_queue_size = 1024
    daemon_threads = True

    def server_bind(self) -> None:
        """Take IPv4 too, whatever net.ipv6.bindv6only says."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class JsonHandler(BaseHTTPRequestHandler):
    """Answers GET with JSON; keeps connections open."""

    protocol_version = "HTTP/1.1"

    def reply(self, status: int, body: Json) -> None:
        """Send one answer."""
        raw = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log what people asked, not what probes asked."""
        if self.path != HEALTH:
            super().log_request(code, size)


def serve(role: str, port: int = PORT) -> None:
    """Serve a role until killed."""
    pod = os.environ.get("POD_NAME") or socket.gethostname()

    class Handler(JsonHandler):
        def do_GET(self) -> None:
            trace = {h: v for h in TRACE_HEADERS if (v := self.headers.get(h))}
            self.reply(*answer(role, self.path, pod, lambda service: fetch(service, trace)))

    DualStackServer(("::", port), Handler).serve_forever()


def main() -> None:
    """Run the role named on the command line."""
    role = sys.argv[1] if len(sys.argv) == 2 else ""
    if role == "echo":
        from lab.apps import echo

        echo.serve()
    elif role in ROLES:
        serve(role, int(os.environ.get("PORT", PORT)))
    else:
        sys.exit(f"usage: python3 -m lab.apps.shop {{{','.join([*ROLES, 'echo'])}}}")


if __name__ == "__main__":
    main()
