"""A small API server: lists with pages, watches that stream, bookmarks, 410, 403, cut connections.

It knows objects as JSON and no schema. What it answers follows the real one where clients can tell:
HTTP/1.1 with chunked watches, one event a line, resourceVersions from one counter, Status objects
for errors. Server-side apply is there for what is applied here: conditions as a list-map by type,
data and annotations as maps, each part owned by its last applier.
"""

from __future__ import annotations

import contextlib
import copy
import json
import socket
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Object = dict[str, Any]
Where = tuple[str, str]  # namespace, name

# (group, plural): kind, versions served
BUILT_IN: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("", "pods"): ("Pod", ("v1",)),
    ("", "namespaces"): ("Namespace", ("v1",)),
    ("", "services"): ("Service", ("v1",)),
    ("", "nodes"): ("Node", ("v1",)),
    ("", "secrets"): ("Secret", ("v1",)),
    ("", "configmaps"): ("ConfigMap", ("v1",)),
    ("", "events"): ("Event", ("v1",)),
    ("discovery.k8s.io", "endpointslices"): ("EndpointSlice", ("v1",)),
    ("coordination.k8s.io", "leases"): ("Lease", ("v1",)),
}
SECURITY = {
    ("security.istio.io", "authorizationpolicies"): ("AuthorizationPolicy", ("v1",)),
    ("security.istio.io", "peerauthentications"): ("PeerAuthentication", ("v1",)),
}
GATEWAY = {
    ("gateway.networking.k8s.io", "gateways"): ("Gateway", ("v1",)),
    ("gateway.networking.k8s.io", "httproutes"): ("HTTPRoute", ("v1",)),
    ("gateway.networking.k8s.io", "gatewayclasses"): ("GatewayClass", ("v1",)),
}
CLUSTER = {"namespaces", "nodes", "gatewayclasses"}


class Refusal(Exception):
    def __init__(self, status: int, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.status, self.reason, self.message = status, reason, message or reason


class Parsed:
    """What a path names."""

    def __init__(self, path: str) -> None:
        parts = path.strip("/").split("/")
        self.group = "" if parts[0] == "api" else parts[1]
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        self.version = parts[1] if parts[0] == "api" else parts[2]
        self.namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            self.namespace, rest = rest[1], rest[2:]
        self.plural = rest[0] if rest else ""
        self.name = rest[1] if len(rest) > 1 else ""
        self.sub = rest[2] if len(rest) > 2 else ""
        self.key = (self.group, self.plural)


class FakeApi:
    """start() listens on a free port; the same one again after stop()."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.news = threading.Condition(self.lock)
        self.served = {**BUILT_IN, **SECURITY, **GATEWAY}
        self.objects: dict[tuple[str, str], dict[Where, Object]] = {}
        self.log: dict[tuple[str, str], list[tuple[int, str, Object]]] = {}
        self.owners: dict[tuple[Any, ...], dict[str, str]] = {}
        self.rv = 100
        self.oldest: dict[tuple[str, str], int] = {}
        self.forbidden: set[str] = set()
        self.tokens: dict[str, Object] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.delay = 0.0
        self.watches: set[socket.socket] = set()
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    # ---- what tests do to it -------------------------------------------------------------------

    def start(self) -> FakeApi:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, ValueError, OSError):
                    self.close_connection = True

            def any(self) -> None:
                api.handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = any

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        self._connections: set[socket.socket] = set()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening and cut every connection: a dead API server."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        with self.lock:
            for connection in list(self._connections):
                _cut(connection)

    def cut(self) -> None:
        """Break all watches in the middle, without a word."""
        with self.lock:
            for connection in list(self.watches):
                _cut(connection)

    def kubeconfig(self, folder: Path) -> Path:
        """Write a configuration that leads here."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = folder / "kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def put(self, obj: Object, group: str = "", plural: str = "") -> Object:
        """Create or replace an object as a user or another controller does."""
        with self.lock:
            key = (group, plural) if plural else self._key_of(obj["kind"])
            metadata = obj["metadata"]
            where = (metadata.get("namespace") or "", metadata["name"])
            old = self.objects.get(key, {}).get(where)
            new = copy.deepcopy(obj)
            if old is not None:
                new["metadata"].setdefault("uid", old["metadata"]["uid"])
                if "status" in old:
                    new.setdefault("status", old["status"])
                generation = old["metadata"].get("generation", 1)
                new["metadata"]["generation"] = generation + (old.get("spec") != new.get("spec"))
            new["metadata"].setdefault("uid", str(uuid.uuid4()))
            new["metadata"].setdefault("generation", 1)
            return self._commit(key, where, "MODIFIED" if old is not None else "ADDED", new)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        with self.lock:
            key = self._key_of(kind)
            old = self.objects[key].pop((namespace, name))
            self._commit(key, (namespace, name), "DELETED", old)

    def get(self, kind: str, namespace: str, name: str) -> Object:
        with self.lock:
            return copy.deepcopy(self.objects.get(self._key_of(kind), {})[(namespace, name)])

    def has(self, kind: str, namespace: str, name: str) -> bool:
        with self.lock:
            return (namespace, name) in self.objects.get(self._key_of(kind), {})

    def compact(self, kind: str) -> None:
        """Forget the events of a kind: older watches get 410."""
        with self.lock:
            key = self._key_of(kind)
            self.rv += 1
            self.oldest[key] = self.rv
            self.log[key] = []

    def bookmark(self, kind: str) -> None:
        """Send a bookmark to every watch of a kind; other kinds have moved the counter on."""
        with self.lock:
            key = self._key_of(kind)
            self.rv += 1
            mark = {"kind": kind, "metadata": {"resourceVersion": str(self.rv)}}
            self.log.setdefault(key, []).append((self.rv, "BOOKMARK", mark))
            self.news.notify_all()

    def raw(self, kind: str, event: str, obj: Object) -> None:
        """Send any event to the watches of a kind."""
        with self.lock:
            self.rv += 1
            self.log.setdefault(self._key_of(kind), []).append((self.rv, event, obj))
            self.news.notify_all()

    def asked(self, method: str, part: str) -> list[tuple[str, str, dict[str, str]]]:
        """The requests made so far whose path contains a part."""
        with self.lock:
            return [r for r in self.requests if r[0] == method and part in r[1]]

    def _key_of(self, kind: str) -> tuple[str, str]:
        table = {**BUILT_IN, **SECURITY, **GATEWAY}
        return next(key for key, (name, _) in table.items() if name == kind)

    def _commit(self, key: tuple[str, str], where: Where, event: str, obj: Object) -> Object:
        self.rv += 1
        obj["metadata"]["resourceVersion"] = str(self.rv)
        if event != "DELETED":
            self.objects.setdefault(key, {})[where] = obj
        self.log.setdefault(key, []).append((self.rv, event, copy.deepcopy(obj)))
        self.news.notify_all()
        return copy.deepcopy(obj)

    # ---- what clients ask ----------------------------------------------------------------------

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        with self.lock:
            self._connections.add(handler.connection)
        parts = urlsplit(handler.path)
        query = dict(parse_qsl(parts.query))
        size = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(size)) if size else {}
        with self.lock:
            self.requests.append((handler.command, parts.path, query))
        if self.delay:
            time.sleep(self.delay)
        try:
            parsed = Parsed(parts.path)
            self._check(parsed, handler.command)
            if handler.command == "GET" and not parsed.plural:
                answer = self._discover(parsed)
            elif handler.command == "GET" and query.get("watch"):
                self._watch(handler, parsed, query)
                return
            else:
                with self.lock:
                    merges = "merge-patch" in (handler.headers.get("Content-Type") or "")
                    method = "MERGE" if merges else handler.command
                    answer = self._do(method, parsed, query, body)
            _send(handler, 200, answer)
        except Refusal as e:
            status = {"kind": "Status", "code": e.status, "reason": e.reason, "message": e.message}
            _send(handler, e.status, status)

    def _check(self, parsed: Parsed, method: str) -> None:
        if parsed.plural == "tokenreviews" and parsed.plural not in self.forbidden:
            return
        if parsed.plural and parsed.key not in self.served and parsed.plural not in self.forbidden:
            raise Refusal(404, "NotFound", "404 page not found")
        versions = self.served.get(parsed.key, ("", (parsed.version,)))[1]
        if parsed.plural and parsed.version not in versions:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        verb = f"{method} {parsed.plural}{'/' + parsed.sub if parsed.sub else ''}"
        if parsed.plural in self.forbidden or verb in self.forbidden:
            raise Refusal(403, "Forbidden", f"{parsed.plural} is forbidden: no RBAC policy matched")

    def _discover(self, parsed: Parsed) -> Object:
        found = [
            {"name": plural, "kind": kind}
            for (group, plural), (kind, versions) in self.served.items()
            if group == parsed.group and parsed.version in versions
        ]
        if not found:
            raise Refusal(404, "NotFound", "404 page not found")
        return {"kind": "APIResourceList", "resources": found}

    def _selected(self, parsed: Parsed, query: dict[str, str]) -> list[Object]:
        selector = query.get("fieldSelector", "")
        return [
            o
            for (ns, name), o in sorted(self.objects.get(parsed.key, {}).items())
            if parsed.namespace in ("", ns)
            and (not selector or selector == f"metadata.name={name}")
        ]

    def _do(self, method: str, parsed: Parsed, query: dict[str, str], body: Object) -> Object:
        if parsed.plural == "tokenreviews":
            known = self.tokens.get(body["spec"]["token"])
            return {"status": known or {"authenticated": False, "error": "unknown token"}}
        if method == "GET" and not parsed.name:
            return self._list(parsed, query)
        here = self.objects.setdefault(parsed.key, {})
        if method == "POST":
            where = (parsed.namespace, body["metadata"]["name"])
            if where in here:
                raise Refusal(409, "AlreadyExists")
            return self.put(body, *parsed.key)
        where = (parsed.namespace, parsed.name)
        if method == "PATCH":
            return self._apply(parsed, where, query, body)
        if where not in here:
            raise Refusal(404, "NotFound")
        if method == "MERGE":
            return self._merge_status(parsed, where, body)
        if method == "PUT":
            if (
                body["metadata"].get("resourceVersion")
                != here[where]["metadata"]["resourceVersion"]
            ):
                raise Refusal(409, "Conflict", "the object has been modified")
            return self.put(body, *parsed.key)
        return copy.deepcopy(here[where])

    def _list(self, parsed: Parsed, query: dict[str, str]) -> Object:
        items = self._selected(parsed, query)
        at, begin = self.rv, 0
        if "continue" in query:
            at, begin = (int(n) for n in query["continue"].split("-"))
            if at < self.oldest.get(parsed.key, 0):
                raise Refusal(410, "Expired", "the continue token is too old")
        metadata: Object = {"resourceVersion": str(at)}
        limit = int(query.get("limit") or 0)
        if limit and begin + limit < len(items):
            metadata["continue"] = f"{at}-{begin + limit}"
        page = items[begin : begin + limit] if limit else items
        return {"kind": "List", "metadata": metadata, "items": copy.deepcopy(page)}

    def _apply(self, parsed: Parsed, where: Where, query: dict[str, str], body: Object) -> Object:
        here = self.objects.setdefault(parsed.key, {})
        old = here.get(where)
        if old is None and parsed.sub:
            raise Refusal(404, "NotFound")
        if (
            old is not None
            and body["metadata"].get("uid", old["metadata"]["uid"]) != (old["metadata"]["uid"])
        ):
            raise Refusal(409, "Conflict", "uid mismatch")
        new = copy.deepcopy(old) or {**body, "metadata": {**body["metadata"]}}
        owners = self.owners.setdefault((*parsed.key, *where), {})
        manager, force = query["fieldManager"], query.get("force") == "true"
        _merge(new, body, owners, manager, force)
        if new == old:
            return copy.deepcopy(new)
        new["metadata"].setdefault("uid", str(uuid.uuid4()))
        return self._commit(parsed.key, where, "MODIFIED" if old is not None else "ADDED", new)

    def _merge_status(self, parsed: Parsed, where: Where, body: Object) -> Object:
        old = self.objects[parsed.key][where]
        if body["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
            raise Refusal(409, "Conflict", "the object has been modified")
        new = {**old, "status": {**(old.get("status") or {}), **body["status"]}}
        return (
            copy.deepcopy(old) if new == old else self._commit(parsed.key, where, "MODIFIED", new)
        )

    def own(self, kind: str, namespace: str, name: str, part: str, manager: str) -> None:
        """Make another manager the owner of a part, as condition:Ready or data:root-cert.pem."""
        self.owners.setdefault((*self._key_of(kind), namespace, name), {})[part] = manager

    def _watch(
        self, handler: BaseHTTPRequestHandler, parsed: Parsed, query: dict[str, str]
    ) -> None:
        seen = int(query["resourceVersion"])
        end = time.monotonic() + float(query.get("timeoutSeconds") or 300)
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        with self.lock:
            self.watches.add(handler.connection)
            if seen < self.oldest.get(parsed.key, 0):
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                _event(handler, "ERROR", gone)
                end = 0.0
        try:
            while time.monotonic() < end and parsed.key in self.served:
                with self.lock:
                    due = [e for e in self.log.get(parsed.key, []) if e[0] > seen]
                    if not due:
                        self.news.wait(0.1)
                        continue
                for rv, what, obj in due:
                    seen = rv
                    if what == "BOOKMARK" or self._wanted(parsed, query, obj):
                        _event(handler, what, obj)
            handler.wfile.write(b"0\r\n\r\n")
        finally:
            with self.lock:
                self.watches.discard(handler.connection)

    def _wanted(self, parsed: Parsed, query: dict[str, str], obj: Object) -> bool:
        metadata = obj.get("metadata") or {}
        selector = query.get("fieldSelector", "")
        return parsed.namespace in ("", metadata.get("namespace")) and (
            not selector or selector == f"metadata.name={metadata.get('name')}"
        )


def _merge(new: Object, body: Object, owners: dict[str, str], manager: str, force: bool) -> None:
    def take(part: str, differs: bool) -> None:
        owner = owners.get(part, manager)
        if owner != manager and differs and not force:
            raise Refusal(409, "Conflict", f'Apply failed with 1 conflict: conflict with "{owner}"')
        owners[part] = manager

    if "status" in body:  # what is not in it any more is given up
        wanted = body["status"].get("conditions", [])
        old = {c["type"]: c for c in new.get("status", {}).get("conditions", [])}
        for condition in wanted:
            take(f"condition:{condition['type']}", old.get(condition["type"]) != condition)
            old[condition["type"]] = condition
        mine = {p for p, m in owners.items() if m == manager and p.startswith("condition:")}
        for part in mine - {f"condition:{c['type']}" for c in wanted}:
            old.pop(part.partition(":")[2], None)
            del owners[part]
        new.setdefault("status", {})["conditions"] = list(old.values())
    for field, values in (
        ("data", body.get("data")),
        ("annotations", body["metadata"].get("annotations")),
        ("labels", body["metadata"].get("labels")),
    ):
        if values is None:
            continue
        target = new if field == "data" else new["metadata"]
        here = target[field] = dict(target.get(field) or {})
        for name, value in values.items():
            take(f"{field}:{name}", here.get(name) != value)
            here[name] = value


def _event(handler: BaseHTTPRequestHandler, what: str, obj: Object) -> None:
    line = json.dumps({"type": what, "object": obj}).encode() + b"\n"
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
    handler.wfile.flush()


def _send(handler: BaseHTTPRequestHandler, status: int, answer: Object) -> None:
    raw = json.dumps(answer).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(raw)))
    handler.end_headers()
    handler.wfile.write(raw)


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
