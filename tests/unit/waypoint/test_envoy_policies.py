"""TrafficPolicy as the real Envoy follows it: one cluster, and applications behind it."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from security_apps import serving

from waypoint.config.envoy.pack import pack
from waypoint.config.envoy.policies import cluster_fields, hash_policy
from waypoint.config.traffic import (
    BackendTls,
    ConsistentHash,
    Outliers,
    Pool,
    RetryBudget,
    TrafficPolicy,
)

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
_T = "type.googleapis.com/envoy.extensions"
_INTERNAL = f"{_T}.bootstrap.internal_listener.v3.InternalListener"


# ---- a proxy with one cluster ----------------------------------------------------------------


@dataclass
class Proxy:
    """A running Envoy that sends everything to one cluster."""

    port: int
    admin: int

    def get(self, path: str = "/", **headers: str) -> tuple[int, str]:
        """Send a request; returns status and body."""
        named = {k.replace("_", "-"): v for k, v in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=named)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def stat(self, name: str) -> int:
        """Read a counter or gauge of the cluster."""
        url = f"http://127.0.0.1:{self.admin}/stats?filter=^cluster.c.{name}$"
        with urllib.request.urlopen(url, timeout=5) as response:
            text = response.read().decode()
        return int(text.split(": ")[1]) if text else 0


def _bootstrap(policy: TrafficPolicy, ports: list[int], protocol: int = 0, retries: int = 0) -> Any:
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": p}}}}
        for p in ports
    ]
    cluster = {
        "name": "c",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": endpoints}]},
        **cluster_fields(policy, protocol),
    }
    pack(CLUSTER, cluster)
    route: Any = {"cluster": "c", "hash_policy": hash_policy(policy)}
    if retries:
        route["retry_policy"] = {"retry_on": "5xx", "num_retries": retries}
    manager = {
        "@type": f"{_T}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "p",
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{_T}.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "v",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": route}],
                }
            ]
        },
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    listener = {
        "name": "l",
        "address": address,
        "filter_chains": [{"filters": [{"name": "h", "typed_config": manager}]}],
    }
    return {
        "admin": {"address": address},
        "bootstrap_extensions": [{"name": "i", "typed_config": {"@type": _INTERNAL}}],
        "static_resources": {"clusters": [cluster], "listeners": [listener]},
    }


@contextmanager
def proxy(folder: Path, policy: TrafficPolicy, ports: list[int], **fields: Any) -> Iterator[Proxy]:
    """Run Envoy with a cluster of this policy."""
    config, log = folder / "envoy.json", folder / "envoy.log"
    config.write_text(json.dumps(_bootstrap(policy, ports, **fields)))
    admin = folder / "admin"
    admin.unlink(missing_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("envoy")), "-c", str(config)),
                *("--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"),
                *("--admin-address-path", str(admin)),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 10
        port = 0
        while not port:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
            if admin.exists() and admin.read_text():
                port = _listening(int(admin.read_text().rpartition(":")[2]))
        yield Proxy(port, int(admin.read_text().rpartition(":")[2]))
    finally:
        process.terminate()
        process.wait(10)


def _listening(admin: int) -> int:
    try:
        url = f"http://127.0.0.1:{admin}/listeners?format=json"
        with urllib.request.urlopen(url, timeout=5) as response:
            (found,) = json.load(response)["listener_statuses"]
            return int(found["local_address"]["socket_address"]["port_value"])
    except (OSError, ValueError, KeyError):
        return 0


def app(name: str, fails: set[str] | None = None, pause: float = 0.0) -> type:
    """Make an application that says its name, or 503 while it is in `fails`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(pause)
            body = name.encode()
            self.send_response(503 if fails and name in fails else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def apps(*handlers: type) -> Iterator[list[int]]:
    """Serve applications; yields their ports."""
    with ExitStack() as stack:
        yield [stack.enter_context(serving(handler)) for handler in handlers]


# ---- whatever is written is taken ------------------------------------------------------------

POLICIES = {
    "nothing": TrafficPolicy(),
    "round robin, warming up": TrafficPolicy(balancing="round_robin", warmup=30.0),
    "least request, warming up": TrafficPolicy(warmup=0.5),
    "random": TrafficPolicy(balancing="random"),
    "passthrough": TrafficPolicy(balancing="passthrough"),
    "ring": TrafficPolicy(hash=ConsistentHash(cookie="c", cookie_ttl=0.0, minimum_ring_size=2048)),
    "huge ring": TrafficPolicy(hash=ConsistentHash(query="q", minimum_ring_size=8 << 20)),
    "maglev": TrafficPolicy(hash=ConsistentHash(source_ip=True, maglev=True, table_size=65537)),
    "pool": TrafficPolicy(
        pool=Pool(
            max_connections=1,
            connect_timeout=0.25,
            tcp_keepalive=(3, 7200.0, None),
            idle_timeout=1.5,
            max_connection_duration=60.0,
            max_pending_requests=1,
            max_requests=1,
            max_requests_per_connection=1,
            max_retries=0,
            upgrade_to_h2=True,
            max_concurrent_streams=10,
        ),
        budget=RetryBudget(33.5, 1),
    ),
    "outliers": TrafficPolicy(
        outliers=Outliers(
            consecutive_5xx=0,
            consecutive_gateway_errors=3,
            consecutive_local_failures=2,
            split_local_errors=True,
            interval=0.01,
            base_ejection=900.0,
            max_ejection_percent=100,
            min_health_percent=50,
        )
    ),
    "TLS by the system's roots": TrafficPolicy(tls=BackendTls("simple")),
    "TLS without looking": TrafficPolicy(tls=BackendTls("simple", sni="a.example", verify=False)),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_envoy_takes_every_field(tmp_path: Path, name: str, protocol: int) -> None:
    """Its own validation reads the cluster."""
    config = tmp_path / "envoy.json"
    config.write_text(json.dumps(_bootstrap(POLICIES[name], [1], protocol)))
    found = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("envoy")), "--mode", "validate"),
            *("-c", str(config), "--disable-hot-restart"),
        ],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr


def test_nothing_is_limited_that_nobody_limits() -> None:
    """Envoy's 1024 connections and 3 retries would be news to a service that had no waypoint."""
    (limits,) = cluster_fields(TrafficPolicy())["circuit_breakers"]["thresholds"]
    assert set(limits.values()) == {2**32 - 1}
    assert len(limits) == 4


# ---- what it does ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "request_"),
    [
        (ConsistentHash(header="x-user"), lambda u: {"x_user": u}),
        (ConsistentHash(header="x-user", maglev=True), lambda u: {"x_user": u}),
        (ConsistentHash(query="user"), lambda u: {"path": f"/?user={u}"}),
        (ConsistentHash(cookie="user"), lambda u: {"cookie": f"user={u}"}),
    ],
)
def test_who_is_alike_gets_the_same_endpoint(
    tmp_path: Path, by: ConsistentHash, request_: Any
) -> None:
    """And who is not is spread."""
    with (
        apps(*map(app, "abc")) as ports,
        proxy(tmp_path, TrafficPolicy(hash=by), ports) as envoy,
    ):
        first = {user: envoy.get(**request_(user))[1] for user in map(str, range(30))}
        assert set(first.values()) == {"a", "b", "c"}
        again = {user: envoy.get(**request_(user))[1] for user in first}
        assert again == first


def test_by_source_address_all_of_one_caller_go_to_one(tmp_path: Path) -> None:
    """The caller's address is what is hashed."""
    policy = TrafficPolicy(hash=ConsistentHash(source_ip=True))
    with apps(*map(app, "abc")) as ports, proxy(tmp_path, policy, ports) as envoy:
        assert len({envoy.get()[1] for _ in range(20)}) == 1


def test_round_robin_takes_turns(tmp_path: Path) -> None:
    """Each gets its share exactly."""
    policy = TrafficPolicy(balancing="round_robin")
    with apps(*map(app, "abc")) as ports, proxy(tmp_path, policy, ports) as envoy:
        assert Counter(envoy.get()[1] for _ in range(30)) == {"a": 10, "b": 10, "c": 10}


def test_beyond_its_limits_requests_are_turned_away(tmp_path: Path) -> None:
    """503 at once instead of a queue; the next one after that is served."""
    policy = TrafficPolicy(pool=Pool(max_connections=1, max_pending_requests=1))
    with (
        apps(app("slow", pause=0.3)) as ports,
        proxy(tmp_path, policy, ports) as envoy,
        ThreadPoolExecutor(6) as pool,
    ):
        found = Counter(status for status, _ in pool.map(lambda _: envoy.get(), range(6)))
        assert found == {200: 2, 503: 4}
        assert envoy.stat("upstream_rq_pending_overflow") == 4
        assert envoy.get()[0] == 200


def test_an_endpoint_that_fails_is_left_out_and_comes_back(tmp_path: Path) -> None:
    """The circuit breaker opens after two failures and closes after the ejection."""
    fails = {"bad"}
    policy = TrafficPolicy(
        balancing="round_robin",
        outliers=Outliers(consecutive_5xx=2, interval=0.05, base_ejection=1.0),
    )
    with (
        apps(app("good"), app("bad", fails)) as ports,
        proxy(tmp_path, policy, ports) as envoy,
    ):
        statuses = [envoy.get()[0] for _ in range(20)]
        assert statuses.count(503) == 2
        assert envoy.stat("outlier_detection.ejections_enforced_total") == 1
        fails.clear()
        deadline = time.monotonic() + 5
        while {envoy.get()[1] for _ in range(4)} != {"good", "bad"}:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_only_endpoint_can_be_left_out(tmp_path: Path) -> None:
    """Then nobody is asked: the circuit is open."""
    outliers = Outliers(consecutive_5xx=2, interval=0.05, base_ejection=30.0)
    with (
        apps(app("bad", {"bad"})) as ports,
        proxy(tmp_path, TrafficPolicy(outliers=outliers), ports) as envoy,
    ):
        found = [envoy.get() for _ in range(5)]
        assert [body for _, body in found][:2] == ["bad", "bad"]
        assert found[-1] == (503, "no healthy upstream")


def test_retries_stay_within_their_budget(tmp_path: Path) -> None:
    """With all of the service failing, retries do not multiply its load."""
    policy = TrafficPolicy(budget=RetryBudget(percent=0.0, minimum=1))
    with (
        apps(app("bad", {"bad"}, pause=0.2)) as ports,
        proxy(tmp_path, policy, ports, retries=3) as envoy,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda _: envoy.get(), range(8)))
        assert envoy.stat("upstream_rq_retry") <= 4
        assert envoy.stat("upstream_rq_retry_overflow") >= 7


# ---- TLS of the application's own ------------------------------------------------------------


@dataclass
class Pair:
    """A certificate and its key, PEM."""

    certificate: str
    key: str


def _pair(name: str, issuer: tuple[Pair, str] | None = None) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)

    def named(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

    names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer[1] if issuer else name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    signer: Any = key
    if issuer is not None:
        signer = serialization.load_pem_private_key(issuer[0].key.encode(), None)
    pem = serialization.Encoding.PEM
    return Pair(
        builder.sign(signer, hashes.SHA256()).public_bytes(pem).decode(),
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


@contextmanager
def tls_app(folder: Path, pair: Pair, clients: Pair | None = None) -> Iterator[int]:
    """Serve HTTPS; with `clients`, only to certificates that it signed."""
    path = folder / "server.pem"
    path.write_text(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=clients.certificate)

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *args: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), app("tls"))
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_application_has_to_be_who_it_is_meant_to_be(tmp_path: Path) -> None:
    """By its authority and by its name: those that are written, or that of the SNI."""
    root = _pair("root")
    leaf = _pair("app.example", (root, "root"))
    other = _pair("other root")
    cases = [
        (BackendTls("simple", sni="app.example", ca=root.certificate), 200),
        (BackendTls("simple", sni="other.example", ca=root.certificate), 503),
        (
            BackendTls(
                "simple",
                sni="other.example",
                subject_names=("x.example", "app.example"),
                ca=root.certificate,
            ),
            200,
        ),
        (BackendTls("simple", sni="app.example", ca=other.certificate), 503),
        (BackendTls("simple", sni="app.example"), 503),
        (BackendTls("simple", sni="x", verify=False), 200),
        (BackendTls("simple", ca=root.certificate), 503),  # the host of the request: 127.0.0.1
    ]
    with tls_app(tmp_path, leaf) as port:
        for tls, status in cases:
            with proxy(tmp_path, TrafficPolicy(tls=tls), [port]) as envoy:
                assert envoy.get(host="localhost")[0] == status, tls
                if not tls.sni:
                    assert envoy.get(host="app.example")[0] == 200


def test_the_application_may_want_a_certificate(tmp_path: Path) -> None:
    """Mutual TLS shows ours; without it nothing is answered."""
    root = _pair("root")
    leaf, ours = _pair("app.example", (root, "root")), _pair("us", (root, "root"))
    simple = BackendTls("simple", sni="app.example", ca=root.certificate)
    mutual = BackendTls(
        "mutual",
        sni="app.example",
        ca=root.certificate,
        certificate=ours.certificate,
        secret=ours.key,
    )
    with tls_app(tmp_path, leaf, clients=root) as port:
        for tls, status in ((mutual, 200), (simple, 503)):
            with proxy(tmp_path, TrafficPolicy(tls=tls), [port]) as envoy:
                assert envoy.get()[0] == status
