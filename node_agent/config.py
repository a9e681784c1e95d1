"""The node agent's command line; every option has an environment variable too."""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from mesh.env import everywhere
from mesh.errors import ConfigError
from mesh.ports import AGENT_HEALTH, AGENT_METRICS, ROOT_NAMESPACE, ZDS_SOCKET

AUTO: Final = "auto"
_MODES: Final = (AUTO, "ebpf", "nftables")
_STATE: Final = "/run/ambit"  # in a cluster


@dataclass(frozen=True, slots=True)
class Folders:
    """Where pods come from in the lab: objects, and the runtime's pod files."""

    objects: Path
    runtime: Path


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where pods come from in a cluster, and where the CNI plugin goes.

    kubeconfig None: the pod's own account. lasting: a folder that survives a reboot, at the same
    path on the node. started: a file, made when the agent manages the node or could at once.
    """

    kubeconfig: Path | None
    namespace: str
    cri: Path
    cni_binary: Path
    cni_bin_dir: Path
    cni_conf_dir: Path
    lasting: Path
    started: Path


@dataclass(frozen=True, slots=True)
class Config:
    """What the agent was told. Addresses are canonical text.

    cgroup None: the root of cgroup2. proxy_cgroup None: that of each proxy that connects.
    """

    node: str
    source: Folders | Cluster
    pins: Path
    cgroup: Path | None
    proxy_cgroup: Path | None
    zds: Path
    state: Path
    node_addresses: tuple[str, ...]
    redirect: str
    metrics: tuple[str, int]
    health: tuple[str, int]
    release_grace: float
    cleanup: bool
    holder: bool
    verbose: bool


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Read the command line and the environment; leaves with a message when they cannot work."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.holder:
        needed: tuple[str, ...] = ()
    elif args.kubernetes:
        needed = ("node", "pins")
    else:
        needed = ("node", "objects", "runtime", "pins", "cgroup", "proxy_cgroup")
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]
    if missing:
        parser.error(f"needed: {', '.join(missing)} (or their environment variables, see --help)")
    try:
        return _config(args)
    except ConfigError as error:
        parser.error(str(error))


def _config(args: argparse.Namespace) -> Config:
    addresses = args.node_address or os.environ.get("AMBIT_NODE_ADDRESSES", "").split(",")
    in_cluster = args.kubernetes or args.holder
    state = _STATE if in_cluster else str(Path(args.zds).parent / "agent")
    auto = args.cgroup is None or (args.kubernetes and args.cgroup == AUTO)
    return Config(
        node=args.node or "",
        source=_cluster(args) if in_cluster else Folders(Path(args.objects), Path(args.runtime)),
        pins=Path(args.pins or "/nonexistent"),
        cgroup=None if auto else Path(args.cgroup),
        proxy_cgroup=Path(args.proxy_cgroup) if args.proxy_cgroup else None,
        zds=Path(args.zds),
        state=Path(args.state or state),
        node_addresses=tuple(_address(a.strip()) for a in addresses if a.strip()),
        redirect=_choice(args.redirect),
        metrics=_endpoint("--metrics", args.metrics),
        health=_endpoint("--health", args.health),
        release_grace=_seconds(args.release_grace),
        cleanup=args.cleanup,
        holder=args.holder,
        verbose=args.verbose,
    )


def _cluster(args: argparse.Namespace) -> Cluster:
    return Cluster(
        kubeconfig=Path(args.kubeconfig) if args.kubeconfig else None,
        namespace=os.environ.get("POD_NAMESPACE") or ROOT_NAMESPACE,
        cri=Path(args.cri),
        cni_binary=Path(args.cni_binary),
        cni_bin_dir=Path(args.cni_bin_dir),
        cni_conf_dir=Path(args.cni_conf_dir),
        lasting=Path(args.lasting),
        started=Path(args.started),
    )


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
    option("--pins", "AMBIT_PINS", None, "bpffs folder for this node's programs and maps")
    option(
        "--cgroup",
        "AMBIT_CGROUP",
        None,
        "cgroup2 folder above both pods and ztunnel; with --kubernetes the root of cgroup2 (auto)",
    )
    option(
        "--proxy-cgroup",
        "AMBIT_PROXY_CGROUP",
        None,
        "ztunnel's cgroup2 folder: not captured; with --kubernetes that of who connects",
    )
    option("--zds", "ZTUNNEL_UDS_ADDRESS", ZDS_SOCKET, "unix socket that ztunnel dials")
    option(
        "--state",
        "AMBIT_AGENT_STATE",
        None,
        f"private folder; default: agent/ beside --zds, {_STATE} with --kubernetes",
    )
    parser.add_argument(
        "--node-address",
        action="append",
        metavar="IP",
        help="an address from which this node probes its pods; repeat for each "
        "(AMBIT_NODE_ADDRESSES, comma separated) [the one it would use toward each pod]",
    )
    option("--redirect", "AMBIT_REDIRECT", AUTO, f"one of {', '.join(_MODES)}; auto falls back")
    option("--metrics", "AMBIT_METRICS", f":{AGENT_METRICS}", "where to serve /metrics")
    option(
        "--health",
        "AMBIT_HEALTH",
        f":{AGENT_HEALTH}",
        "where to serve /healthz, /readyz and /status",
    )
    _end_options(parser, option)
    _source_options(parser, option)
    parser.add_argument("--verbose", action="store_true", help="log every step")
    return parser


def _end_options(parser: argparse.ArgumentParser, option: _Option) -> None:
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
        "annotations, CNI plugin) and leave; no agent may be running",
    )
    parser.add_argument(
        "--holder",
        action="store_true",
        help="be the holder of listeners beside an agent in a container of its own; needs --state",
    )


def _source_options(parser: argparse.ArgumentParser, option: _Option) -> None:
    option("--objects", "AMBIT_OBJECTS", None, "lab: folder of the mesh's Kubernetes objects")
    option("--runtime", "AMBIT_RUNTIME", None, "lab: folder of the runtime's <pod uid>.json files")
    parser.add_argument(
        "--kubernetes",
        action="store_true",
        help="pods come from the API server and the container runtime",
    )
    option("--kubeconfig", "AMBIT_KUBECONFIG", None, "instead of the pod's own service account")
    option(
        "--cri", "AMBIT_CRI", "/run/containerd/containerd.sock", "the container runtime's socket"
    )
    option("--cni-binary", "AMBIT_CNI_BINARY", "/opt/ambit/bin/ambit-cni", "the CNI plugin")
    option("--cni-bin-dir", "AMBIT_CNI_BIN_DIR", "/host/opt/cni/bin", "where it is put")
    option(
        "--cni-conf-dir",
        "AMBIT_CNI_CONF_DIR",
        "/host/etc/cni/net.d",
        "whose first file it is entered in",
    )
    option("--lasting", "AMBIT_LASTING", "/var/lib/ambit", "folder for what must survive a reboot")
    option(
        "--started",
        "AMBIT_STARTED",
        "/tmp/ambit-node-agent.started",
        "file of this pod alone, made once the agent manages the node or stands by to do so",
    )


class _Option(Protocol):
    def __call__(self, name: str, variable: str, default: str | None, text: str) -> None: ...


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
        raise ConfigError(f"{option} {value}: ADDRESS:PORT is needed, as in 127.0.0.1:8000")
    return host.strip("[]") or everywhere(), int(port)


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise ConfigError(f"--release-grace {value}: seconds from 0 to 3600 are needed")
    return seconds
