"""ZDS messages between node agent and node proxy: mesh/pb/zds.proto as frozen values.

One message is one datagram of a unix SOCK_SEQPACKET connection, at most 1 KiB. File descriptors
travel beside it and are the shell's business: an Add carries the network namespace first, then one
listener for each entry of `listeners`, in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError, EncodeError

from mesh.errors import BadInput
from mesh.pb import zds_pb2 as pb

MAX_MESSAGE: Final = 1024
ACK_DEADLINE: Final = 5.0  # seconds a proxy has for its ack (Istio's ztunnelserver.go)

# Listener roles and redirect modes, numbers of zds.proto.
OUTBOUND_V4: Final[int] = pb.OUTBOUND_V4
OUTBOUND_V6: Final[int] = pb.OUTBOUND_V6
INBOUND_PLAIN: Final[int] = pb.INBOUND_PLAIN
INBOUND_HBONE: Final[int] = pb.INBOUND_HBONE
ROLES: Final = (OUTBOUND_V4, OUTBOUND_V6, INBOUND_PLAIN, INBOUND_HBONE)
REDIRECT_EBPF: Final[int] = pb.EBPF
REDIRECT_NFTABLES: Final[int] = pb.NFTABLES
_REDIRECTS: Final = (pb.REDIRECT_UNSPECIFIED, REDIRECT_EBPF, REDIRECT_NFTABLES)


@dataclass(frozen=True, slots=True)
class Hello:
    """The proxy's first message. `held_listeners`: it takes listeners that the agent holds."""

    held_listeners: bool = False


@dataclass(frozen=True, slots=True)
class Add:
    """Serve a pod. Without `listeners` the proxy opens its own inside the namespace."""

    uid: str
    name: str
    namespace: str
    service_account: str
    listeners: tuple[int, ...] = ()
    redirect: int = 0


@dataclass(frozen=True, slots=True)
class Keep:
    """Go on serving a pod you know; its namespace cannot be sent. Only before SnapshotSent."""

    uid: str


@dataclass(frozen=True, slots=True)
class Del:
    """Stop serving a pod."""

    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """Everything that exists has been said: drop what was not named."""


@dataclass(frozen=True, slots=True)
class Ack:
    """Answer to every request; empty `error` is success."""

    error: str = ""


Request = Add | Keep | Del | SnapshotSent


def encode_hello(hello: Hello) -> bytes:
    """Give the datagram of a Hello."""
    return pb.ZdsHello(version=pb.V1, held_listeners=hello.held_listeners).SerializeToString()


def decode_hello_untrusted(data: bytes) -> Hello:
    """Parse the proxy's first datagram; BadInput on anything but version 1."""
    message = pb.ZdsHello()
    _parse(message, data)
    if message.version != pb.V1:
        raise BadInput(f"ZDS hello of version {message.version}; this side speaks V1 (1)")
    return Hello(message.held_listeners)


def encode_request(request: Request) -> bytes:
    """Give the datagram of a request; BadInput when its names make it larger than 1 KiB."""
    match request:
        case Add():
            add = pb.AddWorkload(
                uid=request.uid,
                workload_info=pb.WorkloadInfo(
                    name=request.name,
                    namespace=request.namespace,
                    service_account=request.service_account,
                ),
                listeners=[pb.Listener.Name(role) for role in request.listeners],
                redirect=pb.Redirect.Name(request.redirect),
            )
            message = pb.WorkloadRequest(add=add)
        case Keep():
            message = pb.WorkloadRequest(keep=pb.KeepWorkload(uid=request.uid))
        case Del():
            message = pb.WorkloadRequest()
            getattr(message, "del").uid = request.uid  # a keyword in Python
        case SnapshotSent():
            message = pb.WorkloadRequest(snapshot_sent=pb.SnapshotSent())
    return _bounded(message)


def decode_request_untrusted(data: bytes) -> Request:
    """Parse one datagram from the agent; BadInput unless it is one well-formed request."""
    message = pb.WorkloadRequest()
    _parse(message, data)
    kind = message.WhichOneof("payload")
    if kind == "add":
        return _add(message.add)
    if kind == "keep":
        return Keep(_uid(message.keep.uid))
    if kind == "del":
        return Del(_uid(getattr(message, "del").uid))
    if kind == "snapshot_sent":
        return SnapshotSent()
    raise BadInput("ZDS request without a payload this side knows")


def encode_response(ack: Ack) -> bytes:
    """Give the datagram of an Ack; a long error text is cut to fit."""
    error = ack.error.encode()[: MAX_MESSAGE - 64].decode(errors="ignore")
    return pb.WorkloadResponse(ack=pb.Ack(error=error)).SerializeToString()


def decode_response_untrusted(data: bytes) -> Ack:
    """Parse one datagram from the proxy; BadInput unless it is an Ack."""
    message = pb.WorkloadResponse()
    _parse(message, data)
    if message.WhichOneof("payload") != "ack":
        raise BadInput("ZDS response that is not an ack")
    return Ack(message.ack.error)


def _add(add: pb.AddWorkload) -> Add:
    roles = tuple(int(role) for role in add.listeners)
    if any(role not in ROLES for role in roles) or len(set(roles)) != len(roles):
        raise BadInput(f"ZDS add with listener roles {roles[:8]}: each of {ROLES} at most once")
    if add.redirect not in _REDIRECTS:
        raise BadInput(f"ZDS add with redirect {add.redirect}, which this side does not know")
    info = add.workload_info
    return Add(
        _uid(add.uid), info.name, info.namespace, info.service_account, roles, int(add.redirect)
    )


def _uid(uid: str) -> str:
    if not uid:
        raise BadInput("ZDS request without a workload uid")
    return uid


def _bounded(message: pb.WorkloadRequest) -> bytes:
    try:
        data = message.SerializeToString()
    except EncodeError as error:
        raise BadInput(f"ZDS request cannot be encoded: {error}") from error
    if len(data) > MAX_MESSAGE:
        raise BadInput(f"ZDS request of {len(data)} bytes; the contract allows {MAX_MESSAGE}")
    return data


def _parse(message: pb.ZdsHello | pb.WorkloadRequest | pb.WorkloadResponse, data: bytes) -> None:
    if len(data) > MAX_MESSAGE:
        raise BadInput(f"ZDS message of {len(data)} bytes; the contract allows {MAX_MESSAGE}")
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise BadInput(f"ZDS message does not parse: {error}") from error
