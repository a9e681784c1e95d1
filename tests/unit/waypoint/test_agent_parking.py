"""Callers of a port that nobody serves for a moment."""

from __future__ import annotations

import socket

import pytest

from waypoint.agent.parking import Parking


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_who_calls_meanwhile_reaches_the_next_one(host: str) -> None:
    """Neither refused nor taken by the wrong one: connected as soon as somebody serves."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as reserve:
        reserve.bind((host, 0))
        address = (host, int(reserve.getsockname()[1]))
    parking = Parking([address])
    parking.park()
    assert parking.open
    parking.park()  # once is enough
    with socket.socket(family) as caller, socket.socket(family) as server:
        caller.settimeout(0.3)
        with pytest.raises(TimeoutError):
            caller.connect(address)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(address)
        server.listen()
        server.settimeout(5)
        parking.release()
        assert not parking.open
        conn, peer = server.accept()
        assert peer[:2] == caller.getsockname()[:2]
        conn.close()


def test_without_it_callers_are_refused() -> None:
    """What the test above would see if the socket were not there."""
    with socket.socket() as reserve:
        reserve.bind(("127.0.0.1", 0))
        address = reserve.getsockname()
    parking = Parking([address])
    parking.park()
    parking.release()
    with socket.socket() as caller, pytest.raises(ConnectionRefusedError):
        caller.connect(address)


def test_address_that_cannot_be_had_is_no_failure() -> None:
    """The other ones are parked all the same."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        parking = Parking([taken.getsockname()])
        parking.park()
        assert not parking.open
        parking.release()
