"""Who and what is refused, how the refused side sees it, and that it is reported."""

from __future__ import annotations

import socket
import ssl
import struct
import tempfile
import time

import pytest
from relay_rig import (
    HBONE,
    ONE_FORM,
    OUTBOUND,
    Authority,
    Mesh,
    endpoint,
    is_reset,
    listen,
    refuses,
    spiffe,
)

from mesh.model import Action, Authorization, Clause, Match, Rule, Scope, StringMatch
from mesh.wire import frames as f
from mesh.wire import hbone
from mesh.wire.headers import decode_literals
from ztunnel import ipc


def deny(principal: str, dry_run: bool = False) -> Authorization:
    match = Match(principals=(StringMatch("exact", principal),))
    return Authorization(
        name="deny",
        namespace="test",
        scope=Scope.NAMESPACE,
        action=Action.DENY,
        rules=(Rule((Clause((match,)),)),),
        dry_run=dry_run,
    )


A_PRINCIPAL = "cluster.local/ns/test/sa/a"


def intrude(mesh: Mesh, certificate: ipc.Certificate | None, request: bytes = b"") -> bytes:
    """Dial b's 15008 as a program of one's own; returns what comes back, raises SSLError."""
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ctx.check_hostname = False
    ctx.load_verify_locations(cadata=mesh.ca.pem.decode())
    ctx.set_alpn_protocols(["h2"])
    if certificate is not None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(certificate.chain_pem + certificate.key_pem)
            file.flush()
            ctx.load_cert_chain(file.name)
    with (
        socket.create_connection(mesh.hbone.getsockname(), 5) as raw,
        ctx.wrap_socket(raw) as tls,
    ):
        tls.sendall(f.PREFACE + f.frame(f.SETTINGS, 0, 0, b"") + request)
        got = b""
        while True:
            part = tls.recv(65536)
            got += part
            if not part or frames_of(got).get(f.HEADERS) or frames_of(got).get(f.GOAWAY):
                return got


def frames_of(data: bytes) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    while len(data) >= 9:
        size = int.from_bytes(data[:3], "big")
        if len(data) < 9 + size:
            break
        found.setdefault(data[3], []).append(data[9 : 9 + size])
        data = data[9 + size :]
    return found


def connect_to(address: tuple[str, int]) -> bytes:
    block = hbone.request_block(
        hbone.request_prefix(hbone.join(*address), b""), ("127.0.0.1", 5), "", bytes(24)
    )
    return f.frame(f.HEADERS, f.END_HEADERS, 1, block)


def status_of(answer: bytes) -> int:
    headers = decode_literals(frames_of(answer)[f.HEADERS][0])
    assert headers is not None
    return hbone.status_untrusted(headers)


def test_a_stranger_with_a_good_certificate_is_served(mesh: Mesh) -> None:
    """The yardstick of the refusals below: the same program with a right certificate gets 200."""
    answer = intrude(mesh, mesh.ca.issue(spiffe("c")), connect_to(mesh.app.address))
    assert status_of(answer) == 200


CERTIFICATES = {
    "none": (lambda mesh: None, "peer did not return a certificate"),
    "expired": (lambda mesh: mesh.ca.issue(spiffe("c"), -60), "expired"),
    "foreign root": (lambda mesh: Authority("other").issue(spiffe("c")), "local issuer"),
    "foreign trust domain": (
        lambda mesh: mesh.ca.issue(spiffe("c", "elsewhere.test")),
        "trust domain",
    ),
    "no identity": (lambda mesh: mesh.ca.issue("https://example.org/"), "not a workload identity"),
}


@pytest.mark.parametrize("which", CERTIFICATES)
def test_a_wrong_client_certificate_is_refused_and_reported(mesh: Mesh, which: str) -> None:
    """No answer to a CONNECT, a Closed event with flag and reason."""
    make, reason = CERTIFICATES[which]
    try:
        answer = intrude(mesh, make(mesh), connect_to(mesh.app.address))
    except (ssl.SSLError, OSError):
        answer = b""
    assert f.HEADERS not in frames_of(answer)
    closed = mesh.worker.wait(lambda: mesh.worker.closed("inbound"))[0]
    assert closed.flag == "TLS_FAILURE"
    assert reason in closed.error
    assert not closed.opened
    assert mesh.app.accepted == 0


OTHERS = {
    "another pod": lambda mesh: ("127.0.0.9", mesh.app.address[1]),
    "15001": lambda mesh: ("127.0.0.3", 15001),
    "15006": lambda mesh: ("127.0.0.3", 15006),
    "15008": lambda mesh: ("127.0.0.3", 15008),
}


@pytest.mark.parametrize("which", OTHERS)
def test_a_connect_to_what_is_not_the_pods_is_refused(mesh: Mesh, which: str) -> None:
    """400, and the refusal says who asked for what."""
    target = OTHERS[which](mesh)
    answer = intrude(mesh, mesh.ca.issue(spiffe("c")), connect_to(target))
    assert status_of(answer) == 400
    closed = mesh.worker.wait(lambda: mesh.worker.closed("inbound"))[0]
    assert hbone.join(*target) in closed.error
    assert closed.conn.source.identity == spiffe("c")


def test_a_request_that_is_no_connect_gets_400(mesh: Mesh) -> None:
    """A GET on the HBONE port."""
    block = b"\x82\x84\x86" + b"\x01" + b"\x09a.test:80"
    request = f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, block)
    assert status_of(intrude(mesh, mesh.ca.issue(spiffe("c")), request)) == 400
    mesh.worker.wait(lambda: mesh.worker.closed("inbound"))


def test_a_protocol_error_is_answered_by_goaway_and_harms_nobody_else(mesh: Mesh) -> None:
    """The offender's connection ends with the code; an honest tunnel to the same pod goes on."""
    with mesh.connect() as sock:
        sock.sendall(b"1")
        assert sock.recv(1) == b"1"
        answer = intrude(mesh, mesh.ca.issue(spiffe("c")), f.frame(f.PING, 0, 0, bytes(3)))
        goaway = frames_of(answer)[f.GOAWAY][0]
        assert struct.unpack("!LL", goaway[:8]) == (0, f.FRAME_SIZE_ERROR)
        sock.sendall(b"2")
        assert sock.recv(1) == b"2"


def test_a_wrong_server_identity_is_refused(mesh: Mesh) -> None:
    """The client's side checks whom it reached; the application is reset and told why."""
    mesh.lead((mesh.to_b(identity=spiffe("somebody-else")),))
    assert mesh.is_refused(b"secret")
    closed = mesh.worker.wait(mesh.worker.closed)[0]
    assert closed.flag == "TLS_FAILURE"
    assert spiffe("somebody-else") in closed.error
    assert mesh.app.accepted == 0


def test_a_server_of_another_root_is_refused(mesh: Mesh) -> None:
    """A server certificate that chains to nothing we trust."""
    other = Authority("other")
    mesh.worker.send(other.issue(spiffe("b")))
    mesh.worker.sync()
    assert mesh.is_refused()
    closed = mesh.worker.wait(mesh.worker.closed)[0]
    assert closed.flag == "TLS_FAILURE"


def test_policy_denies_with_401_and_a_reset(mesh: Mesh) -> None:
    """The server side answers 401 and names the policy; the client's application sees a reset."""
    mesh.worker.send(ipc.Policies("b", (deny(A_PRINCIPAL),)))
    mesh.worker.sync()
    assert mesh.is_refused(b"x")
    into = mesh.worker.wait(lambda: mesh.worker.closed("inbound"))[0]
    assert into.flag == "DENY"
    assert "test/deny" in into.error
    out = mesh.worker.wait(mesh.worker.closed)[0]
    assert "401" in out.error
    assert mesh.app.accepted == 0


def test_policy_denies_plaintext(mesh: Mesh) -> None:
    """STRICT mTLS, as istiod writes it: whoever proves no identity is refused, others are not."""
    strict = Match(not_principals=(StringMatch("presence", ""),))
    policy = Authorization(
        name="istio_converted_static_strict",
        namespace="istio-system",
        scope=Scope.WORKLOAD_SELECTOR,
        action=Action.DENY,
        rules=(Rule((Clause((strict,)),)),),
    )
    mesh.worker.send(ipc.Policies("b", (policy,)))
    mesh.worker.sync()
    with mesh.connect() as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    assert refuses(mesh.plain)
    closed = mesh.worker.wait(
        lambda: [c for c in mesh.worker.closed("inbound") if not c.conn.secure]
    )[0]
    assert closed.flag == "DENY"


def test_a_policy_change_cuts_what_it_forbids_and_only_that(mesh: Mesh) -> None:
    """Live connections are judged again at once: the tunnelled one is cut, the plain one stays."""
    with mesh.connect() as a, socket.create_connection(mesh.plain.getsockname(), 5) as plain:
        for sock in (a, plain):
            sock.settimeout(5)
            sock.sendall(b"1")
            assert sock.recv(1) == b"1"
        start = time.monotonic()
        mesh.worker.send(ipc.Policies("b", (deny(A_PRINCIPAL),)))
        assert is_reset(a)
        assert time.monotonic() - start < 1
        plain.sendall(b"2")
        assert plain.recv(1) == b"2"
    cut = mesh.worker.wait(lambda: [c for c in mesh.worker.closed("inbound") if c.conn.secure])[0]
    assert (cut.flag, cut.error) == ("DENY", "connection closed due to policy change")
    assert cut.opened


def test_a_dry_run_policy_refuses_nothing_and_says_so(mesh: Mesh) -> None:
    """The connection passes, the policy is named in a DryRun event."""
    mesh.worker.send(ipc.Policies("b", (deny(A_PRINCIPAL, dry_run=True),)))
    mesh.worker.sync()
    with mesh.connect() as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    dry = mesh.worker.wait(lambda: [e for e in mesh.worker.events if isinstance(e, ipc.DryRun)])
    assert dry[0].policy == "test/deny"


def test_a_refused_application_is_seen_as_a_reset_at_once(mesh: Mesh) -> None:
    """Nothing listens there: 503 between the nodes, a reset for the client, errors on both."""
    with listen("127.0.0.3") as closed_port:
        address = closed_port.getsockname()
    mesh.lead((mesh.to_b(authority=address),))
    start = time.monotonic()
    assert mesh.is_refused()
    assert time.monotonic() - start < 1
    assert "refused" in mesh.worker.wait(lambda: mesh.worker.closed("inbound"))[0].error
    assert "503" in mesh.worker.wait(mesh.worker.closed)[0].error


def test_another_endpoint_is_tried_once_with_the_same_bytes(mesh: Mesh) -> None:
    """A service with a dead endpoint: bytes that were sent along are sent again, and arrive."""
    with listen("127.0.0.3") as gone:
        dead = gone.getsockname()
    bad = endpoint(dead, mesh.hbone.getsockname(), (spiffe("b"),), weight=1_000_000)
    unreachable = endpoint(mesh.app.address, dead, (spiffe("b"),), weight=1_000_000)
    for first in (bad, unreachable):
        mesh.lead((first, mesh.to_b()))
        for _ in range(3):
            with mesh.connect() as sock:
                sock.sendall(b"once only")
                assert sock.recv(100) == b"once only"


def test_no_endpoint_and_errors_of_the_route_are_reported(mesh: Mesh) -> None:
    """The control process's reason reaches the log, the client sees a reset."""
    mesh.lead((), error="no healthy upstream", flag="-")
    assert mesh.is_refused()
    assert mesh.worker.wait(mesh.worker.closed)[0].error == "no healthy upstream"


def test_an_unreachable_tunnel_is_a_reset_with_a_reason(mesh: Mesh) -> None:
    """Nothing listens on the destination's 15008."""
    with listen("127.0.0.3") as gone:
        dead = gone.getsockname()
    mesh.lead((endpoint(mesh.app.address, dead, (spiffe("b"),)),))
    assert mesh.is_refused()
    closed = mesh.worker.wait(mesh.worker.closed)[0]
    assert closed.flag == "CONNECT"
    assert "refused" in closed.error


@ONE_FORM
def test_a_route_that_never_comes_is_given_up_after_five_seconds(mesh: Mesh) -> None:
    """The control process is silent: the client is reset, the log says what was waited for."""
    mesh.worker.routes = lambda query: None
    mesh.worker.send(ipc.Forget())
    start = time.monotonic()
    assert mesh.is_refused()
    assert 4 < time.monotonic() - start < 7
    assert "timed out waiting for workload" in mesh.worker.wait(mesh.worker.closed)[0].error


def test_routes_are_asked_for_once_until_forgotten(mesh: Mesh) -> None:
    """Three connections, one question; after Forget, another."""
    mesh.worker.queries.clear()
    for _ in range(3):
        with mesh.connect() as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
    assert len(mesh.worker.queries) <= 1
    mesh.worker.send(ipc.Forget())
    with mesh.connect() as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    assert len(mesh.worker.queries) == 2


def test_a_pod_without_a_certificate_is_refused_with_a_reason(mesh: Mesh) -> None:
    """Neither its outbound nor its inbound side guesses an identity."""
    out = listen()
    hb = listen("127.0.0.4")
    mesh.worker.add_pod("late", "127.0.0.4", {OUTBOUND: out, HBONE: hb})
    mesh.worker.destine(out, ("10.96.0.1", 80))
    assert refuses(out)
    closed = mesh.worker.wait(mesh.worker.closed)[0]
    assert closed.flag == "IDENTITY_ERROR"
    assert refuses(hb)
    out.close()
    hb.close()


def test_a_connection_to_ztunnel_itself_is_no_loop(mesh: Mesh) -> None:
    """15001 on an address of the pod is refused instead of being relayed to itself forever."""
    mesh.worker.destine(mesh.out, ("127.0.0.2", 15001))
    assert mesh.is_refused()
    assert "itself" in mesh.worker.wait(mesh.worker.closed)[0].error


def test_probes_of_the_enrolment_proof_leave_no_trace(mesh: Mesh) -> None:
    """A connection to the documentation address is closed at once and never reported."""
    mesh.worker.destine(mesh.out, ("192.0.2.1", 80))
    with mesh.connect() as sock:
        assert sock.recv(1) == b""
    mesh.worker.destine(mesh.plain, ("127.0.0.3", 15011))
    with socket.create_connection(mesh.plain.getsockname(), 5) as sock:
        assert sock.recv(1) == b""
    time.sleep(0.6)
    assert mesh.worker.events == []


def test_a_server_that_refuses_our_certificate_is_a_tls_failure(mesh: Mesh) -> None:
    """In TLS 1.3 the client is through first; the refusal comes as an alert and is named so."""
    mesh.worker.send(Authority("other").issue(spiffe("a"), roots=mesh.ca.pem))
    mesh.worker.sync()
    assert mesh.is_refused(b"hello")
    closed = mesh.worker.wait(mesh.worker.closed)[0]
    assert closed.flag == "TLS_FAILURE"
    assert "refused by the other end" in closed.error
    assert mesh.app.accepted == 0
