"""istio.v1.auth.IstioCertificateService over gRPC: the CA's thin shell."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import grpc

from control_plane.authn import Caller, TokenVerifier, bearer_untrusted
from control_plane.ca.authority import Lifetimes, sign_workload
from control_plane.ca.authorize import Pods, authorize_untrusted
from control_plane.ca.csr import check_csr_untrusted
from control_plane.ca.current import CurrentCa
from control_plane.metrics import Metrics
from mesh.errors import BadInput, Unavailable
from mesh.model import SpiffeId
from mesh.pb import citadel_pb2, citadel_pb2_grpc

log = logging.getLogger(__name__)

Clock = Callable[[], datetime.datetime]


@dataclass(frozen=True, slots=True)
class CaConfig:
    """What the service decides by."""

    ca: CurrentCa
    trust_domain: str
    trusted_accounts: Collection[str]  # namespace/name of node proxies
    lifetimes: Lifetimes


def _impersonated(request: citadel_pb2.IstioCertificateRequest) -> str:
    if "ImpersonatedIdentity" not in request.metadata.fields:
        return ""
    value = request.metadata.fields["ImpersonatedIdentity"]
    if value.WhichOneof("kind") != "string_value":
        raise BadInput("metadata ImpersonatedIdentity is not text")
    return value.string_value


class CertificateService(citadel_pb2_grpc.IstioCertificateServiceServicer):
    """Answers CreateCertificate. `refresh` reads the newest objects before a caller is refused."""

    def __init__(
        self,
        config: CaConfig,
        verifier: TokenVerifier,
        pods: Pods,
        refresh: Callable[[], Awaitable[object]],
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._config = config
        self._verifier = verifier
        self._pods = pods
        self._refresh = refresh
        self._metrics = metrics
        self._clock = clock

    async def CreateCertificate(
        self,
        request: citadel_pb2.IstioCertificateRequest,
        context: grpc.aio.ServicerContext[
            citadel_pb2.IstioCertificateRequest, citadel_pb2.IstioCertificateResponse
        ],
    ) -> citadel_pb2.IstioCertificateResponse:
        """Sign one request, or abort with the reason."""
        self._metrics.csrs.inc()
        try:
            token = bearer_untrusted(context.invocation_metadata())
            caller = await self._verifier.prove_untrusted(token, self._clock().timestamp())
            identity = await self._authorize(caller, _impersonated(request))
            ca = self._config.ca.ca
        except BadInput as e:
            self._metrics.ca_refused.inc()
            log.warning("certificate refused to %s: %s", context.peer(), e)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(e))
        except Unavailable as e:
            self._metrics.ca_unavailable.inc()
            log.warning("certificate for %s must wait: %s", context.peer(), e)
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(e))
        try:
            key = check_csr_untrusted(request.csr, identity)
        except BadInput as e:
            self._metrics.csr_errors.inc()
            log.warning("certificate for %s refused to %s: %s", identity, context.peer(), e)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        lifetime = self._config.lifetimes.choose(request.validity_duration)
        try:
            chain = sign_workload(ca, key, identity, lifetime, self._clock())
        except ValueError as e:
            self._metrics.sign_errors.inc()
            log.error("signing for %s failed: %s", identity, e)
            await context.abort(grpc.StatusCode.INTERNAL, "signing failed; see the CA's log")
        self._metrics.issued.inc()
        log.info("certificate for %s, %s, to %s", identity, lifetime, caller.account)
        return citadel_pb2.IstioCertificateResponse(cert_chain=chain)

    async def _authorize(self, caller: Caller, impersonated: str) -> SpiffeId:
        """Authorize; a pod may be newer than what was read, so a refusal is looked at twice."""
        config = self._config
        try:
            return authorize_untrusted(
                caller, impersonated, self._pods, config.trusted_accounts, config.trust_domain
            )
        except BadInput:
            await self._refresh()
        return authorize_untrusted(
            caller, impersonated, self._pods, config.trusted_accounts, config.trust_domain
        )
