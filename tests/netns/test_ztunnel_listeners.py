"""Listeners that ztunnel opens itself, where the node agent holds none."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from mesh.wire import zds
from ztunnel import netns

pytestmark = pytest.mark.root


@pytest.fixture
def namespace() -> Iterator[int]:
    name = f"ambit-z-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        subprocess.run(["ip", "-n", name, "addr", "add", "10.9.8.7/32", "dev", "lo"], check=True)
        subprocess.run(["ip", "-n", name, "addr", "add", "fd09::7/128", "dev", "lo"], check=True)
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
        yield fd
        os.close(fd)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_listeners_are_opened_inside(namespace: int) -> None:
    """All roles listen in the pod's namespace, on both families, and a second set may overlap."""
    first = netns.open_listeners(namespace)
    second = netns.open_listeners(namespace)
    try:
        assert [role for role, _ in first] == list(zds.ROLES)

        def connect() -> None:
            for address in ("127.0.0.1", "::1"):
                for port in (15001, 15006, 15008):
                    socket.create_connection((address, port), 2).close()

        netns.inside(namespace, connect)
        with pytest.raises(OSError):  # noqa: PT011 (which one depends on the machine)
            socket.create_connection(("127.0.0.1", 15006), 0.2)
    finally:
        for _, sock in (*first, *second):
            sock.close()


def test_addresses_of_the_namespace(namespace: int) -> None:
    """What the pod has, not what this process has; and this thread stays where it is."""
    here = os.readlink("/proc/thread-self/ns/net")
    assert netns.addresses(namespace) == ["10.9.8.7", "fd09::7"]
    assert os.readlink("/proc/thread-self/ns/net") == here
