"""The gRPC shell of certificate signing: IstioCertificateService/CreateCertificate."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import grpc

from mesh.ca.csr import held_untrusted, new_request
from mesh.ca.held import Held
from mesh.ca.store import CertStore
from mesh.errors import BadInput, MeshError
from mesh.pb import citadel_pb2
from mesh.xds.client import Upstream, read

log = logging.getLogger(__name__)

_METHOD: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_TIMEOUT: Final = 10.0
_LONGEST_SLEEP: Final = 3600.0  # a wall clock may be set back


class NotIssued(MeshError):
    """The CA did not give a certificate; the text says why."""


class Issuer(Protocol):
    """Who signs."""

    async def issue(self, identity: str) -> Held:
        """Get a certificate; raises NotIssued."""

    async def close(self) -> None:
        """Give connections back."""


class CaClient:
    """Asks the mesh's CA, for lifetimes of `ttl` seconds.

    One channel, made anew after a failure and when the root file has other content: a channel
    trusts what was in it when it was opened. impersonate: a node's proxy asks in the name of its
    pods; others are given the identity that their token proves.
    """

    def __init__(self, upstream: Upstream, ttl: int, impersonate: bool = True) -> None:
        self._upstream = upstream
        self._ttl = ttl
        self._impersonate = impersonate
        self._root = b""
        self._channel: grpc.aio.Channel | None = None
        self._closing: set[asyncio.Future[None]] = set()

    async def issue(self, identity: str) -> Held:
        """See Issuer."""
        made = new_request(identity)
        request = citadel_pb2.IstioCertificateRequest(csr=made.csr_pem, validity_duration=self._ttl)
        if self._impersonate:
            request.metadata.update({"ImpersonatedIdentity": identity})
        try:
            root = read(self._upstream.root_ca) if self._upstream.root_ca else b""
            if root != self._root:
                self._drop_channel()
                self._root = root
            answer = await self._call(request)
            return held_untrusted(identity, made.key_pem, answer.cert_chain, root)
        except grpc.aio.AioRpcError as e:
            self._drop_channel()
            raise NotIssued(f"{e.code().name}: {e.details()}") from e
        except (MeshError, UnicodeDecodeError) as e:
            raise NotIssued(str(e)) from e

    async def _call(self, request: Any) -> citadel_pb2.IstioCertificateResponse:
        if self._channel is None:
            self._channel = self._upstream.channel()
        method = self._channel.unary_unary(
            _METHOD,
            request_serializer=citadel_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=citadel_pb2.IstioCertificateResponse.FromString,
        )
        answer = await method(request, metadata=self._upstream.metadata(), timeout=_TIMEOUT)
        if not isinstance(answer, citadel_pb2.IstioCertificateResponse):
            raise BadInput("the CA's answer does not parse")
        return answer

    def _drop_channel(self) -> None:
        # Other calls may be under way on it; they have their own deadline.
        channel, self._channel = self._channel, None
        if channel is not None:
            closing = asyncio.ensure_future(channel.close(_TIMEOUT))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """See Issuer."""
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None


class CertKeeper:
    """Runs the store: asks when something is due, and passes on what comes."""

    def __init__(
        self, store: CertStore, issuer: Issuer, on_certificate: Callable[[Held], None]
    ) -> None:
        self._store = store
        self._issuer = issuer
        self._on_certificate = on_certificate
        self._wake = asyncio.Event()
        self._asking: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Look again: an identity was acquired."""
        self._wake.set()

    async def run(self) -> None:
        """Keep certificates fresh until cancelled."""
        try:
            while True:
                self._wake.clear()
                for name in self._store.due(time.time()):
                    task = asyncio.ensure_future(self._ask(name))
                    self._asking.add(task)
                    task.add_done_callback(self._asking.discard)
                at = self._store.next_timer()
                pause = None if at is None else min(max(0.0, at - time.time()), _LONGEST_SLEEP)
                try:
                    await asyncio.wait_for(self._wake.wait(), pause)
                except TimeoutError:
                    continue
        finally:
            for task in self._asking:
                task.cancel()
            await self._issuer.close()

    async def _ask(self, name: str) -> None:
        started = time.monotonic()
        try:
            held = await self._issuer.issue(name)
        except NotIssued as e:
            self._store.failed(name, str(e), time.time())
            log.warning("certificate of %s: %s; trying again", name, e)
        else:
            if self._store.granted(name, held, time.time()):
                hours = (held.certificate.not_after - time.time()) / 3600
                took = (time.monotonic() - started) * 1000
                log.info("certificate of %s: valid for %.2f h (took %.0f ms)", name, hours, took)
                self._on_certificate(held)
        self._wake.set()
