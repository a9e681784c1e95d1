"""Metrics, readiness and the debug dump over plain HTTP."""

from __future__ import annotations

import ipaddress
import json
import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from google.protobuf import json_format
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from control_plane.engine import Engine
from control_plane.metrics import Metrics
from control_plane.xds import Hub
from mesh.errors import ConfigError
from mesh.model import Workload
from mesh.model.convert import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    address_untrusted,
)
from mesh.pb import authorization_pb2, workload_pb2
from mesh.xds.delta import Resource

log = logging.getLogger(__name__)

_TIMEOUT: Final = 10.0  # seconds a client may take over its request


def _is_loopback(client: str) -> bool:
    """Say whether a peer address is of this machine, also as ::ffff:127.0.0.1."""
    address = ipaddress.ip_address(client.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _addresses(resource: Resource) -> list[str]:
    value = address_untrusted(resource.payload)
    return list(value.addresses if isinstance(value, Workload) else value.vips)


def _describe(resource: Resource) -> dict[str, Any]:
    message = (
        workload_pb2.Address
        if resource.type_url == ADDRESS_TYPE
        else authorization_pb2.Authorization
    )
    body = json_format.MessageToDict(
        message.FromString(resource.payload), preserving_proto_field_name=True
    )
    out: dict[str, Any] = {"name": resource.name, "version": resource.version, "resource": body}
    if resource.type_url == ADDRESS_TYPE:
        out["addresses"] = _addresses(resource)  # in the body they are base64
    return out


def dump_registry(hub: Hub, engine: Engine) -> dict[str, Any]:
    """Describe everything that is served, and to whom."""
    snapshot = hub.snapshot
    return {
        "version": snapshot.version,
        "addresses": [_describe(r) for _, r in sorted(snapshot.of(ADDRESS_TYPE).items())],
        "authorizations": [
            _describe(r) for _, r in sorted(snapshot.of(AUTHORIZATION_TYPE).items())
        ],
        "conditions": {
            str(key): {"type": c.type, "status": c.status, "reason": c.reason, "message": c.message}
            for key, c in sorted(engine.registry.conditions.items())
        },
        "problems": engine.problems,
        "connections": [
            {
                "node": s.node,
                "peer": s.peer,
                "account": s.caller.account,
                "pod": s.caller.pod,
                "types": s.state.subscriptions,
            }
            for s in list(hub.streams)
        ],
    }


class AdminServer:
    """Serves /metrics, /healthz/ready and /debug/registry from a thread of its own."""

    def __init__(
        self,
        address: tuple[str, int],
        metrics: Metrics,
        ready: Callable[[], bool],
        dump: Callable[[], dict[str, Any]],
    ) -> None:
        def answer(path: str, client: str) -> tuple[int, str, bytes]:
            if path == "/metrics":
                return 200, CONTENT_TYPE_LATEST, generate_latest(metrics.registry)
            if path in ("/healthz/ready", "/ready"):
                return (200, "text/plain", b"ready\n") if ready() else (503, "text/plain", b"no\n")
            if path.startswith("/debug/") and not _is_loopback(client):
                return 403, "text/plain", b"/debug is for this machine's loopback only\n"
            if path == "/debug/registry":
                return 200, "application/json", json.dumps(dump(), indent=1).encode()
            return 404, "text/plain", b"/metrics /healthz/ready /debug/registry\n"

        class Handler(BaseHTTPRequestHandler):
            timeout = _TIMEOUT

            def do_GET(self) -> None:
                status, content_type, body = answer(self.path.split("?")[0], self.client_address[0])
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                log.debug("admin: %s", format % args)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = 10 if ":" in address[0] else 2  # AF_INET6, AF_INET

        try:
            self._server = Server(address, Handler)
        except OSError as e:
            raise ConfigError(
                f"--metrics-listen {address[0]}:{address[1]}: {e.strerror}; is it in use?"
            ) from e
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
