"""A real Envoy on loopback that judges requests as a waypoint does, without root.

A caller opens a CONNECT tunnel (as ztunnel does, without TLS): headers of it say who calls and from
where, its authority is the original destination. Behind it the internal listener has one chain per
service port under test, with the filters of waypoint.config.security; applications echo requests.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from security_apps import Echo, greeting, serving

from waypoint.config.security import Security, filters

Proto = dict[str, Any]
_T = "type.googleapis.com/envoy."
_FILTERS = _T + "extensions.filters"
VIP = "10.96.0.1"
WEB = "spiffe://cluster.local/ns/shop/sa/web"
# Ports served at once. Envoy watches the file of each one's routes with an inotify instance, of
# which a user has 128 (fs.inotify.max_user_instances), and what was replaced a while longer.
PORTS = 32


def _any(type_name: str, **fields: Any) -> Proto:
    return {"@type": _T + type_name, **fields}


def _filter(name: str, type_name: str, **fields: Any) -> Proto:
    return {"name": name, "typed_config": _any(type_name, **fields)}


# ---- the proxy -------------------------------------------------------------------------------


@dataclass
class Answer:
    """What a caller got."""

    status: int
    body: str
    headers: Mapping[str, str]

    @property
    def seen(self) -> Any:
        """What the application saw."""
        return json.loads(self.body)


@dataclass
class Caller:
    """One connection through the waypoint."""

    conn: http.client.HTTPConnection

    def get(self, path: str = "/", method: str = "GET", **headers: str) -> Answer:
        """Send one request; names of headers are written with "_" for "-"."""
        return self.send(path, method, [(k.replace("_", "-"), v) for k, v in headers.items()])

    def send(self, path: str, method: str, headers: list[tuple[str, str]]) -> Answer:
        """Send one request with exactly these headers besides Host."""
        host = any(name.lower() == "host" for name, _ in headers)
        self.conn.putrequest(method, path, skip_host=host, skip_accept_encoding=True)
        for name, value in headers:
            self.conn.putheader(name, value)
        self.conn.endheaders()
        response = self.conn.getresponse()
        return Answer(response.status, response.read().decode(), dict(response.getheaders()))

    def close(self) -> None:
        """Close the connection."""
        self.conn.close()


@dataclass
class Rig:
    """A running Envoy; `put` gives a destination port its Security, and forgets the oldest."""

    folder: Path
    echo: int
    tcp: int
    upstreams: Mapping[str, int]  # cluster: port on loopback, of providers
    chains: dict[int, tuple[Security, bool]] = field(default_factory=dict)
    admin: str = ""
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def put(self, port: int, security: Security, tcp: bool = False) -> None:
        """Serve a destination port with this Security; returns when Envoy has it."""
        old = self.chains.get(port)
        if old is None and len(self.chains) == PORTS:
            del self.chains[next(iter(self.chains))]
        self.chains[port] = (security, tcp)
        if not tcp:
            self._write(f"rds-{port}.json", [self._routes(port, security)])
        if old is None or self._chain(port, *old) != self._chain(port, security, tcp):
            self._update("listener_manager.lds", "lds.json", [self._outer(), self._inner()])
        elif old[0] != security:
            # The same chain: only the routes are new, and Envoy sees the file change.
            name = f"http.in{port}.rds.rds-{port}.config_reload"
            self._wait(lambda: self.stat(name) >= self._reloads.get(port, 1) + 1, name)
        self._reloads[port] = self.stat(f"http.in{port}.rds.rds-{port}.config_reload")

    def put_routes(self, port: int, security: Security) -> None:
        """Replace only what travels in the routes, as connections on an old chain see it."""
        name = f"http.in{port}.rds.rds-{port}.config_reload"
        before = self.stat(name)
        self._write(f"rds-{port}.json", [self._routes(port, security)])
        self._wait(lambda: self.stat(name) > before, name)

    def __post_init__(self) -> None:
        self._reloads: dict[int, int] = {}

    def call(
        self, port: int, peer: str = WEB, address: str = "10.0.0.2", timeout: float = 5.0
    ) -> Caller:
        """Open a connection as a caller."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        conn.sock = self.dial(port, peer, address, timeout)
        return Caller(conn)

    def dial(
        self, port: int, peer: str = WEB, address: str = "10.0.0.2", timeout: float = 5.0
    ) -> socket.socket:
        """Open a tunnel as a caller; ConnectionRefusedError if the waypoint does not take it."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout)
        head = f"CONNECT {VIP}:{port} HTTP/1.1\r\nHost: {VIP}:{port}\r\n"
        sock.sendall(f"{head}x-peer: {peer}\r\nx-address: {address}:40000\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            got = sock.recv(1)
            assert got, answer
            answer += got
        if b" 200 " not in answer.splitlines()[0]:
            sock.close()
            raise ConnectionRefusedError(answer.splitlines()[0].decode())
        return sock

    def get(self, port: int, path: str = "/", peer: str = WEB, **headers: str) -> Answer:
        """Send one request on a connection of its own."""
        caller = self.call(port, peer)
        try:
            return caller.get(path, **headers)
        finally:
            caller.close()

    def stat(self, name: str) -> int:
        """Read one counter or gauge."""
        text = self._admin(f"/stats?filter=^{name.replace('.', '[.]')}$")
        return int(text.split(": ")[1]) if text else 0

    def log(self) -> str:
        """Read what Envoy wrote."""
        return (self.folder / "envoy.log").read_text()

    # ---- configuration -----------------------------------------------------------------------

    def start(self) -> None:
        """Start Envoy and wait for it."""
        self._write("lds.json", [self._outer(), self._inner()])
        (self.folder / "bootstrap.json").write_text(json.dumps(self._bootstrap()))
        log = (self.folder / "envoy.log").open("wb")
        self.process = subprocess.Popen(
            [
                *(
                    str(Path(sys.executable).with_name("envoy")),
                    "-c",
                    str(self.folder / "bootstrap.json"),
                ),
                *("--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"),
                *("--drain-strategy", "immediate", "--drain-time-s", "1"),
                *("--file-flush-interval-msec", "20"),
                *("--admin-address-path", str(self.folder / "admin")),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._wait(lambda: (self.folder / "admin").exists(), "admin")
        self.admin = (self.folder / "admin").read_text()
        self._wait(lambda: "LIVE" in self._admin("/server_info"), "live")
        text = json.loads(self._admin("/listeners?format=json"))
        for status in text["listener_statuses"]:
            if status["name"] == "connect_terminate":
                self.port = status["local_address"]["socket_address"]["port_value"]

    def stop(self) -> None:
        """Stop it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)

    def _admin(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=5) as response:
                return str(response.read().decode())
        except OSError:
            return ""

    def _wait(self, ready: Any, what: str) -> None:
        deadline = time.monotonic() + 10
        while not ready():
            assert self.process is None or self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"{what}: {self.log()}"
            time.sleep(0.01)

    def _write(self, name: str, resources: list[Proto]) -> None:
        path = self.folder / name
        temporary = path.with_suffix(".new")
        version = str(time.monotonic_ns())
        temporary.write_text(json.dumps({"version_info": version, "resources": resources}))
        os.rename(temporary, path)  # Envoy looks at files when one is moved into place

    def _update(self, stats: str, name: str, resources: list[Proto]) -> None:
        before = self.stat(f"{stats}.update_success")
        rejected = self.stat(f"{stats}.update_rejected")
        self._write(name, resources)
        self._wait(
            lambda: (
                self.stat(f"{stats}.update_success") > before
                or self.stat(f"{stats}.update_rejected") > rejected
            ),
            stats,
        )
        assert self.stat(f"{stats}.update_rejected") == rejected, self.log()
        warming = "listener_manager.total_listeners_warming"
        self._wait(lambda: self.stat(warming) == 0, warming)

    def _bootstrap(self) -> Proto:
        clusters = [
            _internal_cluster("main_internal"),
            _cluster("echo", self.echo),
            _cluster("tcp", self.tcp),
            *(_cluster(n, p, h2="grpc" in n) for n, p in self.upstreams.items()),
        ]
        path = {"path": str(self.folder / "lds.json")}
        return {
            "node": {"id": "test", "cluster": "test"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            "bootstrap_extensions": [
                _filter(
                    "envoy.bootstrap.internal_listener",
                    "extensions.bootstrap.internal_listener.v3.InternalListener",
                )
            ],
            "layered_runtime": {
                "layers": [
                    {
                        "name": "static",
                        "static_layer": {"re2.max_program_size.error_level": 32768},
                    }
                ]
            },
            "static_resources": {"clusters": clusters},
            "dynamic_resources": {
                "lds_config": {"path_config_source": path, "resource_api_version": "V3"}
            },
        }

    def _outer(self) -> Proto:
        state = _filter(
            "state",
            "extensions.filters.http.set_filter_state.v3.Config",
            on_request_headers=[
                _state("envoy.filters.listener.original_dst.local_ip", ":AUTHORITY", ""),
                _state("envoy.filters.listener.original_dst.remote_ip", "X-ADDRESS", ""),
                _state("wp.peer", "X-PEER"),
            ],
        )
        route = {
            "match": {"connect_matcher": {}},
            "route": {
                "cluster": "main_internal",
                "timeout": "0s",
                "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
            },
        }
        hcm = _filter(
            "hcm",
            "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="outer",
            upgrade_configs=[{"upgrade_type": "CONNECT"}],
            http_filters=[state, _router()],
            route_config={"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]},
        )
        return {
            **_any("config.listener.v3.Listener"),
            "name": "connect_terminate",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "filter_chains": [{"filters": [hcm]}],
        }

    def _inner(self) -> Proto:
        original = _filter(
            "original_dst", "extensions.filters.listener.original_dst.v3.OriginalDst"
        )
        leaves = {}
        for port, (security, tcp) in self.chains.items():
            leaf = _chain_action(f"port-{port}")
            leaves[str(port)] = filters.admission(security, leaf) if tcp else leaf
        by_port = {
            "input": _filter(
                "port",
                "extensions.matching.common_inputs.network.v3.DestinationPortInput",
            ),
            "exact_match_map": {"map": leaves or {"1": _chain_action("none")}},
        }
        return {
            **_any("config.listener.v3.Listener"),
            "name": "main_internal",
            "internal_listener": {},
            "listener_filters": [original],
            "filter_chain_matcher": {"matcher_tree": by_port},
            "filter_chains": [self._chain(p, *c) for p, c in self.chains.items()]
            or [{"name": "none", "filters": [_tcp_proxy("tcp")]}],
        }

    def _chain(self, port: int, security: Security, tcp: bool) -> Proto:
        if tcp:
            proxy = _tcp_proxy("tcp")
            if filters.waits_for_data(security):
                proxy["typed_config"]["upstream_connect_mode"] = "ON_DOWNSTREAM_DATA"
                proxy["typed_config"]["max_early_data_bytes"] = 16384
            chain = [*filters.network_filters(security), proxy]
        else:
            path = {"path": str(self.folder / f"rds-{port}.json")}
            chain = [
                _filter(
                    "hcm",
                    "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    stat_prefix=f"in{port}",
                    http_filters=[*filters.http_filters(security), _router()],
                    rds={
                        "config_source": {"path_config_source": path, "resource_api_version": "V3"},
                        "route_config_name": f"rds-{port}",
                    },
                    access_log=[self._access_log()],
                    **filters.HCM,
                )
            ]
        return {"name": f"port-{port}", "filters": chain}

    def _access_log(self) -> Proto:
        shadow = "DYNAMIC_METADATA(envoy.filters.http.rbac:istio_dry_run_"
        text = (
            "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS%"
            " audit=%DYNAMIC_METADATA(envoy.common:access_log_hint)%"
            f" deny=%{shadow}deny_shadow_effective_policy_id)%"
            f" allow=%{shadow}allow_shadow_engine_result)%\n"
        )
        return _filter(
            "log",
            "extensions.access_loggers.file.v3.FileAccessLog",
            path=str(self.folder / "access.log"),
            log_format={"text_format_source": {"inline_string": text}},
        )

    def _routes(self, port: int, security: Security) -> Proto:
        return {
            **_any("config.route.v3.RouteConfiguration"),
            "name": f"rds-{port}",
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "echo"}}],
                }
            ],
            "typed_per_filter_config": filters.route_level(security),
        }


def _state(key: str, header: str, factory: str = "envoy.string") -> Proto:
    return {
        "object_key": key,
        **({"factory_key": factory} if factory else {}),
        "shared_with_upstream": "ONCE",
        "format_string": {"text_format_source": {"inline_string": f"%REQ({header})%"}},
    }


def _chain_action(name: str) -> Proto:
    value = {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": name}
    return {"action": {"name": "chain", "typed_config": value}}


def _router() -> Proto:
    return _filter("router", "extensions.filters.http.router.v3.Router")


def _tcp_proxy(cluster: str) -> Proto:
    return _filter(
        "tcp",
        "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="tcp",
        cluster=cluster,
    )


def _cluster(name: str, port: int, h2: bool = False) -> Proto:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    out: Proto = {"name": name, "type": "STATIC", "connect_timeout": "1s"}
    out["load_assignment"] = _assignment(name, address)
    if h2:
        protocol = "extensions.upstreams.http.v3.HttpProtocolOptions"
        out["typed_extension_protocol_options"] = {
            "envoy." + protocol: _any(protocol, explicit_http_config={"http2_protocol_options": {}})
        }
    return out


def _internal_cluster(name: str) -> Proto:
    socket_type = "extensions.transport_sockets.raw_buffer.v3.RawBuffer"
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": _assignment(
            name, {"envoy_internal_address": {"server_listener_name": name}}
        ),
        "transport_socket": _filter(
            "internal_upstream",
            "extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
            transport_socket=_filter("raw", socket_type),
        ),
    }


def _assignment(name: str, address: Proto) -> Proto:
    return {
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
    }


@contextmanager
def running(folder: Path, upstreams: Mapping[str, int] | None = None) -> Iterator[Rig]:
    """Run the applications and Envoy."""
    with serving(Echo) as echo, greeting() as tcp:
        rig = Rig(folder, echo, tcp, upstreams or {})
        try:
            rig.start()
            yield rig
        finally:
            rig.stop()
