"""The command line of ambit-control-plane."""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh import __version__
from mesh.env import everywhere
from mesh.ports import (
    CLUSTER_DOMAIN,
    CONTROL_PLANE_METRICS,
    DEFAULT_CLUSTER_ID,
    DEFAULT_TRUST_DOMAIN,
    ROOT_NAMESPACE,
    TOKEN_AUDIENCE,
    XDS_CA_TLS,
)

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DNS_NAME = re.compile(r"(\*\.)?[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*")


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """A mesh of files: the lab."""

    objects: Path
    data: Path
    ca_dir: Path | None
    token_key: Path


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """A mesh in Kubernetes. root_overlap None: as long as certificates live, and a little."""

    kubeconfig: Path | None
    namespace: str  # of the control plane
    pod: str
    root_overlap: datetime.timedelta | None
    waypoint_image: str = ""
    waypoint_pull_policy: str = ""
    waypoint_pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that can be set."""

    where: FolderOptions | ClusterOptions
    listen: tuple[str, int]
    metrics_listen: tuple[str, int]
    token_audience: str
    sans: tuple[str, ...]
    proxy_accounts: frozenset[str]
    trust_domain: str
    cluster_id: str
    cluster_domain: str
    root_namespace: str
    default_ttl: datetime.timedelta
    max_ttl: datetime.timedelta
    log_level: str


def _duration_or_zero(text: str) -> datetime.timedelta:
    m = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if m is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 24h, 90m or 30s")
    return datetime.timedelta(seconds=int(m[1]) * _UNITS[m[2] or "s"])


def _duration(text: str) -> datetime.timedelta:
    found = _duration_or_zero(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: it must be more than 0")
    return found


def _endpoint(text: str, default_port: int) -> tuple[str, int]:
    host, port = text, str(default_port)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = (rest.removeprefix(":") or port) if bracket else ""
    elif text.count(":") == 1:
        host, _, rest = text.partition(":")
        port = rest or port
    host = host or everywhere()
    try:
        number = int(port)
        ipaddress.ip_address(host)
        if not 0 <= number <= 65535:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not ADDRESS, ADDRESS:PORT, [IPv6]:PORT or :PORT"
        ) from None
    return host, number


def _listen(text: str) -> tuple[str, int]:
    return _endpoint(text, XDS_CA_TLS)


def _metrics_listen(text: str) -> tuple[str, int]:
    return _endpoint(text, CONTROL_PLANE_METRICS)


def _san(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        if not _DNS_NAME.fullmatch(text):
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither an address nor a DNS name"
            ) from None
        return text


def _account(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]{1,63}/[a-z0-9.-]{1,253}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/SERVICEACCOUNT")
    return text


def _add_cluster(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("in a Kubernetes cluster")
    g.add_argument(
        "--kubernetes",
        action="store_true",
        help="objects, CA and callers come from the API server; env POD_NAME, POD_NAMESPACE",
    )
    g.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="where the API server is; default: this pod's service account, else kubectl's",
    )
    g.add_argument(
        "--root-overlap",
        type=_duration_or_zero,
        metavar="TIME",
        help="how long a new root is trusted before it signs, and an old one after it did;"
        " default: --max-cert-ttl and 10 minutes. 0s replaces a root at once, at the price of"
        " failing handshakes",
    )

    g.add_argument(
        "--waypoint-image",
        default="",
        metavar="IMAGE",
        help="what the pods of waypoints run; without it Gateways are not deployed",
    )
    g.add_argument(
        "--waypoint-pull-policy",
        choices=("Always", "IfNotPresent", "Never"),
        default="IfNotPresent",
        help="when that image is pulled; default %(default)s",
    )
    g.add_argument(
        "--waypoint-pull-secret",
        action="append",
        default=[],
        metavar="NAME",
        help="a Secret that it is pulled with, in the Gateway's namespace; may be repeated",
    )


def _add_paths(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("with files instead")
    g.add_argument("--objects", type=Path, metavar="DIR", help="folder of Kubernetes YAML")
    g.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="where the root key is kept (0600) and root-cert.pem is written",
    )
    g.add_argument(
        "--ca-dir",
        type=Path,
        metavar="DIR",
        help="sign with your own CA: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem;"
        " default: a self-signed root made in --data",
    )
    g.add_argument(
        "--token-key",
        type=Path,
        metavar="FILE",
        help="PEM public key that service-account tokens are signed with",
    )


def _add_serving(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("whom it serves")
    g.add_argument(
        "--token-audience",
        default=TOKEN_AUDIENCE,
        metavar="NAME",
        help="what callers' tokens must be meant for; default %(default)s",
    )
    g.add_argument(
        "--listen",
        type=_listen,
        metavar="ADDR[:PORT]",
        help=f"xDS and CA, gRPC over TLS; default :{XDS_CA_TLS}, on all addresses",
    )
    g.add_argument(
        "--metrics-listen",
        type=_metrics_listen,
        metavar="ADDR[:PORT]",
        help="/metrics, /healthz/ready, /debug/registry over plain HTTP;"
        f" default :{CONTROL_PLANE_METRICS}, on all addresses",
    )
    g.add_argument(
        "--san",
        type=_san,
        action="append",
        default=[],
        metavar="NAME|IP",
        help=f"another name of this server in its certificate, beside istiod.{ROOT_NAMESPACE}.svc"
        " and the listen address; may be repeated",
    )
    g.add_argument(
        "--proxy-account",
        type=_account,
        action="append",
        default=[],
        metavar="NS/SA",
        help="service account of the node proxies: may use xDS, and may ask for the identities of"
        f" its own node; may be repeated, default {ROOT_NAMESPACE}/ztunnel",
    )


def _add_mesh(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("the mesh")
    for name, default, text in (
        ("--trust-domain", DEFAULT_TRUST_DOMAIN, "first part of every identity"),
        ("--cluster-id", DEFAULT_CLUSTER_ID, "name of this cluster"),
        ("--cluster-domain", CLUSTER_DOMAIN, "DNS domain of Services"),
    ):
        g.add_argument(name, default=default, metavar="NAME", help=f"{text}; default %(default)s")
    g.add_argument(
        "--root-namespace",
        metavar="NAME",
        help="policies in it apply to the whole mesh;"
        f" default: POD_NAMESPACE in a cluster, else {ROOT_NAMESPACE}",
    )
    for name, text in (
        ("--default-cert-ttl", "life of a workload certificate asked for without one"),
        ("--max-cert-ttl", "longest life of a workload certificate"),
    ):
        g.add_argument(
            name,
            type=_duration,
            default=datetime.timedelta(hours=24),
            metavar="TIME",
            help=f"{text}, as 90m or 30s; default 24h",
        )


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="ambit-control-plane",
        description="Turns Kubernetes objects into workload xDS for node proxies, signs their"
        " certificates, and writes what became of policies into their status.",
    )
    p.add_argument("--version", action="version", version=__version__)
    p.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="default %(default)s",
    )
    _add_cluster(p)
    _add_paths(p)
    _add_serving(p)
    _add_mesh(p)
    return p


def _where(
    p: argparse.ArgumentParser, a: argparse.Namespace, environ: Mapping[str, str]
) -> FolderOptions | ClusterOptions:
    files = {
        "--objects": a.objects,
        "--data": a.data,
        "--token-key": a.token_key,
        "--ca-dir": a.ca_dir,
    }
    if not a.kubernetes:
        for name in ("--objects", "--data", "--token-key"):
            if files[name] is None:
                p.error(f"{name} is needed (or --kubernetes)")
        return FolderOptions(a.objects, a.data, a.ca_dir, a.token_key)
    for name, value in files.items():
        if value is not None:
            p.error(f"{name} does not go with --kubernetes: the API server is asked instead")
    namespace = environ.get("POD_NAMESPACE") or a.root_namespace or ROOT_NAMESPACE
    pod = environ.get("POD_NAME") or socket.gethostname()
    return ClusterOptions(
        a.kubeconfig,
        namespace,
        pod,
        a.root_overlap,
        a.waypoint_image,
        a.waypoint_pull_policy,
        tuple(a.waypoint_pull_secret),
    )


def parse_options(
    argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ
) -> Options:
    """Read the command line; exits with a usage message when it is wrong."""
    p = _parser()
    a = p.parse_args(argv)
    where = _where(p, a, environ)
    if isinstance(where, ClusterOptions):
        root, home = a.root_namespace or where.namespace, where.namespace
        names = [f"istiod.{home}.svc", f"istiod.{home}.svc.{a.cluster_domain}", f"istiod.{home}"]
    else:
        root = a.root_namespace or ROOT_NAMESPACE
        names = [f"istiod.{root}.svc"]
    sans = [*names, *a.san]
    listen = a.listen or (everywhere(), XDS_CA_TLS)
    if not ipaddress.ip_address(listen[0]).is_unspecified:
        sans.append(listen[0])
    return Options(
        where=where,
        listen=listen,
        metrics_listen=a.metrics_listen or (everywhere(), CONTROL_PLANE_METRICS),
        token_audience=a.token_audience,
        sans=tuple(sans),
        proxy_accounts=frozenset(a.proxy_account or [f"{root}/ztunnel"]),
        trust_domain=a.trust_domain,
        cluster_id=a.cluster_id,
        cluster_domain=a.cluster_domain,
        root_namespace=root,
        default_ttl=a.default_cert_ttl,
        max_ttl=a.max_cert_ttl,
        log_level=a.log_level,
    )
