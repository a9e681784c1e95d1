"""Network namespaces by name, and work done inside of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from lab.errors import LabError
from lab.host import PATH
from lab.layout import NETNS
from mesh import netns as by_descriptor

T = TypeVar("T")

_ENV: Final = {"PATH": PATH}


def names() -> list[str]:
    """List the named network namespaces of the machine."""
    return sorted(os.listdir(NETNS)) if NETNS.is_dir() else []


def create(name: str) -> None:
    """Make a network namespace with loopback up and IPv6 addresses usable at once."""
    _run(["ip", "netns", "add", name])
    # Duplicate address detection would hold addresses back for a second.
    settings = {"ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0"}
    inside(NETNS / name, lambda: write_sysctls(settings))
    links(name, ["link set lo up"])


def delete(wanted: Iterable[str]) -> None:
    """Remove network namespaces; those that are gone are fine."""
    for name in wanted:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, env=_ENV, check=False)
        (NETNS / name).unlink(missing_ok=True)  # a name whose mount is gone


def links(name: str, commands: Iterable[str]) -> None:
    """Run ip(8) commands in a namespace, all by one process; raises LabError at the first."""
    _run(["ip", "-n", name, "-batch", "-"], "\n".join(commands) + "\n")


def nft(name: str, rules: str) -> None:
    """Load nftables rules in a namespace, all or none."""
    _run(["ip", "netns", "exec", name, "nft", "-f", "-"], rules)


def write_sysctls(settings: dict[str, str]) -> None:
    """Write settings below /proc/sys/net of the calling thread's namespace."""
    for key, value in settings.items():
        try:
            Path("/proc/sys/net", key).write_text(value)
        except FileNotFoundError:
            continue  # a kernel without IPv6


def enter(netns: Path) -> None:
    """Move the calling thread, and it alone, into a namespace."""
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        by_descriptor.enter(fd)
    finally:
        os.close(fd)


def inside(netns: Path, work: Callable[[], T]) -> T:
    """Run `work` in a thread that has entered a namespace; its exceptions pass through."""
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return by_descriptor.inside(fd, work)
    finally:
        os.close(fd)


def _run(command: list[str], stdin: str = "") -> None:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=_ENV, check=False
    )
    if done.returncode != 0:
        why = (done.stderr or done.stdout).strip()
        raise LabError(f"{' '.join(command)}: {why}\n{stdin[:2000]}".rstrip())
