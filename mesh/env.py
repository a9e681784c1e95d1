"""Reading environment variables; what cannot work raises ConfigError with the variable's name."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from mesh.errors import ConfigError

Address = tuple[str, int]


def duration(env: Mapping[str, str], name: str, default: float) -> float:
    """Read seconds, with or without a letter: 90, 90s, 5m, 1h."""
    text = env.get(name, "")
    if not text:
        return default
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1])
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ConfigError(f"{name}={text!r}: write seconds more than 0, or 90s, 5m, 1h")
    return value


def flag(env: Mapping[str, str], name: str) -> bool:
    """Read true or false; absent is false."""
    return choice(env, name, ("false", "true")) == "true"


def choice(env: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """Read one of some words, in any case; absent is the first."""
    text = env.get(name, "").lower() or choices[0]
    if text not in choices:
        raise ConfigError(f"{name}={env[name]!r}: write {' or '.join(choices)}")
    return text


def path(env: Mapping[str, str], name: str) -> Path | None:
    """Read the name of a file; absent or empty is None."""
    return Path(env[name]) if env.get(name) else None


def url(text: str, name: str) -> str:
    """Check the address of a gRPC server; https:// is understood."""
    if "://" not in text:
        text = f"https://{text}"
    if not text.startswith(("http://", "https://")):
        raise ConfigError(f"{name}={text!r}: write https://HOST:PORT")
    return text


def everywhere() -> str:
    """The address to listen on for all families: a cluster has IPv4, IPv6 or both.

    "::" takes both, but a kernel may be without IPv6 (ipv6.disable=1).
    """
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def address(env: Mapping[str, str], name: str, default: Address) -> Address:
    """Read ADDRESS:PORT, or :PORT for everywhere."""
    text = env.get(name, "")
    if not text:
        return default
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise ConfigError(f"{name}={text!r}: write ADDRESS:PORT")
    return host.strip("[]") or everywhere(), int(port)


def headers(env: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Collect PREFIX* as headers, names in lower case."""
    return {k[len(prefix) :].lower(): v for k, v in env.items() if k.startswith(prefix)}


def cpu_count() -> int:
    """Count the CPUs this process may use."""
    return len(os.sched_getaffinity(0))
