"""Keys of token issuers: when they are fetched, how, and from where they are not."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cp_support import Tokens, make_plane, policy
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from control_plane.waypoints import jwks as fetching_shell
from control_plane.waypoints.jwks import JwksFetcher, fetch
from control_plane.waypoints.providers import read_config
from control_plane.waypoints.rules import Rules
from mesh.manifest import Key
from waypoint.config.security import Target, read_providers
from waypoint.config.security.fetching import REFRESH, Fetching
from waypoint.config.security.jwks import Jwks, read_jwks

_KEY = ec.generate_private_key(ec.SECP256R1())
GOOD = json.dumps({"keys": [json.loads(jwt.algorithms.ECAlgorithm.to_jwk(_KEY.public_key()))]})
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = json.dumps(
    {"keys": [json.loads(jwt.algorithms.ECAlgorithm.to_jwk(OTHER_KEY.public_key()))]}
)


# ---- when ------------------------------------------------------------------------------------


def test_documents_are_fetched_at_once_and_again_later() -> None:
    """Each when it is due, no more than asked for at once, none twice at a time."""
    f = Fetching()
    f.want(["a", "b", "c"], 0.0)
    assert f.begin(0.0, 2) == ["a", "b"]
    assert f.begin(0.0, 2) == ["c"]
    assert f.next_due() is None
    assert f.end("a", Jwks(GOOD), 1.0)
    assert f.known() == {"a": Jwks(GOOD)}
    assert f.next_due() == 1.0 + REFRESH
    assert f.begin(REFRESH, 9) == []
    assert f.begin(1.0 + REFRESH, 9) == ["a"]
    assert not f.end("a", Jwks(GOOD), 2000.0)
    assert f.begin(4000.0, 9) == ["a"]
    assert f.end("a", Jwks(OTHER), 4000.0)


def test_failures_are_tried_again_ever_less_often() -> None:
    """From a second to a minute; success begins anew."""
    f = Fetching()
    f.want(["a"], 0.0)
    now, pauses = 0.0, []
    for _ in range(9):
        assert f.begin(now, 1) == ["a"]
        f.end("a", Jwks(error="down"), now)
        due = f.next_due()
        assert due is not None
        pauses.append(due - now)
        now = due
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert f.known() == {"a": Jwks(error="down")}
    f.begin(now, 1)
    assert f.end("a", Jwks(GOOD), now)
    f.begin(now + REFRESH, 1)
    f.end("a", Jwks(error="down"), now + REFRESH)
    assert f.next_due() == now + REFRESH + 1


def test_good_keys_outlive_failures() -> None:
    """An issuer that is down, or answers rubbish, does not lock everybody out."""
    f = Fetching()
    f.want(["a"], 0.0)
    f.begin(0.0, 1)
    f.end("a", Jwks(GOOD), 0.0)
    for bad in (Jwks(error="down"), Jwks("<html>"), Jwks('{"keys":[]}')):
        f.begin(1e6, 1)
        assert not f.end("a", bad, 0.0)
        assert f.known() == {"a": Jwks(GOOD)}
    f.want([], 0.0)
    assert f.known() == {}
    assert not f.end("a", Jwks(GOOD), 0.0)
    f.want(["a"], 5.0)
    assert f.known() == {}
    f.begin(5.0, 1)
    assert f.end("a", Jwks("<html>"), 5.0)
    assert f.known() == {"a": Jwks(error="not JSON")}


# ---- how -------------------------------------------------------------------------------------


class _Issuer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answers: dict[str, Any] = {
            "/keys?x=1": (200, GOOD.encode()),
            "/huge": (200, b"x" * (2 << 20)),
            "/latin": (200, b"\xff"),
            "/elsewhere": (302, b""),
            "/host": (200, self.headers["host"].encode()),
        }
        status, body = answers.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("location", "/keys")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names resolve to this machine, which is otherwise refused."""
    monkeypatch.setattr(fetching_shell, "_addresses", lambda host, port: ["127.0.0.1"])


def _serve(context: ssl.SSLContext | None = None) -> tuple[ThreadingHTTPServer, threading.Thread]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Issuer)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    return server, thread


@pytest.fixture
def issuer(here: None) -> Iterator[int]:
    server, thread = _serve()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_document_is_fetched(issuer: int) -> None:
    """With its query, and the name that was written as Host."""
    base = f"http://issuer.example:{issuer}"
    assert fetch(f"{base}/keys?x=1") == Jwks(GOOD)
    assert fetch(f"{base}/host").text == f"issuer.example:{issuer}"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/nothing", "answered with status 404"),
        ("/elsewhere", "answered with status 302"),
        ("/huge", "larger than 1024 KiB"),
        ("/latin", "not UTF-8 text"),
    ],
)
def test_what_is_no_document_is_said(issuer: int, path: str, why: str) -> None:
    """Redirects are not followed: they would lead past the look at the address."""
    assert fetch(f"http://issuer.example:{issuer}{path}") == Jwks(error=why)


def test_who_does_not_answer(here: None) -> None:
    """One short reason."""
    assert fetch("http://issuer.example:1/keys").error.startswith("no answer (")
    assert "not a URI" in fetch("http://issuer.example:99999/keys").error
    assert "not a URI" in fetch("http://[::1/keys").error


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "127.8.8.8", "[::1]", "169.254.169.254", "[fe80::1]", "0.0.0.0",
     "[::ffff:127.0.0.1]", "[::ffff:169.254.169.254]", "224.0.0.1"],
)  # fmt: skip
def test_this_machine_and_its_neighbours_are_not_asked(host: str) -> None:
    """Whoever writes a policy must not read the metadata of the control plane's node."""
    assert fetch(f"http://{host}/latest/meta-data").error.endswith("not fetched from there")


def test_names_that_do_not_exist() -> None:
    """Said as such."""
    assert fetch("https://no.such.name.invalid/keys").error == "no.such.name.invalid is not known"


def _certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.2"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "cert.pem"
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    path.write_bytes(
        pem
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return path, context


def test_https_proves_the_name_that_was_written(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the address, and not just any certificate."""
    path, context = _certificate(tmp_path, "issuer.example")
    server, thread = _serve(context)
    try:
        url = f"https://issuer.example:{server.server_port}/keys?x=1"
        assert fetch(url).error.startswith("TLS: ")
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert fetch(url) == Jwks(GOOD)
        other = url.replace("issuer.example", "other.example")
        assert fetch(other).error.startswith("TLS: ")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# ---- the loop --------------------------------------------------------------------------------


def test_the_fetcher_tells_of_changes() -> None:
    """What is wanted is fetched, a slow issuer holds nobody up, what failed comes later."""
    slow = threading.Event()
    tries: list[str] = []

    def fake(uri: str) -> Jwks:
        tries.append(uri)
        if uri == "slow":
            slow.wait(10)
        if uri == "flaky" and tries.count(uri) == 1:
            return Jwks(error="down")
        return Jwks(GOOD)

    async def scenario() -> None:
        told: list[Mapping[str, Jwks]] = []
        news = asyncio.Event()

        async def changed(known: Mapping[str, Jwks]) -> None:
            told.append(known)
            news.set()

        async def until(names: set[str]) -> None:
            while not told or {n for n, d in told[-1].items() if d.text} != names:
                news.clear()
                await news.wait()

        fetcher = JwksFetcher(changed, fake)
        running = asyncio.get_running_loop().create_task(fetcher.run())
        try:
            fetcher.want(["slow", "flaky", "a", "b", "c", "d", "e"])
            start = time.monotonic()
            await asyncio.wait_for(until({"flaky", "a", "b", "c", "d", "e"}), 5)
            assert 0.9 < time.monotonic() - start < 5
            assert Jwks(error="down") in [known.get("flaky") for known in told]
            slow.set()
            await asyncio.wait_for(until({"slow", "flaky", "a", "b", "c", "d", "e"}), 5)
            assert sorted(tries) == ["a", "b", "c", "d", "e", "flaky", "flaky", "slow"]
        finally:
            slow.set()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())


# ---- extension providers ---------------------------------------------------------------------

MESH = """
accessLogFile: /dev/stdout
extensionProviders:
- name: ask
  envoyExtAuthzHttp: {service: auth/ask.auth.svc.cluster.local, port: 8000}
- name: zipkin
  zipkin: {service: zipkin.istio-system.svc.cluster.local, port: 9411}
"""


def test_providers_are_where_istio_has_them() -> None:
    """ConfigMap istio, key mesh; the rest of it is somebody else's."""
    config, problem = read_config({"data": {"mesh": MESH}})
    providers, problems = read_providers(config["extensionProviders"])
    assert (problem, sorted(providers), problems) == ("", ["ask"], [])
    assert read_config(None) == read_config({}) == read_config({"data": {}}) == ({}, "")
    assert read_config({"data": {"mesh": ""}}) == ({}, "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "ConfigMap istio, data.mesh: not YAML"),
        ("[1]", "ConfigMap istio, data.mesh: must be a mapping"),
        ("extensionProviders: {}", "data.mesh: extensionProviders: must be a list"),
        ("accessLogFile: /tmp/x", "data.mesh: accessLogFile: '/tmp/x': waypoints write to"),
        (MESH.replace("8000", "0"), "extensionProviders[0].envoyExtAuthzHttp.port: 0"),
    ],
)
def test_a_mesh_configuration_that_is_wrong(
    text: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The problem is named, and nothing is taken from what has it."""
    rules = Rules("istio-system", "cluster.local")
    configmap = {"data": {"mesh": text}}
    rules.take(Key("ConfigMap", "istio-system", "istio"), configmap)
    assert says in caplog.text
    assert bool(rules.telemetry.logs(("a", "b"))) == ("/dev/stdout" in text)


# ---- in the control plane --------------------------------------------------------------------


def test_what_is_fetched_and_configured_reaches_the_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys come after the policy that names them, providers before or after; both count at once."""
    monkeypatch.setattr(fetching_shell, "fetch", lambda uri: Jwks(GOOD))
    objects = tmp_path / "objects"
    objects.mkdir()
    refs = [{"group": "", "kind": "Service", "name": "cart"}]
    rules = [{"issuer": "https://a", "jwksUri": "https://a/keys"}]
    tokens = policy("tokens", targetRefs=refs, jwtRules=rules)
    asking = policy(
        "asking", targetRefs=refs, action="CUSTOM", provider={"name": "ask"}, rules=[{}]
    )
    cart = Target("Service", "shop", "cart")

    async def scenario() -> None:
        plane = make_plane(tmp_path, Tokens(tmp_path))
        await plane.start()
        try:
            index = plane.waypoints.rules.security

            async def until(done: Callable[[], bool]) -> None:
                async with asyncio.timeout(5):
                    while not done():
                        await plane.engine.refresh()
                        await asyncio.sleep(0.02)

            (objects / "a.json").write_text(
                json.dumps({**tokens, "kind": "RequestAuthentication"})
                + "\n---\n"
                + json.dumps(asking)
            )
            await until(lambda: any(r.keys == read_jwks(GOOD) for r in index.security(cart).jwt))
            assert index.security(cart).providers == ()
            mesh = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "istio", "namespace": "istio-system"},
                "data": {"mesh": MESH},
            }
            other = {
                **mesh,
                "metadata": {"name": "istio", "namespace": "shop"},
                "data": {"mesh": ""},
            }
            (objects / "b.json").write_text(json.dumps(mesh) + "\n---\n" + json.dumps(other))
            await until(lambda: index.security(cart).provider("ask") is not None)
            (objects / "b.json").unlink()
            await until(lambda: index.security(cart).provider("ask") is None)
        finally:
            await plane.stop()

    asyncio.run(scenario())
