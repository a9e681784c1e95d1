"""An API server and a container runtime for one node, as small as the node agent lets them be.

The API server speaks HTTPS (the CNI plugin accepts nothing else) and knows pods, namespaces, the
agent's DaemonSet, token requests and events. It is given a listening socket, which may live in
another network namespace than the threads that serve it.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import datetime
import ipaddress
import json
import socket
import ssl
import threading
import time
import uuid
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mesh.pb import cri_pb2, cri_pb2_grpc
from mesh.ports import ANNOTATION_REDIRECTION
from node_agent.source import CONDITION

Object = dict[str, Any]
Where = tuple[str, str, str]  # plural, namespace, name


def certificate(folder: Path, address: str) -> Path:
    """Write a self-signed certificate and its key into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "api")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False
        )
        .sign(key, hashes.SHA256())
    )
    path = folder / "api.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + built.public_bytes(serialization.Encoding.PEM)
    )
    return path


class MiniApi:
    """Objects by plural, namespace and name; every change is an event of one counter."""

    def __init__(self, pem: Path) -> None:
        self.news = threading.Condition()
        self.objects: dict[Where, Object] = {}
        self.log: list[tuple[int, str, str, Object]] = []
        self.events: list[Object] = []
        self.writes = 0  # of statuses
        self.away = False
        self._rv = 1
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(pem)
        self._server: ThreadingHTTPServer | None = None

    def start(self, listener: socket.socket) -> None:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def any(self) -> None:
                with contextlib.suppress(OSError):
                    api.handle(self)

            do_GET = do_POST = do_PATCH = any

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> tuple[socket.socket, Any]:
                raw, peer = listener.accept()
                if api.away:
                    raw.close()
                    raise OSError("away")
                raw.settimeout(30)
                return api._tls.wrap_socket(raw, True, do_handshake_on_connect=False), peer

        self._server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.set_away(True)
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def set_away(self, away: bool) -> None:
        """Cut every watch, and answer nobody."""
        with self.news:
            self.away = away
            self.news.notify_all()

    def put(self, plural: str, obj: Object) -> Object:
        metadata = obj["metadata"]
        with self.news:
            where = (plural, metadata.get("namespace", ""), metadata["name"])
            what = "MODIFIED" if where in self.objects else "ADDED"
            self.objects[where] = obj
            self._commit(what, plural, obj)
        return obj

    def change(self, where: Where, **parts: Any) -> None:
        with self.news:
            obj = copy.deepcopy(self.objects[where])
            for part, values in parts.items():
                obj.setdefault(part, {}).update(values)
        self.put(where[0], obj)

    def delete(self, where: Where) -> None:
        with self.news:
            self._commit("DELETED", where[0], self.objects.pop(where))

    def get(self, where: Where) -> Object:
        with self.news:
            return copy.deepcopy(self.objects.get(where, {}))

    def _commit(self, what: str, plural: str, obj: Object) -> None:
        self._rv += 1
        obj["metadata"]["resourceVersion"] = str(self._rv)
        self.log.append((self._rv, what, plural, copy.deepcopy(obj)))
        self.news.notify_all()

    # ---- what clients ask ----------------------------------------------------------------------

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        query = dict(parse_qsl(url.query))
        size = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(size)) if size else {}
        parts = url.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        plural, name, sub = (*parts, "", "")[:3]
        if handler.command == "GET" and query.get("watch"):
            self._watch(handler, plural, int(query["resourceVersion"]))
            return
        with self.news:
            code, answer = self._do(handler.command, (plural, namespace, name), sub, body)
        _send(handler, code, answer)

    def _do(self, method: str, where: Where, sub: str, body: Object) -> tuple[int, Object]:
        plural, _, name = where
        if method == "POST" and plural == "events":
            self.events.append(body)
            return 201, body
        if sub == "token":
            return 201, {"status": {"token": token()}}
        if not name:
            items = [o for (p, _, _), o in self.objects.items() if p == plural]
            return 200, {"metadata": {"resourceVersion": str(self._rv)}, "items": items}
        if where not in self.objects:
            details = {"name": name}
            status = {"kind": "Status", "reason": "NotFound", "message": f"{name} not found"}
            return 404, status | {"details": details}
        if method == "PATCH":
            return self._apply(where, body)
        return 200, self.objects[where]

    def _apply(self, where: Where, body: Object) -> tuple[int, Object]:
        """Take a status as server-side apply does: what is not said any more is removed."""
        obj = copy.deepcopy(self.objects[where])
        if body["metadata"].get("uid", obj["metadata"]["uid"]) != obj["metadata"]["uid"]:
            return 409, {"kind": "Status", "reason": "Conflict", "message": "uid mismatch"}
        annotations = obj["metadata"].setdefault("annotations", {})
        annotations.pop(ANNOTATION_REDIRECTION, None)
        annotations.update(body["metadata"].get("annotations", {}))
        status = obj.setdefault("status", {})
        kept = [c for c in status.get("conditions", []) if c["type"] != CONDITION]
        status["conditions"] = kept + body.get("status", {}).get("conditions", [])
        self.writes += 1
        self.put(where[0], obj)
        return 200, obj

    def _watch(self, handler: BaseHTTPRequestHandler, plural: str, seen: int) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.close_connection = True
        while not self.away:
            with self.news:
                due = [e for e in self.log if e[0] > seen]
                if not due:
                    self.news.wait(1)
            for rv, what, kind, obj in due:
                seen = rv
                if kind == plural:
                    line = json.dumps({"type": what, "object": obj}).encode() + b"\n"
                    handler.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")


def token() -> str:
    """A token that says when it ends, and nothing else that is true."""
    claims = json.dumps({"exp": int(time.time()) + 3600}).encode()
    return f"e30.{base64.urlsafe_b64encode(claims).rstrip(b'=').decode()}.sig"


def _send(handler: BaseHTTPRequestHandler, code: int, answer: Object) -> None:
    data = json.dumps(answer).encode()
    handler.send_response(code)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


class MiniRuntime(cri_pb2_grpc.RuntimeServiceServicer):
    """Sandboxes that tests put in; `start` serves a unix socket."""

    def __init__(self, path: Path) -> None:
        self.ready: dict[str, tuple[str, list[str], str]] = {}  # id: uid, addresses, netns
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        cri_pb2_grpc.add_RuntimeServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix://{path}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None)

    def Version(self, request: Any, context: Any) -> cri_pb2.VersionResponse:
        return cri_pb2.VersionResponse(runtime_name="mini", runtime_version="1")

    def ListPodSandbox(self, request: Any, context: Any) -> cri_pb2.ListPodSandboxResponse:
        answer = cri_pb2.ListPodSandboxResponse()
        for sandbox, (uid, _, _) in list(self.ready.items()):
            answer.items.add(id=sandbox, metadata=cri_pb2.PodSandboxMetadata(uid=uid), created_at=1)
        return answer

    def PodSandboxStatus(self, request: Any, context: Any) -> cri_pb2.PodSandboxStatusResponse:
        if request.pod_sandbox_id not in self.ready:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such sandbox")
        uid, addresses, netns = self.ready[request.pod_sandbox_id]
        answer = cri_pb2.PodSandboxStatusResponse()
        answer.status.id = request.pod_sandbox_id
        answer.status.metadata.uid = uid
        answer.status.network.ip = addresses[0]
        for address in addresses[1:]:
            answer.status.network.additional_ips.add(ip=address)
        namespaces = [{"type": "network", "path": f"/run/netns/{netns}"}]
        answer.info["info"] = json.dumps({"runtimeSpec": {"linux": {"namespaces": namespaces}}})
        return answer


def new_uid() -> str:
    return str(uuid.uuid4())
