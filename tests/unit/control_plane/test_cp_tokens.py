"""Callers by TokenReview: asked once, kept for a moment, never guessed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cp_support import Tokens
from fake_api import FakeApi
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.authn import Caller
from control_plane.kubernetes.tokens import (
    KEPT,
    MAX_KEPT,
    ReviewedTokens,
    caller_of,
    claims_untrusted,
)
from control_plane.metrics import Metrics
from mesh.errors import BadInput, Unavailable
from mesh.kube.api import Api

POD = "authentication.kubernetes.io/pod-name"
UID = "authentication.kubernetes.io/pod-uid"


def said(user: str = "system:serviceaccount:istio-system:ztunnel", **more: Any) -> dict[str, Any]:
    return {
        "authenticated": True,
        "audiences": ["istio-ca"],
        "user": {"username": user, "extra": {POD: ["ztunnel-n1"], UID: ["u1"]}},
        **more,
    }


@pytest.fixture
def server() -> Iterator[FakeApi]:
    api = FakeApi().start()
    yield api
    if api._server is not None:
        api.stop()


class Rig:
    def __init__(self, server: FakeApi, folder: Path) -> None:
        self.tokens = Tokens(folder)
        self.server = server
        self.time = 0.0
        self.api = Api.load(server.kubeconfig(folder))
        self.metrics = Metrics()
        self.verifier = ReviewedTokens(
            self.api, "istio-ca", self.metrics.token_reviews, lambda: self.time
        )

    async def prove(self, token: str) -> Caller:
        return await self.verifier.prove_untrusted(token, time.time())

    @property
    def reviews(self) -> int:
        return len(self.server.asked("POST", "/tokenreviews"))


@pytest.fixture
def rig(server: FakeApi, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(server, tmp_path)
    yield made
    made.verifier.close()
    made.api.close()


def test_a_burst_asks_once(rig: Rig) -> None:
    """Many requests with one token are one review; after a while it is asked again."""
    token = rig.tokens.sign()
    rig.server.tokens[token] = said()

    async def run() -> None:
        callers = await asyncio.gather(*(rig.prove(token) for _ in range(50)))
        assert set(callers) == {Caller("istio-system", "ztunnel", "ztunnel-n1", "u1")}
        assert rig.reviews == 1
        rig.time += KEPT - 1
        await rig.prove(token)
        assert rig.reviews == 1
        rig.time += 2
        await rig.prove(token)
        assert rig.reviews == 2

    asyncio.run(run())


def test_nothing_is_kept_past_the_tokens_end(rig: Rig) -> None:
    """A token that ends in five seconds is good for five seconds."""
    token = rig.tokens.sign(exp=time.time() + 5)
    rig.server.tokens[token] = said()

    async def run() -> None:
        await rig.prove(token)
        rig.time += 6
        await rig.prove(token)
        assert rig.reviews == 2

    asyncio.run(run())


def test_refusals_are_kept_for_less(rig: Rig) -> None:
    """What the API server does not know is refused with its words, and soon asked again."""
    token = rig.tokens.sign()

    async def run() -> None:
        for _ in range(3):
            with pytest.raises(BadInput, match="unknown token"):
                await rig.prove(token)
        assert rig.reviews == 1
        rig.server.tokens[token] = said()
        rig.time += 6
        assert (await rig.prove(token)).pod == "ztunnel-n1"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"aud": ["kubernetes.default.svc"]}, "not meant for 'istio-ca'"),
        ({"aud": None}, "not meant for"),
        ({"exp": 1000}, "expired"),
        ({"exp": None}, "no end"),
    ],
)
def test_hopeless_tokens_are_not_asked_about(
    rig: Rig, claims: dict[str, Any], message: str
) -> None:
    """Another audience, the past, or no token at all: the API server is not troubled."""

    async def run() -> None:
        with pytest.raises(BadInput, match=message):
            await rig.prove(rig.tokens.sign(**claims))
        for junk in ("", "x", "a.b.c", "a.e30.c" * 3, "é.é.é"):
            with pytest.raises(BadInput):
                await rig.prove(junk)
        assert rig.reviews == 0

    asyncio.run(run())


def test_an_absent_api_server_is_no_refusal(rig: Rig) -> None:
    """Without an answer the caller is told to come again; what is known still counts."""
    known, new = rig.tokens.sign(), rig.tokens.sign(pod="other")
    rig.server.tokens[known] = said()

    async def run() -> None:
        await rig.prove(known)
        rig.server.stop()
        with pytest.raises(Unavailable, match="cannot be checked now"):
            await rig.prove(new)
        assert (await rig.prove(known)).account == "istio-system/ztunnel"
        rig.server.start()
        rig.server.tokens[new] = said()
        await rig.prove(new)

    asyncio.run(run())


def test_a_slow_api_server_does_not_stop_the_loop(rig: Rig) -> None:
    """While a review is under way, everything else goes on; a caller that leaves takes nothing."""
    token = rig.tokens.sign()
    rig.server.tokens[token] = said()
    rig.server.delay = 0.5

    async def run() -> None:
        first = asyncio.ensure_future(rig.prove(token))
        second = asyncio.ensure_future(rig.prove(token))
        began = time.monotonic()
        await asyncio.sleep(0.05)
        assert time.monotonic() - began < 0.3
        first.cancel()
        assert (await second).account == "istio-system/ztunnel"
        assert rig.reviews == 1

    asyncio.run(run())


def test_forbidden_reviews_say_so(rig: Rig) -> None:
    """A control plane that may not review says why, to the caller too."""
    token = rig.tokens.sign()
    rig.server.forbidden.add("tokenreviews")

    async def run() -> None:
        with pytest.raises(Unavailable, match="403 Forbidden"):
            await rig.prove(token)

    asyncio.run(run())


def test_what_is_kept_is_bounded(rig: Rig) -> None:
    """Ever new tokens push out the oldest."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for i in range(MAX_KEPT + 100):
            done: asyncio.Future[Caller | str] = loop.create_future()
            done.set_result("no")
            rig.verifier._answered(str(i).encode(), 100.0, done)
        assert len(rig.verifier._kept) == MAX_KEPT

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"authenticated": False, "error": "token has been invalidated"}, "invalidated"),
        ({}, "refuses the token"),
        (said(audiences=["other"]), "not meant for"),
        (said(audiences=None), "not meant for"),
        (said(user="system:node:n1"), "not a service account"),
        (said(user="system:serviceaccount:x"), "not a service account"),
    ],
)
def test_answers_that_are_a_no(status: dict[str, Any], message: str) -> None:
    """Only a full yes for our audience, of a service account, is a yes."""
    with pytest.raises(BadInput, match=message):
        caller_of({"status": status}, "istio-ca")


def test_a_token_without_a_pod_is_a_caller_without_one() -> None:
    """The CA refuses it later; it does not become somebody's."""
    status = said()
    status["user"]["extra"] = {POD: ["a", "b"], UID: []}
    assert caller_of({"status": status}, "istio-ca") == Caller("istio-system", "ztunnel")
    status["user"].pop("extra")
    assert caller_of({"status": status}, "istio-ca").pod == ""


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_arbitrary_tokens_raise_bad_input_only(text: str) -> None:
    """What is no token is refused as such."""
    with contextlib.suppress(BadInput):
        assert isinstance(claims_untrusted(text), dict)
