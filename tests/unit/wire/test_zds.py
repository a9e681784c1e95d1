import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadInput
from mesh.wire import zds

ADD = zds.Add("uid-1", "web", "shop", "web-sa", zds.ROLES, zds.REDIRECT_EBPF)
REQUESTS = [
    ADD,
    zds.Add("uid-1", "web", "shop", "web-sa"),
    zds.Keep("uid-2"),
    zds.Del("uid-3"),
    zds.SnapshotSent(),
]
DECODERS = [
    zds.decode_hello_untrusted,
    zds.decode_request_untrusted,
    zds.decode_response_untrusted,
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_every_request_survives_the_wire(request_: zds.Request) -> None:
    """What is encoded is what is decoded."""
    assert zds.decode_request_untrusted(zds.encode_request(request_)) == request_


@pytest.mark.parametrize("held", [True, False])
def test_hello_survives_the_wire(held: bool) -> None:
    """The private field is carried, and its absence too."""
    assert zds.decode_hello_untrusted(zds.encode_hello(zds.Hello(held))) == zds.Hello(held)


def test_the_bytes_are_istios() -> None:
    """A peer of the contract reads our messages: bytes as protoc's own output for C4b."""
    assert zds.encode_hello(zds.Hello()) == b"\x08\x01"
    assert zds.encode_request(zds.Del("a")) == b"\x12\x03\x12\x01a"
    assert zds.encode_request(zds.Keep("a")) == b"\x2a\x03\x0a\x01a"
    assert zds.encode_request(zds.SnapshotSent()) == b"\x1a\x00"
    assert zds.encode_request(zds.Add("u", "n", "s", "a")) == (
        b"\x0a\x0e\x0a\x01u\x12\x09\x0a\x01n\x12\x01s\x1a\x01a"
    )
    assert zds.encode_response(zds.Ack()) == b"\x0a\x00"


def test_a_hello_of_another_version_is_refused() -> None:
    """Version 0 is what an empty datagram says; both are refused."""
    for data in (b"", b"\x08\x00", b"\x08\x02"):
        with pytest.raises(BadInput, match="version"):
            zds.decode_hello_untrusted(data)


def test_a_long_error_is_cut_to_fit() -> None:
    """An ack never breaks the size limit, whatever the proxy wants to say."""
    data = zds.encode_response(zds.Ack("é" * 5000))
    assert len(data) <= zds.MAX_MESSAGE
    assert zds.decode_response_untrusted(data).error.startswith("éé")


def test_names_that_do_not_fit_are_refused_before_sending() -> None:
    """The limit is the sender's to hold."""
    with pytest.raises(BadInput, match="1024"):
        zds.encode_request(zds.Add("u", "n" * 600, "s" * 600, "a"))


@pytest.mark.parametrize("decode", DECODERS)
def test_oversized_messages_are_refused_unparsed(decode: object) -> None:
    """Nothing over 1 KiB is looked at."""
    assert callable(decode)
    with pytest.raises(BadInput, match="allows 1024"):
        decode(b"\x08\x01" * 600)


@pytest.mark.parametrize(
    "roles", [(99,), (zds.OUTBOUND_V4, zds.OUTBOUND_V4), (0,)], ids=["unknown", "twice", "zero"]
)
def test_an_add_with_doubtful_listener_roles_is_refused(roles: tuple[int, ...]) -> None:
    """Descriptors are told apart by role alone: a doubtful list must not be acted upon."""
    roles_field = bytes([0xAA, 0x06, len(roles), *roles])  # field 101, packed
    body = b"\x0a\x01u" + roles_field
    with pytest.raises(BadInput, match="roles"):
        zds.decode_request_untrusted(b"\x0a" + bytes([len(body)]) + body)


@given(
    st.sampled_from([zds.encode_request(r) for r in REQUESTS]),
    st.data(),
)
def test_cut_and_corrupted_messages_raise_only_bad_input(
    message: bytes, data: st.DataObject
) -> None:
    """Whatever arrives, a decoder returns a value or raises BadInput."""
    cut = data.draw(st.integers(0, len(message)))
    flipped = bytearray(message[:cut])
    if flipped:
        at = data.draw(st.integers(0, len(flipped) - 1))
        flipped[at] ^= data.draw(st.integers(1, 255))
    for decode in DECODERS:
        try:
            decode(bytes(flipped))
        except BadInput:
            continue


@given(st.binary(max_size=1100))
def test_random_bytes_raise_only_bad_input(data: bytes) -> None:
    """The same for bytes that never were a message."""
    for decode in DECODERS:
        try:
            decode(data)
        except BadInput:
            continue
