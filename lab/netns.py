"""Network namespaces by name, and work done inside of them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from lab.errors import LabError
from lab.host import PATH
from lab.layout import NETNS

T = TypeVar("T")

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
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
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(netns))
    finally:
        os.close(fd)


def inside(netns: Path, work: Callable[[], T]) -> T:
    """Run `work` in a thread that has entered a namespace; its exceptions pass through."""
    done: list[T] = []
    failed: list[BaseException] = []

    def enter_and_work() -> None:
        try:
            enter(netns)
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter_and_work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _run(command: list[str], stdin: str = "") -> None:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=_ENV, check=False
    )
    if done.returncode != 0:
        why = (done.stderr or done.stdout).strip()
        raise LabError(f"{' '.join(command)}: {why}\n{stdin[:2000]}".rstrip())
