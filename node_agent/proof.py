"""Proof that a pod is captured: connections that can only succeed through its own redirection.

Out: a process in the pod's namespace (and its cgroup, where the source names one: else the agent's,
which meets the same hooks) connects to a documentation address that no network
routes. In: the agent connects to a port of the pod on which nothing listens. Both must succeed, the
peer shown must be the one asked for, and the pod's own counters must have moved.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from typing import Final

from mesh.ports import PROBE_PORT, PROBE_V4, PROBE_V6
from node_agent import probe
from node_agent.redirect import Redirect
from node_agent.sandbox import Sandbox, StepError, inside
from node_agent.source import DesiredPod

CONNECT_TIMEOUT: Final = 2.0  # seconds; a captured connection never leaves the machine
_CHILD_TIMEOUT: Final = 10.0
_MAX_OUTPUT: Final = 4096


async def prove(pod: DesiredPod, sandbox: Sandbox, redirect: Redirect) -> None:
    """Return when capture is proved both ways; StepError says what was found instead."""
    before = redirect.counters(pod.uid, sandbox)
    for address in pod.addresses:
        await _reach(address)
    targets = _targets(pod.addresses)
    await _connect_as_pod(pod, sandbox, targets)
    after = redirect.counters(pod.uid, sandbox)
    moved = (after[0] - before[0], after[1] - before[1])
    if moved[0] < len(targets) or moved[1] < len(pod.addresses):
        raise StepError(
            "NotProved",
            f"probes connected, but not through the hooks: {len(targets)} out and "
            f"{len(pod.addresses)} in were made, {moved[0]} and {moved[1]} were counted",
        )


def _targets(addresses: Iterable[str]) -> list[str]:
    """Give one address that nothing routes for each family the pod has."""
    versions = {ipaddress.ip_address(address).version for address in addresses}
    return [PROBE_V4 if version == 4 else PROBE_V6 for version in sorted(versions)]


async def _reach(address: str) -> None:
    """Connect from the node to a port of the pod that only redirection answers."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await asyncio.get_running_loop().sock_connect(sock, (address, PROBE_PORT))
        except (OSError, TimeoutError) as error:
            cause = getattr(error, "strerror", None) or "timed out"
            raise StepError(
                "NotProved",
                f"inbound: a connection from the node to {address} was not captured: {cause}",
            ) from error


async def _connect_as_pod(pod: DesiredPod, sandbox: Sandbox, targets: list[str]) -> None:
    """Run node_agent/probe.py in the pod and judge its lines."""
    process = _start(pod.cgroup, sandbox.netns, targets)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_CHILD_TIMEOUT):
            await _ended(process.pid)
        output = os.read(process.stdout.fileno(), _MAX_OUTPUT).decode(errors="replace")
    except TimeoutError as error:
        raise StepError(
            "NotProved",
            f"the probe in the pod did not end in {_CHILD_TIMEOUT:.0f} s"
            + (f": is its cgroup {pod.cgroup} frozen?" if pod.cgroup else ""),
        ) from error
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    results = dict(line.split(" ", 1) for line in output.splitlines() if " " in line)
    for target in targets:
        result = results.get(target, results.get("-", "the probe in the pod said nothing"))
        if result != "ok":
            raise StepError("NotProved", f"outbound: not captured: {result}")


def _start(cgroup: str, netns: int, targets: list[str]) -> subprocess.Popen[bytes]:
    """Start the probe; a child is born into the network namespace its parent is in."""
    arguments = [item for address in targets for item in (address, str(PROBE_PORT))]
    script = [sys.executable, "-I", "-S", probe.__file__, cgroup, str(CONNECT_TIMEOUT)]
    with inside(netns):
        return subprocess.Popen(
            [*script, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd="/",
            env={},
        )


async def _ended(pid: int) -> None:
    """Wait for a child to end, without a thread for each (pidfd_open(2))."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    fd = os.pidfd_open(pid)
    try:
        loop.add_reader(fd, lambda: None if ended.done() else ended.set_result(None))
        await ended
    finally:
        loop.remove_reader(fd)
        os.close(fd)
