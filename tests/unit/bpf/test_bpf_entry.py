"""Pods' entries: what C's layout takes, and that nothing is mirrored by hand."""

from __future__ import annotations

import ctypes as c
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf.entry import PodCapture, decode, encode, key_of, text_of
from bpf.layout import Layout, describe
from mesh.errors import ConfigError


class _Ip(c.Structure):
    _fields_ = (("a", c.c_uint32 * 4),)


class _Pod(c.Structure):
    """Shaped as the compiler would report some struct pod: other sizes than today's on purpose."""

    _fields_ = (
        ("uid", c.c_uint8 * 20),
        ("probe", c.c_uint16 * 3),
        ("ip6", _Ip),
        ("ip4", _Ip),
        ("cookie", c.c_uint64),
        ("node", _Ip * 2),
    )


LAYOUT = Layout(**describe(_Pod))
_v4 = st.ip_addresses(v=4).map(str)
_v6 = st.ip_addresses(v=6).filter(lambda a: a.ipv4_mapped is None and int(a)).map(str)


@given(
    uid=st.text("abcdef0123456789-", min_size=1, max_size=20),
    cookie=st.integers(1, 2**64 - 1),
    ipv4=_v4,
    ipv6=_v6,
    node=st.lists(_v4 | _v6, max_size=2),
    ports=st.lists(st.integers(1, 65535), max_size=3),
)
def test_what_goes_in_comes_out(
    uid: str, cookie: int, ipv4: str, ipv6: str, node: list[str], ports: list[int]
) -> None:
    """Any pod that fits survives the way through the map."""
    pod = PodCapture(uid, cookie, (ipv4, ipv6), tuple(node), tuple(ports))
    raw = encode(LAYOUT, pod)
    assert len(raw) == c.sizeof(_Pod)
    assert decode(LAYOUT, raw) == pod


def test_fields_lie_where_the_compiler_put_them() -> None:
    """The bytes are those of the C struct, in the kernel's byte order."""
    pod = PodCapture("u", 7, ("10.0.0.1", "fd00::1"), ("10.0.0.9",), (80, 443))
    struct = _Pod.from_buffer_copy(encode(LAYOUT, pod))
    assert struct.cookie == 7
    assert list(struct.probe) == [80, 443, 0]
    assert bytes(struct.ip4) == bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 1])
    assert bytes(struct.ip6) == ipaddress.ip_address("fd00::1").packed
    assert bytes(struct.node[0]) == key_of("10.0.0.9")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"uid": "u" * 21}, "fit"),
        ({"addresses": ()}, "no address"),
        ({"addresses": ("10.0.0.1", "10.0.0.2")}, "more than one IPv4"),
        ({"addresses": ("ten",)}, "ten"),
        ({"node_addresses": ("10.0.0.1",) * 3}, "over 2 node"),
        ({"probe_ports": (1, 2, 3, 4)}, "at most 3"),
        ({"probe_ports": (0,)}, "port 0"),
        ({"probe_ports": (65536,)}, "port 65536"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, object], said: str) -> None:
    """One error, naming the pod and what is wrong with it."""
    values: dict[str, object] = {
        "uid": "u1",
        "netns_cookie": 1,
        "addresses": ("10.0.0.1",),
        "node_addresses": (),
        "probe_ports": (),
    }
    with pytest.raises(ConfigError, match=rf"pod u.*{said}"):
        encode(LAYOUT, PodCapture(**(values | changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["10.0.0.1", "::1", "fd00::12"])
def test_addresses_keep_their_form(address: str) -> None:
    """IPv4 is mapped inside and shown as IPv4."""
    assert text_of(key_of(address)) == address
