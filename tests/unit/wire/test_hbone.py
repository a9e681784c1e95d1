"""HBONE's headers: written, read back, and refused when they are not what they should be."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadInput
from mesh.wire import baggage, hbone
from mesh.wire.headers import decode_literals, literal, status


def test_a_request_block_is_plain_hpack() -> None:
    """Any HPACK decoder reads it, and reads the same block again: no table is touched."""
    block = hbone.request_block(
        hbone.request_prefix("[fd00::5]:80", b"a=b"), ("fd00::7", 9), "h.svc", bytes(24), "net2"
    )
    decoder = hpack.Decoder()
    for _ in range(2):
        assert decoder.decode(block) == [
            (":method", "CONNECT"),
            (":authority", "[fd00::5]:80"),
            ("baggage", "a=b"),
            ("forwarded", 'for="[fd00::7]:9";host=h.svc'),
            ("traceparent", f"00-{'0' * 32}-{'0' * 16}-00"),
            ("x-forwarded-network", "net2"),
        ]
    assert decode_literals(block) is not None


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=17_000))))
def test_literals_decode_as_the_library_decodes_them(pairs: list[tuple[bytes, bytes]]) -> None:
    """Own reader and library agree on every length, or the own reader leaves it to the library."""
    block = status(200) + status(503) + b"".join(literal(k, v) for k, v in pairs)
    want = [(b":status", b"200"), (b":status", b"503"), *pairs]
    plain = decode_literals(block)
    if plain is not None:
        assert plain == want
    else:
        assert any(len(v) > 16_000 for _, v in pairs)
    decoder = hpack.Decoder(max_header_list_size=1 << 30)
    assert [(bytes(k), bytes(v)) for k, v in decoder.decode(block, raw=True)] == want


@given(st.binary(max_size=60))
def test_the_literal_reader_never_fails_on_noise(noise: bytes) -> None:
    """It decodes or gives up, and what it decodes the library decodes alike."""
    plain = decode_literals(noise)
    if plain is not None:
        found = hpack.Decoder().decode(noise, raw=True)
        assert [(bytes(k), bytes(v)) for k, v in found] == plain


def test_a_connect_says_where_to() -> None:
    """Address and port in canonical form, IPv4 and IPv6."""
    connect = hbone.connect_untrusted(
        [(b":method", b"CONNECT"), (b":authority", b"[FD00:0::5]:443"), (b"baggage", b"x=y")]
    )
    assert (connect.address, connect.port, connect.baggage) == ("fd00::5", 443, b"x=y")


@pytest.mark.parametrize(
    "headers",
    [
        [(b":method", b"GET"), (b":authority", b"10.0.0.1:80")],
        [(b":authority", b"10.0.0.1:80")],
        [(b":method", b"CONNECT")],
        [(b":method", b"CONNECT"), (b":authority", b"shop.default:80")],
        [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1")],
        [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:0")],
        [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:65536")],
        [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:+80")],
        [(b":method", b"CONNECT"), (b":authority", b"010.0.0.1:80")],
        [(b":method", b"CONNECT"), (b":authority", b"fd00::1:80")],
        [(b":method", b"CONNECT"), (b":authority", b"[fd00::1%eth0]:80")],
        [(b":method", b"CONNECT"), (b":authority", "10.0.0.1:８０".encode())],
        [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80"), (b":path", b"/")],
        [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80"), (b":protocol", b"websocket")],
    ],
)
def test_what_is_no_hbone_connect_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    """400 and a reason, never another exception."""
    with pytest.raises(hbone.BadConnect) as e:
        hbone.connect_untrusted(headers)
    assert e.value.status == 400


@given(st.text(max_size=40))
def test_an_address_of_noise_is_bad_input(text: str) -> None:
    """split_untrusted raises BadInput or returns what join spells back."""
    try:
        address, port = hbone.split_untrusted(text)
    except BadInput:
        return
    assert hbone.split_untrusted(hbone.join(address, port)) == (address, port)


def test_forwarded_gives_a_port_only_for_the_proven_address() -> None:
    """The address comes from the connection; a header that claims another one is not believed."""
    header = b'for="10.244.1.5:41000";host=shop.svc'
    assert hbone.forwarded_port(header, "10.244.1.5") == 41_000
    assert hbone.forwarded_port(header, "10.244.1.6") == 0
    assert hbone.forwarded_port(b'host=x; For="[fd00::1]:7"', "fd00::1") == 7
    for broken in (b"", b"for", b'for="10.244.1.5"', b'for="10.244.1.5:99999"', b"for=\xff"):
        assert hbone.forwarded_port(broken, "10.244.1.5") == 0


def test_baggage_is_read_back_as_it_was_built() -> None:
    """Every field, with characters that need escaping; empty ones are left out."""
    header = baggage.build("Kubernetes", "shop", "deployment", "cart,v=1", "cart", "v1", "", "é %")
    assert b"k8s.deployment.name=cart%2Cv=1" in header
    found = baggage.parse_untrusted(header)
    assert found["workload"] == "cart,v=1"
    assert found["type"] == "deployment"
    assert found[baggage.ZONE] == "é %"
    assert baggage.REGION not in found


@given(st.binary(max_size=200))
def test_baggage_of_noise_is_bad_input_or_pairs(noise: bytes) -> None:
    """Nothing but BadInput is raised."""
    try:
        found = baggage.parse_untrusted(noise)
    except BadInput:
        return
    assert all(isinstance(v, str) for v in found.values())


def test_istios_baggage_is_understood() -> None:
    """A header as Istio's ztunnel sends it; unknown keys and properties are skipped."""
    found = baggage.parse_untrusted(
        b"k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=sleep,"
        b"service.name=sleep,service.version=latest,x=1;ttl=5,novalue"
    )
    assert found == {
        "k8s.cluster.name": "Kubernetes",
        "k8s.namespace.name": "default",
        "type": "deployment",
        "workload": "sleep",
        "service.name": "sleep",
        "service.version": "latest",
    }
