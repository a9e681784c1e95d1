"""TLS 1.3 records: OpenSSL at the other end, both forms of the key, and all that is wrong."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh.wire import recordkey, records
from mesh.wire.recordkey import HEAD, OVERHEAD, RECORD, PythonKey, RecordKey
from mesh.wire.records import RecordError, Records, expand_label
from ztunnel.relay.tls import SecretTap

CIPHER = "TLS_AES_128_GCM_SHA256"
READING, WRITING = b"r" * 32, b"w" * 32
Maker = Callable[[str, bytes, bytes, bool], RecordKey]


def python_key(cipher: str, key: bytes, iv: bytes, sealing: bool) -> RecordKey:
    return PythonKey(cipher, key, iv)


def native_key(cipher: str, key: bytes, iv: bytes, sealing: bool) -> RecordKey:
    from mesh.wire._recordkey import RecordKey as Native

    return Native(cipher, key, iv, sealing)


def forms() -> list[Maker]:
    """The C form too wherever it is built; `make setup` builds it where there is a compiler."""
    try:
        import mesh.wire._recordkey  # noqa: F401
    except ImportError:
        return [python_key]
    return [python_key, native_key]


@pytest.fixture(params=forms(), ids=lambda f: f.__name__)
def maker(request: pytest.FixtureRequest) -> Maker:
    return request.param  # type: ignore[no-any-return]


def make(maker: Maker, cipher: str, reading: bytes, writing: bytes) -> Records:
    """Records with keys of this form; they are replaced by their own kind when renewed."""
    found = Records(cipher, reading, writing)
    for half in (found._in, found._out):
        half.make = maker
        half.key = half._make()
    return found


@pytest.fixture
def pair(maker: Maker) -> tuple[Records, Records]:
    """Both ends of a connection."""
    return make(maker, CIPHER, READING, WRITING), make(maker, CIPHER, WRITING, READING)


def seal(end: Records, data: bytes) -> bytes:
    buf = bytearray(data) + bytearray(1)
    out = bytearray(Records.room(len(data)))
    n = end.seal(buf, memoryview(buf), len(data), memoryview(out))
    assert buf == data + b"\0"  # what was borrowed was given back
    return bytes(out[:n])


def unseal(end: Records, raw: bytes) -> tuple[bytes, bytes]:
    """What came out, and what is left over."""
    out = bytearray(len(raw))
    n = end.open_untrusted(memoryview(bytearray(raw)), len(raw), memoryview(out))
    return bytes(out[:n]), raw[end.used :]


class Peer:
    """OpenSSL's end of a connection, in memory, and the secrets for ours."""

    def __init__(self, files: tuple[str, str], cipher: str, server: bool) -> None:
        tap = SecretTap()
        ends = []
        for is_server in (True, False):
            ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
            ctx.minimum_version = ssl.TLSVersion.TLSv1_3
            if is_server:
                ctx.load_cert_chain(*files)
                if not server:
                    ctx.num_tickets = 0  # as ztunnel.relay.tls: what is ours begins at record 0
            else:
                ctx.check_hostname = False
                ctx.verify_mode = ssl.CERT_NONE
                ctx.keylog_filename = tap.path
            into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
            ends.append((ctx.wrap_bio(into, out, server_side=is_server), into, out))
        (s, s_in, s_out), (c, c_in, c_out) = ends
        done = [False, False]
        while not all(done):
            for i, tls in enumerate((c, s)):
                try:
                    tls.do_handshake()
                    done[i] = True
                except ssl.SSLWantReadError:
                    pass
                s_in.write(c_out.read())
                c_in.write(s_out.read())
        assert s.cipher() is not None
        client, server_secret = tap.take()
        ours, theirs = (client, server_secret) if server else (server_secret, client)
        self.tls, self._in, self._out = (s, s_in, s_out) if server else (c, c_in, c_out)
        self.secrets = theirs, ours
        # What OpenSSL sent behind its handshake (a server's session tickets) is for our end.
        self.early = b"" if not server else c_in.read()
        self.cipher = (s.cipher() or ("",))[0]

    def say(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._out.read()

    def hear(self, raw: bytes) -> bytes:
        self._in.write(raw)
        found = b""
        while True:
            try:
                piece = self.tls.read(1 << 20)
            except ssl.SSLWantReadError:
                return found
            if not piece:
                return found
            found += piece


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "peer")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("peer")
    pem, encoding = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(cert.public_bytes(encoding))
    (folder / "key.pem").write_bytes(key.private_bytes(encoding, pem, serialization.NoEncryption()))
    return str(folder / "cert.pem"), str(folder / "key.pem")


# ---- with OpenSSL at the other end ---------------------------------------------------------------


@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
def test_openssl_understands_us_and_we_it(
    maker: Maker, files: tuple[str, str], server: bool
) -> None:
    """In both directions, at sizes around a record's, also after the tickets of a server."""
    peer = Peer(files, CIPHER, server)
    us = make(maker, peer.cipher, *peer.secrets)
    assert unseal(us, peer.early) == (b"", b"")
    assert bool(peer.early) is server  # or the ticket was not tried at all
    for size in (1, 2, 100, RECORD - 1, RECORD, RECORD + 1, 3 * RECORD, 100_000):
        data = os.urandom(size)
        assert peer.hear(seal(us, data)) == data
        assert unseal(us, peer.say(data)) == (data, b"")


def test_the_secrets_of_two_handshakes_are_told_apart(files: tuple[str, str]) -> None:
    one, two = Peer(files, CIPHER, True), Peer(files, CIPHER, True)
    assert len(set(one.secrets + two.secrets)) == 4


def test_close_notify_is_an_end_on_both_sides(maker: Maker, files: tuple[str, str]) -> None:
    peer = Peer(files, CIPHER, True)
    us = make(maker, peer.cipher, *peer.secrets)
    unseal(us, peer.early)
    raw = peer.say(b"last")
    with pytest.raises(ssl.SSLError):
        peer.tls.unwrap()  # writes ours, then wants the other's
    assert unseal(us, raw + peer._out.read()) == (b"last", b"")
    assert us.over == "closed by the peer"
    with pytest.raises(ssl.SSLZeroReturnError):
        peer.hear(us.alert(records.CLOSE_NOTIFY))


@pytest.fixture
def openssl_server(files: tuple[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`openssl s_server`, whose K command sends a KeyUpdate that asks for ours."""
    tool = shutil.which("openssl")
    assert tool, "apt install openssl"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    args = ["-accept", f"127.0.0.1:{port}", "-cert", files[0], "-key", files[1], "-tls1_3"]
    process = subprocess.Popen(
        [tool, "s_server", *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=-3
    )
    yield process, port
    process.kill()
    process.wait()


def test_openssl_renews_keys_and_has_us_renew_ours(
    maker: Maker, openssl_server: tuple[subprocess.Popen[bytes], int]
) -> None:
    process, port = openssl_server
    assert process.stdin is not None
    assert process.stdout is not None
    tap = SecretTap()
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ctx.check_hostname = False
    ctx.verify_mode = ssl.CERT_NONE
    ctx.keylog_filename = tap.path
    with connect(port) as sock:
        into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = ctx.wrap_bio(into, out)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(out.read())
                into.write(sock.recv(65536))
        sock.sendall(out.read())
        client, server = tap.take()
        us = make(maker, (tls.cipher() or ("",))[0], server, client)
        heard = _Reader(sock, us, into.read())
        for round_ in (b"one\n", b"two\n", b"three\n"):
            process.stdin.write(b"K\n")
            process.stdin.flush()
            time.sleep(0.05)  # a command is one read of its terminal
            process.stdin.write(round_)
            process.stdin.flush()
            assert heard.line() == round_
            sock.sendall(seal(us, b"heard " + round_))
            while (line := process.stdout.readline()) and b"heard" not in line:
                pass
            assert line == b"heard " + round_


def connect(port: int) -> socket.socket:
    deadline = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 5)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


class _Reader:
    def __init__(self, sock: socket.socket, us: Records, raw: bytes) -> None:
        self.sock, self.us, self.raw, self.text = sock, us, raw, b""

    def line(self) -> bytes:
        while b"\n" not in self.text:
            more, self.raw = unseal(self.us, self.raw)
            self.text += more
            if b"\n" not in self.text:
                self.raw += self.sock.recv(65536)
        line, _, self.text = self.text.partition(b"\n")
        return line + b"\n"


# ---- with ourselves ------------------------------------------------------------------------------


@pytest.mark.parametrize("cipher", recordkey.CIPHERS)
def test_every_cipher_and_both_forms_understand_each_other(cipher: str) -> None:
    size = 48 if cipher.endswith("384") else 32
    a, b = b"a" * size, b"b" * size
    for left in forms():
        for right in forms():
            one, two = make(left, cipher, a, b), make(right, cipher, b, a)
            for data in (b"x", os.urandom(50_000)):
                assert unseal(two, seal(one, data)) == (data, b"")
                assert unseal(one, seal(two, data)) == (data, b"")


def test_both_forms_write_the_same_bytes() -> None:
    data = os.urandom(2 * RECORD + 5)
    assert len({seal(make(form, CIPHER, READING, WRITING), data) for form in forms()}) == 1


def test_the_key_schedule_is_that_of_rfc_8448() -> None:
    """Section 3: the server's application traffic secret, its key and iv."""
    secret = bytes.fromhex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643")
    assert expand_label(hashes.SHA256(), secret, b"key", 16).hex() == (
        "9f02283b6c9c07efc26bb9f2ac92e356"
    )
    assert expand_label(hashes.SHA256(), secret, b"iv", 12).hex() == "cf782b88dd83549aadf1e984"


def test_records_may_come_in_any_pieces(pair: tuple[Records, Records]) -> None:
    one, two = pair
    data = os.urandom(70_000)
    raw = seal(one, data[:100]) + seal(one, data[100:])
    dice = random.Random(1)
    got, rest, at = b"", b"", 0
    while at < len(raw):
        step = dice.choice((1, 2, 3, 100, 20_000))
        more, rest = unseal(two, rest + raw[at : at + step])
        assert len(rest) < HEAD + recordkey.MAX_LENGTH
        got += more
        at += step
    assert (got, rest) == (data, b"")


def test_our_keys_are_renewed_before_they_wear_out(pair: tuple[Records, Records]) -> None:
    one, two = pair
    one.key_limit = 3
    for i in range(10):
        data = bytes([i]) * (RECORD + 1)
        assert unseal(two, seal(one, data)) == (data, b"")
    assert one._out.key.count <= 4  # it began anew


def test_padding_is_taken_off(maker: Maker) -> None:
    two = make(maker, CIPHER, WRITING, READING)
    raw = craft([(b"abc", 23, 100), (b"", 23, 0), (b"", 23, 9), (b"d", 23, 0)])
    assert unseal(two, raw) == (b"abcd", b"")


def test_a_handshake_message_may_come_in_pieces(maker: Maker) -> None:
    two = make(maker, CIPHER, WRITING, READING)
    ticket = bytes((4, 0, 0x10, 0)) + bytes(0x1000)
    raw = craft([(ticket[:3], 22, 0), (ticket[3:200], 22, 0), (ticket[200:] + ticket, 22, 0)])
    assert unseal(two, raw + craft([(b"x", 23, 0)], start=3)) == (b"x", b"")


def craft(contents: list[tuple[bytes, int, int]], start: int = 0) -> bytes:
    """Records under WRITING by hand: content, type, padding."""
    key = expand_label(hashes.SHA256(), WRITING, b"key", 16)
    iv = int.from_bytes(expand_label(hashes.SHA256(), WRITING, b"iv", 12), "big")
    raw = b""
    for i, (content, kind, padding) in enumerate(contents, start):
        inner = content + bytes((kind,)) + bytes(padding)
        head = struct.pack("!BHH", 23, 0x0303, len(inner) + 16)
        raw += head + AESGCM(key).encrypt((iv ^ i).to_bytes(12, "big"), inner, head)
    return raw


# ---- what is wrong -------------------------------------------------------------------------------


def refusal(maker: Maker, raw: bytes) -> RecordError:
    with pytest.raises(RecordError) as caught:
        unseal(make(maker, CIPHER, WRITING, READING), raw)
    return caught.value


def test_no_bit_can_be_changed_on_the_way(maker: Maker) -> None:
    raw = craft([(b"hello", 23, 3)])
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 1 << at % 8
        us = make(maker, CIPHER, WRITING, READING)
        with contextlib.suppress(RecordError):
            assert unseal(us, bytes(bad))[0] == b""  # longer by its head: it waits for the rest
            assert at in (3, 4)


def test_a_record_cannot_be_replayed_dropped_or_moved(maker: Maker) -> None:
    first, second = craft([(b"a", 23, 0)]), craft([(b"b", 23, 0)], start=1)
    for raw in (first + first, second, second + first):
        assert refusal(maker, raw).alert == 20


@pytest.mark.parametrize(
    ("raw", "alert"),
    [
        (struct.pack("!BHH", 21, 0x0303, 2) + b"\2\0" + bytes(20), 10),  # an alert in the clear
        (struct.pack("!BHH", 20, 0x0303, 1) + b"\1" + bytes(20), 10),
        (struct.pack("!BHH", 23, 0x0303, recordkey.MAX_LENGTH + 1), 22),
        (struct.pack("!BHH", 23, 0x0303, 16) + bytes(16), 50),
        (b"GET / HTTP/1.1\r\n\r\n" + bytes(9), 10),
        (craft([(bytes(RECORD + 1), 23, 0)]), 22),
        (craft([(b"", 0, 40)]), 10),  # nothing but padding
        (craft([(b"\1", 20, 0)]), 10),
        (craft([(b"", 22, 0)]), 10),
        (craft([(b"\1", 21, 0)]), 50),
        (craft([(bytes((1, 0, 0, 0)), 22, 0)]), 10),  # ClientHello
        (craft([(bytes((24, 0, 0, 2, 0, 0)), 22, 0)]), 47),
        (craft([(bytes((24, 0, 0, 1, 2)), 22, 0)]), 47),
        (craft([(bytes((24, 0, 0, 1, 0, 4)), 22, 0)]), 47),  # not at the end of its record
        (craft([(bytes((4, 1, 0, 0)), 22, 0)]), 47),  # 64 KiB announced
        (craft([(bytes((4, 0, 1, 0)), 22, 0), (b"x", 23, 0)]), 10),  # data inside a message
        (craft([(b"", 23, 0)] * (records.IDLE_LIMIT + 1)), 10),
    ],
)
def test_what_a_peer_must_not_send_is_answered_by_the_right_alert(
    maker: Maker, raw: bytes, alert: int
) -> None:
    error = refusal(maker, raw)
    assert error.alert == alert, str(error)
    assert (
        "record" in str(error)
        or "handshake" in str(error)
        or "Key" in str(error)
        or ("alert" in str(error))
    )


def test_an_alert_is_named_and_nothing_is_read_behind_it(maker: Maker) -> None:
    us = make(maker, CIPHER, WRITING, READING)
    raw = craft([(b"before", 23, 0), (b"\2\x30", 21, 0), (b"behind", 23, 0)])
    assert unseal(us, raw)[0] == b"before"
    assert us.over == "TLS alert: unknown ca"


def test_user_canceled_only_announces_the_end(maker: Maker) -> None:
    us = make(maker, CIPHER, WRITING, READING)
    assert unseal(us, craft([(b"\1\x5a", 21, 0)]))[0] == b""
    assert us.over == ""


def test_a_cipher_of_another_protocol_is_refused() -> None:
    with pytest.raises(Exception, match="GCM-SHA256 is not a cipher"):
        Records("ECDHE-RSA-AES128-GCM-SHA256", READING, WRITING)


@pytest.mark.skipif(native_key not in forms(), reason="no C compiler: there is no C form")
def test_the_c_form_checks_every_offset() -> None:
    key = native_key(CIPHER, bytes(16), bytes(12), True)
    small, view = bytearray(10), memoryview(bytearray(100))
    for n, out, at in ((101, view, 0), (-1, view, 0), (50, memoryview(small), 0), (5, view, 90)):
        with pytest.raises(ValueError, match="offsets"):
            key.seal(small, view, n, out, at)
    opening = native_key(CIPHER, bytes(16), bytes(12), False)
    for start, end, at in ((0, 101, 0), (-1, 5, 0), (6, 5, 0), (0, 100, 1), (0, 5, -1)):
        with pytest.raises(ValueError, match="offsets"):
            opening.open(view, start, end, memoryview(bytearray(100)), at)
    for wrong in (
        ("x", bytes(16), bytes(12)),
        (CIPHER, bytes(15), bytes(12)),
        (CIPHER, bytes(16), b""),
    ):
        with pytest.raises(ValueError, match="cipher of TLS"):
            native_key(*wrong, True)
    with pytest.raises(TypeError):
        key.seal(small, view)  # type: ignore[call-arg]
    assert len(key.seal_small(21, b"\1\0")) == 2 + OVERHEAD
