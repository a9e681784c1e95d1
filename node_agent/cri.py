"""What the container runtime says about sandboxes: the Container Runtime Interface, read only.

containerd (1.6 and later) and CRI-O put the sandbox's first process and its namespaces into the
verbose part of PodSandboxStatus, as JSON of their own; both call it `info` and agree on its names.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from mesh.errors import BadInput, Unavailable
from mesh.pb import cri_pb2, cri_pb2_grpc

TIMEOUT: Final = 5.0  # seconds a call may take; a runtime under load takes tenths
_MAX_MESSAGE: Final = 16 << 20  # bytes; kubelet's own limit


@dataclass(frozen=True, slots=True)
class SandboxName:
    """A ready sandbox, as the list shows it. created: nanoseconds since 1970."""

    sandbox: str
    uid: str
    created: int


@dataclass(frozen=True, slots=True)
class SandboxFacts:
    """What the runtime knows of one sandbox.

    pid: its first process; netns: the path of its network namespace, "" if unsaid; logs: kubelet's
    folder of its logs, "" if unsaid; host_network: it has no namespace of its own.
    """

    sandbox: str
    uid: str
    addresses: tuple[str, ...]
    pid: int
    netns: str
    logs: str
    host_network: bool


class Runtime:
    """A connection to the runtime. Calls block, for at most TIMEOUT; safe from several threads."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        # No retries or name lookups of gRPC's own, and no connection kept by a failed attempt.
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_http_proxy", 0),
        ]
        self._channel = grpc.insecure_channel(f"unix://{socket}", options)
        self._stub = cri_pb2_grpc.RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def version(self) -> str:
        """Give its name and version; raises Unavailable."""
        try:
            said = self._stub.Version(cri_pb2.VersionRequest(), timeout=TIMEOUT)
        except grpc.RpcError as error:
            raise self._unavailable(error) from error
        return f"{said.runtime_name} {said.runtime_version}"

    def ready(self) -> list[SandboxName]:
        """List the ready sandboxes; raises Unavailable."""
        state = cri_pb2.PodSandboxStateValue(state=cri_pb2.SANDBOX_READY)
        request = cri_pb2.ListPodSandboxRequest(filter=cri_pb2.PodSandboxFilter(state=state))
        try:
            items = self._stub.ListPodSandbox(request, timeout=TIMEOUT).items
        except grpc.RpcError as error:
            raise self._unavailable(error) from error
        return [
            SandboxName(item.id, item.metadata.uid, item.created_at)
            for item in items
            if item.state == cri_pb2.SANDBOX_READY and item.id and item.metadata.uid
        ]

    def facts(self, sandbox: str) -> SandboxFacts | None:
        """Ask for one sandbox, None when it is gone; raises Unavailable, or BadInput."""
        request = cri_pb2.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True)
        try:
            answer = self._stub.PodSandboxStatus(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise self._unavailable(error) from error
        return read_status_untrusted(answer)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _unavailable(self, error: grpc.RpcError) -> Unavailable:
        return Unavailable(
            f"the container runtime at {self._socket} does not answer: "
            f"{error.code().name}: {str(error.details())[:300]}"
        )


def read_status_untrusted(answer: cri_pb2.PodSandboxStatusResponse) -> SandboxFacts:
    """Read a verbose status; BadInput when it lacks what every runtime says."""
    status = answer.status
    if not status.id or not status.metadata.uid:
        raise BadInput("a sandbox without id or pod uid")
    mode = status.linux.namespaces.options.network
    info = _info(answer.info.get("info", ""), status.id)
    pid = info.get("pid")
    return SandboxFacts(
        sandbox=status.id,
        uid=status.metadata.uid,
        addresses=_addresses(status),
        pid=pid if isinstance(pid, int) and pid > 0 else 0,
        netns=_netns(info),
        logs=_text(_dict(info.get("config")).get("log_directory")),
        host_network=mode == cri_pb2.NODE,
    )


def _info(text: str, sandbox: str) -> Mapping[str, Any]:
    if not text:
        raise BadInput(f"sandbox {sandbox}: the runtime gives no verbose information about it")
    try:
        info = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"sandbox {sandbox}: its verbose information is not JSON") from error
    if not isinstance(info, dict):
        raise BadInput(f"sandbox {sandbox}: its verbose information is no JSON object")
    return info


def _addresses(status: cri_pb2.PodSandboxStatus) -> tuple[str, ...]:
    """Give the pod's addresses, the first of each family, as kubelet shows them."""
    texts = [status.network.ip, *(ip.ip for ip in status.network.additional_ips)]
    return first_of_each_family(texts)


def first_of_each_family(texts: list[str]) -> tuple[str, ...]:
    """Give canonical text of the first address of each family; what is no address is left out."""
    found: dict[int, str] = {}
    for text in texts:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        found.setdefault(address.version, str(address))
    return tuple(found.values())


def _netns(info: Mapping[str, Any]) -> str:
    linux = _dict(_dict(info.get("runtimeSpec")).get("linux"))
    namespaces = linux.get("namespaces")
    for namespace in namespaces if isinstance(namespaces, list) else []:
        if isinstance(namespace, dict) and namespace.get("type") == "network":
            return _text(namespace.get("path"))
    return ""


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
