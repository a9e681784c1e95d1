"""What ztunnel is told: environment variables, names as Istio's ztunnel has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mesh.env import Address, address, choice, duration, everywhere, flag, headers, path, url
from mesh.errors import ConfigError
from mesh.ports import (
    DEFAULT_CLUSTER_ID,
    DEFAULT_TRUST_DOMAIN,
    ZDS_SOCKET,
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
    ("XDS_ON_DEMAND", "false", "true: fetch workloads and services when they are first needed"),
    ("SECRET_TTL", "86400", "lifetime asked for certificates, in seconds (or 12h, 30m)"),
    ("NODE_NAME", "", "the node this proxy serves"),
    ("POD_NAME", "ztunnel", "this pod"),
    ("POD_NAMESPACE", "istio-system", "its namespace"),
    ("INSTANCE_IP", "127.0.0.1", "its address"),
    ("CLUSTER_ID", DEFAULT_CLUSTER_ID, "the cluster's name"),
    ("NETWORK", "", "the network of this node"),
    ("TRUST_DOMAIN", DEFAULT_TRUST_DOMAIN, "trust domain of the local pods"),
    ("INPOD_UDS", ZDS_SOCKET, "the node agent's ZDS socket"),
    ("ZTUNNEL_WORKER_THREADS", "2", "relay worker processes; 0: one per CPU; or a share, 50%"),
    ("TERMINATION_GRACE_PERIOD_SECONDS", "30", "connections are cut 5 s before it is over"),
    ("CONNECTION_TERMINATION_DEADLINE", "grace - 5", "seconds that connections have on SIGTERM"),
    ("ADMIN_ADDR", f"127.0.0.1:{ZTUNNEL_ADMIN}", "/config_dump /logging /quitquitquit"),
    ("READY_ADDR", f":{ZTUNNEL_READY}", "/healthz/ready"),
    ("METRICS_ADDR", f":{ZTUNNEL_METRICS}", "/metrics /stats/prometheus"),
    ("LOG_LEVEL", "info", "debug, info, warn, error; or scopes: info,access=debug"),
    ("LOG_FORMAT", "text", "text or json, of the access log"),
    ("AUTHZ_POLICY_INFO_LOGGING", "false", "true: verdicts of dry-run policies at info level"),
    ("XDS_HEADER_*, CA_HEADER_*", "", "headers added to the gRPC streams"),
    ("ISTIO_META_*, ISTIO_METAJSON_*", "", "node metadata added for the control plane"),
)

# Read by the relay workers themselves (ztunnel/relay/context.py).
RELAY_VARIABLES: Final[tuple[tuple[str, str, str], ...]] = (
    ("POOL_MAX_STREAMS_PER_CONNECTION", "100", "connections multiplexed on one HBONE connection"),
    ("POOL_UNUSED_RELEASE_TIMEOUT", "300", "seconds an idle HBONE connection is kept (or 5m)"),
    ("RELAY_IDLE_TIMEOUT", "3600", "seconds without a byte until a connection is closed"),
    ("RELAY_HALF_OPEN_TIMEOUT", "300", "the same where one side has finished"),
    ("KEEPALIVE_ENABLED, _TIME, _INTERVAL, _RETRIES", "true 180 180 9", "TCP keepalive"),
    ("PACKET_MARK", "1337", "socket mark of what the proxy sends"),
    ("ENABLE_RESPONSE_BAGGAGE", "true", "tell peers who answers them"),
)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything, checked."""

    xds_address: str
    ca_address: str
    xds_root_ca: Path | None
    ca_root_ca: Path | None
    auth_token: Path | None
    on_demand: bool
    secret_ttl: int
    node_name: str
    pod_name: str
    pod_namespace: str
    instance_ip: str
    cluster_id: str
    network: str
    trust_domain: str
    zds: Path
    workers: int
    drain_seconds: float
    admin: Address
    ready: Address
    metrics: Address
    log_level: str
    log_json: bool
    policy_info: bool
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def for_dump(self) -> dict[str, object]:
        """Give the values as JSON; headers may hold secrets and are left out."""
        plain: dict[str, object] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if name == "headers":
                continue
            if isinstance(value, tuple):
                value = f"{value[0]}:{value[1]}"
            plain[_camel(name)] = str(value) if isinstance(value, Path) else value
        return plain


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def from_environment(env: Mapping[str, str], cpus: int) -> Config:
    """Read the configuration; raises ConfigError naming the variable."""
    xds = env.get("XDS_ADDRESS") or "https://istiod.istio-system.svc:15012"
    grace = duration(env, "TERMINATION_GRACE_PERIOD_SECONDS", 30)
    xds_root = path(env, "XDS_ROOT_CA")
    return Config(
        xds_address=url(xds, "XDS_ADDRESS"),
        ca_address=url(env.get("CA_ADDRESS") or xds, "CA_ADDRESS"),
        xds_root_ca=xds_root,
        ca_root_ca=path(env, "CA_ROOT_CA") or xds_root,
        auth_token=path(env, "AUTH_TOKEN"),
        on_demand=flag(env, "XDS_ON_DEMAND"),
        secret_ttl=int(duration(env, "SECRET_TTL", 86400)),
        node_name=env.get("NODE_NAME", ""),
        pod_name=env.get("POD_NAME") or "ztunnel",
        pod_namespace=env.get("POD_NAMESPACE") or "istio-system",
        instance_ip=env.get("INSTANCE_IP") or "127.0.0.1",
        cluster_id=env.get("CLUSTER_ID") or DEFAULT_CLUSTER_ID,
        network=env.get("NETWORK", ""),
        trust_domain=env.get("TRUST_DOMAIN") or DEFAULT_TRUST_DOMAIN,
        zds=Path(env.get("INPOD_UDS") or ZDS_SOCKET),
        workers=_workers(env.get("ZTUNNEL_WORKER_THREADS") or "2", cpus),
        # C10: leave the kubelet five seconds for the rest.
        drain_seconds=duration(env, "CONNECTION_TERMINATION_DEADLINE", max(1.0, grace - 5)),
        admin=address(env, "ADMIN_ADDR", ("127.0.0.1", ZTUNNEL_ADMIN)),
        ready=address(env, "READY_ADDR", (everywhere(), ZTUNNEL_READY)),
        metrics=address(env, "METRICS_ADDR", (everywhere(), ZTUNNEL_METRICS)),
        log_level=env.get("LOG_LEVEL") or env.get("RUST_LOG") or "info",
        log_json=choice(env, "LOG_FORMAT", ("text", "json")) == "json",
        policy_info=flag(env, "AUTHZ_POLICY_INFO_LOGGING"),
        headers={
            "xds": headers(env, "XDS_HEADER_"),
            "ca": headers(env, "CA_HEADER_"),
        },
    )


def _workers(text: str, cpus: int) -> int:
    share = text.endswith("%")
    number = text.removesuffix("%")
    if not number.isdecimal() or int(number) > 1024:
        raise ConfigError(f"ZTUNNEL_WORKER_THREADS={text!r}: write a number, or a share as 50%")
    if share:
        return max(1, cpus * int(number) // 100)
    return int(number) or cpus


def help_text() -> str:
    """Describe the variables for --help."""
    rows = [*VARIABLES, ("", "", ""), *RELAY_VARIABLES]
    lines = ["environment variables (an address :PORT is on all addresses):"]
    for name, default, what in rows:
        shown = f" (default: {default})" if default else ""
        lines.append(f"  {name}\n      {what}{shown}" if name else "  of the relay workers:")
    return "\n".join(lines)
