"""A real Envoy on loopback with the routes of one or many services, and applications behind it.

Each case is a port of the service under test, with rules of its own; it listens once for each
caller, whose identity is given to it as connect_terminate would give it.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from security_apps import serving

from mesh.manifest import Key
from mesh.model import Port, Service, SpiffeId
from mesh.xds.types import CLUSTER, LISTENER, ROUTES
from waypoint.config.envoy.clusters import cluster
from waypoint.config.envoy.inner import http_chain
from waypoint.config.envoy.names import cluster_name
from waypoint.config.envoy.pack import pack
from waypoint.config.envoy.routes import route_configuration
from waypoint.config.model import Bound, Waypoint
from waypoint.config.regex import MAX_PROGRAM, PROGRAM_SIZE_KEY
from waypoint.config.routing import BackendRef, HttpRule, Routes, WeightedBackend
from waypoint.config.security import OPEN
from waypoint.config.traffic import TrafficPolicy

Proto = dict[str, Any]
_T = "type.googleapis.com/envoy.extensions"
WAYPOINT = Waypoint("shop", "wp", SpiffeId("cluster.local", "shop", "wp"))
CALLERS = ("shop", "other")  # namespaces
SERVICE = "shop/web.shop.svc.cluster.local"


def ref(name: str) -> BackendRef:
    """Port 80 of a service of namespace shop."""
    return BackendRef(f"shop/{name}.shop.svc.cluster.local", 80)


def to(name: str, weight: int = 1, **more: Any) -> WeightedBackend:
    """A share for a service."""
    return WeightedBackend(ref(name), weight, **more)


def rule(*backends: WeightedBackend, **fields: Any) -> HttpRule:
    """A rule; its backend is "a" where nothing is said."""
    answered = fields.get("redirect") or fields.get("response")
    chosen = backends or (() if answered else (to("a"),))
    return HttpRule(Key("HTTPRoute", "shop", "r"), "shop.r.0", backends=chosen, **fields)


def bound(rules: Sequence[HttpRule] | None, number: int = 80) -> tuple[Bound, Port]:
    """A service with one port and these rules."""
    port = Port(number, 8080, 1)
    service = Service(
        name="web",
        namespace="shop",
        hostname="web.shop.svc.cluster.local",
        vips=("10.0.0.1",),
        ports=(port,),
    )
    routes = Routes(http=None if rules is None else tuple(rules))
    return Bound(service, ((number, routes),)), port


# ---- applications ----------------------------------------------------------------------------


class Seen:
    """What reached the applications: (application, path), counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: Counter[tuple[str, str]] = Counter()
        self.hosts: set[str] = set()

    def add(self, name: str, path: str, host: str) -> int:
        with self._lock:
            self._seen[name, path] += 1
            self.hosts.add(host)
            return sum(n for (_, p), n in self._seen.items() if p == path)

    def of(self, name: str, path: str) -> int:
        with self._lock:
            return self._seen[name, path]


def app(name: str, seen: Seen) -> type[BaseHTTPRequestHandler]:
    """Make an application that echoes; query: status, delay, flaky=N (the first N fail), cut=N."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else the body waits 40 ms for the headers' ACK

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
            count = seen.add(name, self.path, self.headers["host"])
            asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            time.sleep(float(asked.get("delay", 0)))
            if count <= int(asked.get("cut", 0)):
                self.close_connection = True
                return  # without an answer: a connection that was reset
            status = int(asked.get("status", 200))
            if count > int(asked.get("flaky", 1 << 30)):
                status = 200
            headers: dict[str, str] = {}
            for key, value in self.headers.items():
                lower = key.lower()
                headers[lower] = f"{headers[lower]},{value}" if lower in headers else value
            found = {"app": name, "path": self.path, "headers": headers, "body": body}
            out = json.dumps(found).encode()
            with suppress(ConnectionError):  # nobody waits any more
                self.send_response(status)
                self.send_header("content-length", str(len(out)))
                self.send_header("x-app", name)
                self.end_headers()
                self.wfile.write(out)

        do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = _answer

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


# ---- the proxy -------------------------------------------------------------------------------


@dataclass
class Answer:
    """What a caller got."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def seen(self) -> Any:
        """What the application saw."""
        return json.loads(self.text)

    @property
    def app(self) -> str:
        """Which application answered; "" if the proxy did."""
        return self.headers.get("x-app", "")


@dataclass
class Proxy:
    """A running Envoy."""

    ports: Mapping[tuple[str, str], int]  # (case, caller's namespace)
    seen: Seen

    def ask(
        self,
        case: str,
        path: str = "/",
        method: str = "GET",
        headers: Sequence[tuple[str, str]] = (),
        caller: str = "shop",
    ) -> Answer:
        """Send one request with exactly these headers besides Host."""
        conn = http.client.HTTPConnection("127.0.0.1", self.ports[case, caller], timeout=15)
        try:
            named = any(name.lower() == "host" for name, _ in headers)
            conn.putrequest(method, path, skip_host=named, skip_accept_encoding=True)
            for name, value in headers:
                conn.putheader(name, value)
            conn.endheaders()
            got = conn.getresponse()
            fields = {k.lower(): v for k, v in got.getheaders()}
            return Answer(got.status, fields, got.read().decode())
        finally:
            conn.close()

    def asks(self, case: str, path: str, times: int) -> Counter[int]:
        """Send the same request many times, 16 at once; count the statuses."""
        with ThreadPoolExecutor(16) as pool:
            return Counter(pool.map(lambda _: self.ask(case, path).status, range(times)))


def _listener(name: str, caller: str, case: Bound, port: Port) -> Proto:
    """The chain of a waypoint, with its routes inside and the caller's identity given."""
    chain = http_chain(WAYPOINT, name, "r", OPEN, ("web.shop.svc.cluster.local", "shop"))
    manager = chain["filters"][0]["typed_config"]
    del manager["rds"]
    manager["access_log"] = []
    routes = route_configuration(case, port)
    pack(ROUTES, routes)
    manager["route_config"] = {**routes, "validate_clusters": False}
    state = {
        "object_key": "wp.peer",
        "factory_key": "envoy.string",
        "format_string": {
            "text_format_source": {"inline_string": f"spiffe://cluster.local/ns/{caller}/sa/x"}
        },
    }
    typed = {
        "@type": f"{_T}.filters.network.set_filter_state.v3.Config",
        "on_new_connection": [state],
    }
    chain["filters"].insert(0, {"name": "peer", "typed_config": typed})
    out: Proto = {
        "name": f"{name}|{caller}",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [chain],
    }
    pack(LISTENER, out)
    return out


def _cluster(name: str, *places: Sequence[int]) -> Proto:
    """A cluster whose endpoints are those ports, the nearest place first."""
    out = cluster(name, 1, TrafficPolicy())
    del out["eds_cluster_config"]
    groups = [
        {"lb_endpoints": [{"endpoint": {"address": _loopback(p)}} for p in ports], "priority": i}
        for i, ports in enumerate(places)
    ]
    assigned = {"cluster_name": name, "endpoints": groups}
    out |= {"type": "STATIC", "load_assignment": assigned}
    pack(CLUSTER, out)
    return out


def _loopback(port: int) -> Proto:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _bootstrap(
    cases: Mapping[str, tuple[Bound, Port]], clusters: Mapping[str, Sequence[Sequence[int]]]
) -> Proto:
    internal = f"{_T}.bootstrap.internal_listener.v3.InternalListener"
    return {
        "node": {"id": "waypoint~10.0.0.1~wp.shop~shop.svc.cluster.local", "cluster": "wp.shop"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "bootstrap_extensions": [{"name": "internal", "typed_config": {"@type": internal}}],
        "layered_runtime": {
            "layers": [{"name": "static", "static_layer": {PROGRAM_SIZE_KEY: MAX_PROGRAM}}]
        },
        "static_resources": {
            "clusters": [_cluster(name, *places) for name, places in clusters.items()],
            "listeners": [
                _listener(name, caller, *case) for name, case in cases.items() for caller in CALLERS
            ],
        },
    }


def envoy() -> str:
    """The program."""
    return str(Path(sys.executable).with_name("envoy"))


@contextmanager
def proxy(folder: Path, cases: Mapping[str, tuple[Bound, Port]]) -> Iterator[Proxy]:
    """Run Envoy with applications a and b (two endpoints each), web (one), dead (none there).

    Of half's two endpoints one is dead; far's one is dead, and another is in the next place.
    """
    seen = Seen()
    with ExitStack() as stack:
        clusters: dict[str, list[list[int]]] = {}
        for name, count in (("a", 2), ("b", 1), ("web", 1)):
            ports = [stack.enter_context(serving(app(name, seen))) for _ in range(count)]
            clusters[cluster_name(ref(name))] = [ports]
        alive = clusters[cluster_name(ref("a"))][0][:1]
        clusters[cluster_name(ref("dead"))] = [[1]]  # nobody listens on tcpmux
        clusters[cluster_name(ref("half"))] = [[1, *alive]]
        clusters[cluster_name(ref("far"))] = [[1], alive]
        config, log, admin = folder / "envoy.json", folder / "envoy.log", folder / "admin"
        config.write_text(json.dumps(_bootstrap(cases, clusters)))
        out = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            [
                *(envoy(), "-c", str(config), "--admin-address-path", str(admin)),
                *("--disable-hot-restart", "--concurrency", "1", "--log-level", "error"),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        deadline = time.monotonic() + 20
        ports_of: dict[tuple[str, str], int] = {}
        while len(ports_of) < len(cases) * len(CALLERS):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
            ports_of = _listening(admin)
        yield Proxy(ports_of, seen)


def _listening(admin: Path) -> dict[tuple[str, str], int]:
    try:
        url = f"http://{admin.read_text()}/listeners?format=json"
        with urllib.request.urlopen(url, timeout=5) as response:
            found = json.load(response)["listener_statuses"]
    except (OSError, ValueError, KeyError):
        return {}
    out = {}
    for one in found:
        case, _, caller = one["name"].rpartition("|")
        out[case, caller] = int(one["local_address"]["socket_address"]["port_value"])
    return out
