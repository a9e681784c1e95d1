"""The node agent's command line; every option has an environment variable too."""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.errors import ConfigError
from mesh.ports import AGENT_HEALTH, AGENT_METRICS, ZDS_SOCKET

AUTO: Final = "auto"
_MODES: Final = (AUTO, "ebpf", "nftables")


@dataclass(frozen=True, slots=True)
class Config:
    """What the agent was told. Addresses are canonical text."""

    node: str
    objects: Path
    runtime: Path
    pins: Path
    cgroup: Path
    proxy_cgroup: Path
    zds: Path
    state: Path
    node_addresses: tuple[str, ...]
    redirect: str
    metrics: tuple[str, int]
    health: tuple[str, int]
    release_grace: float
    cleanup: bool
    verbose: bool


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Read the command line and the environment; leaves with a message when they cannot work."""
    parser = _parser()
    args = parser.parse_args(arguments)
    missing = [
        f"--{name.replace('_', '-')}"
        for name in ("node", "objects", "runtime", "pins", "cgroup", "proxy_cgroup")
        if getattr(args, name) is None
    ]
    addresses = args.node_address or os.environ.get("AMBIT_NODE_ADDRESSES", "").split(",")
    addresses = [a.strip() for a in addresses if a.strip()]
    if missing:
        parser.error(f"needed: {', '.join(missing)} (or their environment variables, see --help)")
    try:
        return Config(
            node=args.node,
            objects=Path(args.objects),
            runtime=Path(args.runtime),
            pins=Path(args.pins),
            cgroup=Path(args.cgroup),
            proxy_cgroup=Path(args.proxy_cgroup),
            zds=Path(args.zds),
            state=Path(args.state) if args.state else Path(args.zds).parent / "agent",
            node_addresses=tuple(_address(a) for a in addresses),
            redirect=_choice(args.redirect),
            metrics=_endpoint("--metrics", args.metrics),
            health=_endpoint("--health", args.health),
            release_grace=_seconds(args.release_grace),
            cleanup=args.cleanup,
            verbose=args.verbose,
        )
    except ConfigError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ambit-node-agent",
        description="Captures the pods of one node into the mesh, proves it, and hands them to "
        "ztunnel. On SIGTERM it stops managing and leaves everything captured.",
    )

    def option(name: str, variable: str, default: str | None, text: str) -> None:
        value = os.environ.get(variable, default)
        shown = f" [{default}]" if default is not None else ""
        parser.add_argument(
            name,
            default=value,
            metavar=name.rsplit("-", 1)[-1].upper(),
            help=f"{text} ({variable}){shown}",
        )

    option("--node", "NODE_NAME", None, "this node's name")
    option("--objects", "AMBIT_OBJECTS", None, "folder of the mesh's Kubernetes objects")
    option("--runtime", "AMBIT_RUNTIME", None, "folder of the runtime's <pod uid>.json files")
    option("--pins", "AMBIT_PINS", None, "bpffs folder for this node's programs and maps")
    option("--cgroup", "AMBIT_CGROUP", None, "cgroup2 folder above both pods and ztunnel")
    option("--proxy-cgroup", "AMBIT_PROXY_CGROUP", None, "ztunnel's cgroup2 folder: not captured")
    option("--zds", "ZTUNNEL_UDS_ADDRESS", ZDS_SOCKET, "unix socket that ztunnel dials")
    option("--state", "AMBIT_AGENT_STATE", None, "private folder; default: agent/ beside --zds")
    parser.add_argument(
        "--node-address",
        action="append",
        metavar="IP",
        help="an address from which this node probes its pods; repeat for each "
        "(AMBIT_NODE_ADDRESSES, comma separated) [the one it would use toward each pod]",
    )
    option("--redirect", "AMBIT_REDIRECT", AUTO, f"one of {', '.join(_MODES)}; auto falls back")
    option("--metrics", "AMBIT_METRICS", f"0.0.0.0:{AGENT_METRICS}", "where to serve /metrics")
    option(
        "--health",
        "AMBIT_HEALTH",
        f"0.0.0.0:{AGENT_HEALTH}",
        "where to serve /healthz, /readyz and /status",
    )
    option(
        "--release-grace",
        "AMBIT_RELEASE_GRACE",
        "3",
        "seconds in which a pod that leaves the mesh is still served on 15008",
    )
    parser.add_argument(
        "--cleanup",
        action="store_true",
        help="take everything out of the node again (capture, rules, held listeners, "
        "annotations) and leave; no agent may be running",
    )
    parser.add_argument("--verbose", action="store_true", help="log every step")
    return parser


def _choice(value: str) -> str:
    if value not in _MODES:
        raise ConfigError(f"--redirect {value}: one of {', '.join(_MODES)} is needed")
    return value


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError as error:
        raise ConfigError(f"--node-address {value}: {error}") from error


def _endpoint(option: str, value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{option} {value}: ADDRESS:PORT is needed, as in 0.0.0.0:8000")
    return host.strip("[]") or "0.0.0.0", int(port)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise ConfigError(f"--release-grace {value}: seconds from 0 to 3600 are needed")
    return seconds
