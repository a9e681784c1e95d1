"""The gRPC shell of a delta xDS client: one stream at a time, again and again.

What is known stays in use while there is no stream. Nothing here decides anything: a Session does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import grpc
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError

from mesh.errors import BadInput, ConfigError
from mesh.xds.delta import DeltaClient, Request, Response, Update
from mesh.xds.pb import ADS, DELTA, request_to_pb, response_from_pb

log = logging.getLogger(__name__)

_METHOD: Final = f"/{ADS}/{DELTA}"
BACKOFF_FIRST: Final = 0.010  # seconds; doubles
BACKOFF_MOST: Final = 15.0

# A whole mesh may come in one response. Keepalive finds a peer that vanished without a word; our
# control plane tolerates a ping every 5 s, Istio's every 15 s.
_CHANNEL: Final = (
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # no reconnect backoff kept from an earlier channel
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True)
class Upstream:
    """How to reach and greet a control plane over gRPC.

    address: https://host:port, or http:// for plaintext. token: file with the bearer token, read
    again for every stream because it rotates; None sends none.
    """

    address: str
    root_ca: Path | None = None
    token: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def channel(self) -> grpc.aio.Channel:
        """Open a channel; raises ConfigError when its files cannot be read."""
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{self.address!r} is no control plane: write https://HOST:PORT")
        target = parts.netloc if parts.port else f"{parts.netloc}:15012"
        if parts.scheme == "http":
            return grpc.aio.insecure_channel(target, options=_CHANNEL)
        credentials = grpc.ssl_channel_credentials(read(self.root_ca) if self.root_ca else None)
        return grpc.aio.secure_channel(target, credentials, options=_CHANNEL)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Build the call's metadata, with the token as it is now; raises ConfigError."""
        pairs = [(k.lower(), v) for k, v in self.headers.items()]
        if self.token is not None:
            pairs.append(("authorization", f"Bearer {read(self.token).decode().strip()}"))
        return tuple(pairs)


def read(path: Path) -> bytes:
    """Read a file that an operator named; raises ConfigError."""
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from e


@dataclass(frozen=True, slots=True)
class Node:
    """Who asks."""

    id: str
    metadata: Mapping[str, Any]
    cluster: str = ""

    def to_pb(self) -> Any:
        """Build the envoy Node."""
        pb = discovery_pb2.DeltaDiscoveryRequest().node
        pb.id, pb.cluster = self.id, self.cluster
        meta = struct_pb2.Struct()
        meta.update(dict(self.metadata))
        pb.metadata.CopyFrom(meta)
        return pb


class Observer(Protocol):
    """Who counts."""

    def xds_message(self, type_url: str, size: int) -> None:
        """A response came; size in bytes."""

    def xds_terminated(self, reason: str) -> None:
        """A stream ended: `reconnect`, `error` or `complete`."""


class Session(Protocol):
    """Who decides what is said on streams; no I/O."""

    def opened(self) -> Iterable[Request]:
        """Begin a stream: what to send first."""

    def received(self, response: Response) -> Iterable[Request]:
        """Take a response: what to send now. Raises BadInput to end the stream."""

    def closed(self) -> None:
        """Note that the stream has ended."""


class XdsLoop:
    """Keeps one stream of a session up."""

    def __init__(
        self, upstream: Upstream, node: Node, session: Session, observer: Observer
    ) -> None:
        self.connected = False
        self._upstream = upstream
        self._node = node
        self._session = session
        self._observer = observer
        self._outgoing: asyncio.Queue[Request] | None = None
        self._call: Any = None
        self._again = False

    def send(self, request: Request) -> None:
        """Say something more; nothing happens without a stream, as `opened` says all there is."""
        if self._outgoing is not None:
            self._outgoing.put_nowait(request)

    def redial(self) -> None:
        """End the stream, and begin another at once."""
        if self._call is not None:
            self._again = True
            self._call.cancel()

    async def run(self) -> None:
        """Stream, and when it ends begin again after a pause; until cancelled."""
        pause, last = BACKOFF_FIRST, ""
        while True:
            reason = "complete"
            try:
                await self._stream()
                trouble = "the control plane closed the stream"
            except grpc.aio.AioRpcError as e:
                reason, trouble = "error", f"{e.code().name}: {e.details()}"
            except (ConfigError, BadInput, OSError, UnicodeDecodeError) as e:
                reason, trouble = "error", str(e)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self._again or (task is not None and task.cancelling()):
                    raise
            if self.connected:
                pause = BACKOFF_FIRST
            self.connected = False
            if self._again:
                self._again = False
                self._observer.xds_terminated("reconnect")
                continue
            self._observer.xds_terminated(reason)
            if trouble != last or pause >= BACKOFF_MOST:
                log.warning("xds: %s: %s; trying again", self._upstream.address, trouble)
            last = trouble
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF_MOST)

    async def _stream(self) -> None:
        async with self._upstream.channel() as channel:
            method = channel.stream_stream(
                _METHOD,
                request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=_Sized,
            )
            call = method(None, metadata=self._upstream.metadata())
            outgoing: asyncio.Queue[Request] = asyncio.Queue()
            for request in self._session.opened():
                outgoing.put_nowait(request)
            self._outgoing, self._call = outgoing, call
            writing = asyncio.ensure_future(self._write(call, outgoing))
            try:
                await self._read(call, outgoing)
            finally:
                self._outgoing = self._call = None
                self._session.closed()
                writing.cancel()
                call.cancel()
                await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, call: Any, outgoing: asyncio.Queue[Request]) -> None:
        first = True
        while True:
            request = await outgoing.get()
            try:
                node = self._node.to_pb() if first else None
                await call.write(request_to_pb(request, node))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return  # the reader sees why
            first = False

    async def _read(self, call: Any, outgoing: asyncio.Queue[Request]) -> None:
        while True:
            sized = await call.read()
            if not isinstance(sized, _Sized):
                return  # the end; an error would have been raised
            if not self.connected:
                self.connected = True
                log.info("xds: connected to %s", self._upstream.address)
            self._observer.xds_message(sized.response.type_url, sized.size)
            for request in self._session.received(sized.response):
                outgoing.put_nowait(request)


class XdsClient:
    """A client that uses what it is sent: DeltaClient decides, `on_update` applies."""

    def __init__(
        self,
        upstream: Upstream,
        node: Node,
        state: DeltaClient,
        on_update: Callable[[Update], None],
        observer: Observer,
    ) -> None:
        self.state = state
        self._on_update = on_update
        self._loop = XdsLoop(upstream, node, self, observer)

    @property
    def connected(self) -> bool:
        """Whether there is a stream, and the control plane has said something on it."""
        return self._loop.connected

    def demand(self, type_url: str, name: str) -> None:
        """Ask for a resource; without a stream it is asked for when there is one."""
        request = self.state.demand(type_url, name)
        if request is not None:
            self._loop.send(request)

    async def run(self) -> None:
        """Stream until cancelled."""
        await self._loop.run()

    def opened(self) -> Iterable[Request]:
        """See Session."""
        return self.state.connect()

    def received(self, response: Response) -> Iterable[Request]:
        """See Session."""
        update, requests = self.state.receive(response)
        if requests[0].error:
            log.error("xds: refused: %s", requests[0].error)
        self._on_update(update)
        return requests

    def closed(self) -> None:
        """See Session."""


class _Sized:
    """A response and how many bytes it was."""

    __slots__ = ("response", "size")

    def __init__(self, raw: bytes) -> None:
        self.size = len(raw)
        try:
            pb = discovery_pb2.DeltaDiscoveryResponse.FromString(raw)
        except DecodeError as e:
            raise BadInput(f"xDS: a response that does not parse: {e}") from e
        self.response = response_from_pb(pb)


def node_metadata(environ: Mapping[str, str]) -> dict[str, Any]:
    """Collect ISTIO_META_* (text) and ISTIO_METAJSON_* (JSON); raises ConfigError."""
    found: dict[str, Any] = {}
    for name, value in environ.items():
        if name.startswith("ISTIO_META_"):
            found[name.removeprefix("ISTIO_META_")] = value
        elif name.startswith("ISTIO_METAJSON_"):
            try:
                found[name.removeprefix("ISTIO_METAJSON_")] = json.loads(value)
            except ValueError as e:
                raise ConfigError(f"{name}: not JSON: {e}") from e
    return found
