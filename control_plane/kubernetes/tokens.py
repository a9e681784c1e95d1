"""Who calls, as the API server has it: TokenReview of bound service-account tokens.

An answer is kept for a short while, under a hash of the token, so that a node's burst of requests
asks once. Calls are made by threads of their own: the event loop never waits. What is plainly no
token of this audience is refused without asking, or anybody could make the API server work.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from control_plane.authn import Caller
from control_plane.metrics import Counter
from mesh.errors import BadInput, Unavailable
from mesh.kube.api import Api, ApiError

KEPT: Final = 30.0  # seconds; a pod that is deleted is noticed by its own absence, at once
REFUSED_KEPT: Final = 5.0
MAX_KEPT: Final = 2048
MAX_ASKING: Final = 64
_THREADS: Final = 4
_TIMEOUT: Final = 8.0  # a certificate request waits 10 s
_PREFIX: Final = "system:serviceaccount:"
_POD: Final = "authentication.kubernetes.io/pod-name"
_POD_UID: Final = "authentication.kubernetes.io/pod-uid"


def claims_untrusted(token: str) -> Mapping[str, Any]:
    """Read a token's claims, unverified; raises BadInput when it is no JWT."""
    parts = token.split(".")
    try:
        if len(parts) != 3:
            raise ValueError
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        if not isinstance(claims, dict):
            raise ValueError
    except (ValueError, RecursionError) as e:
        raise BadInput("not a service-account token (a JWT)") from e
    return claims


def check_claims_untrusted(claims: Mapping[str, Any], audience: str, now: float) -> float:
    """Refuse what the API server would refuse; returns when the token ends (unix seconds)."""
    said = claims.get("aud")
    if audience not in (said if isinstance(said, list) else [said]):
        raise BadInput(f"the token is not meant for {audience!r} (audience)")
    end = claims.get("exp")
    if not isinstance(end, int | float):
        raise BadInput("the token has no end (exp)")
    if now > end:
        raise BadInput(f"the token expired {int(now - end)} s ago")
    return float(end)


def caller_of(review: Mapping[str, Any], audience: str) -> Caller:
    """Read the API server's answer; raises BadInput when it is a no."""
    status = review.get("status") or {}
    if status.get("authenticated") is not True:
        raise BadInput(f"the API server refuses the token: {status.get('error') or 'no reason'}")
    if audience not in (status.get("audiences") or []):
        raise BadInput(f"the token is not meant for {audience!r} (audience)")
    user = status.get("user") or {}
    name = str(user.get("username") or "")
    namespace, _, account = name.removeprefix(_PREFIX).partition(":")
    if not name.startswith(_PREFIX) or not namespace or not account:
        raise BadInput(f"the token's user is not a service account: {name[:200]!r}")
    extra = user.get("extra") or {}
    return Caller(namespace, account, _one(extra, _POD), _one(extra, _POD_UID))


def _one(extra: Mapping[str, Any], name: str) -> str:
    values = extra.get(name)
    return str(values[0]) if isinstance(values, list) and len(values) == 1 else ""


class ReviewedTokens:
    """Implements control_plane.authn.TokenVerifier. Used from one event loop."""

    def __init__(
        self,
        api: Api,
        audience: str,
        counter: Counter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._audience = audience
        self._counter = counter
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, Caller | str]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Future[Caller | str]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="token-review")

    async def prove_untrusted(self, token: str, now: float) -> Caller:
        """See TokenVerifier; now: unix seconds."""
        left = check_claims_untrusted(claims_untrusted(token), self._audience, now) - now
        name = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        verdict = self._look_up(name)
        if verdict is None:
            verdict = await self._ask(name, token, left)
        if isinstance(verdict, str):
            raise BadInput(verdict)
        return verdict

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _look_up(self, name: bytes) -> Caller | str | None:
        kept = self._kept.get(name)
        if kept is None:
            return None
        if kept[0] <= self._clock():
            del self._kept[name]
            return None
        self._counter.inc("cached")
        return kept[1]

    async def _ask(self, name: bytes, token: str, left: float) -> Caller | str:
        """Ask once for all who wait for the same token."""
        future = self._asking.get(name)
        if future is None:
            if len(self._asking) >= MAX_ASKING:
                raise Unavailable("too many tokens are waiting to be checked; try again")
            work = asyncio.get_running_loop().run_in_executor(self._threads, self._review, token)
            future = self._asking[name] = asyncio.ensure_future(work)
            future.add_done_callback(lambda done: self._answered(name, left, done))
        # One caller that goes away must not take the answer from the others.
        return await asyncio.shield(future)

    def _answered(self, name: bytes, left: float, done: asyncio.Future[Caller | str]) -> None:
        self._asking.pop(name, None)
        if done.cancelled() or done.exception() is not None:
            self._counter.inc("unavailable")
            return
        verdict = done.result()
        refused = isinstance(verdict, str)
        self._counter.inc("refused" if refused else "ok")
        life = min(REFUSED_KEPT if refused else KEPT, left)
        self._kept[name] = (self._clock() + life, verdict)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def _review(self, token: str) -> Caller | str:
        """Ask the API server (blocks); a refusal is returned, trouble raised as Unavailable."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        path = "/apis/authentication.k8s.io/v1/tokenreviews"
        try:
            review = self._api.request("POST", path, body=body, timeout=_TIMEOUT)
        except (ApiError, BadInput, Unavailable) as e:
            raise Unavailable(f"the token cannot be checked now: {e}") from e
        try:
            return caller_of(review, self._audience)
        except BadInput as e:
            return str(e)
