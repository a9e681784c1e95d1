"""The client's half of delta xDS, as transcripts."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadInput
from mesh.model import Action, Authorization, Scope, Service, Workload, convert
from mesh.xds import delta
from mesh.xds.delta import DeltaClient, Request, Resource, Response

A, P = "type/a", "type/p"


def text(raw: bytes) -> str:
    if raw.startswith(b"bad"):
        raise BadInput("it is bad")
    return raw.decode()


def client(*on_demand: str) -> DeltaClient:
    return DeltaClient({P: text, A: text}, on_demand)


def resource(name: str, value: str = "", version: str = "1", kind: str = A) -> Resource:
    return Resource(name, version, kind, (value or name).encode())


def test_wildcard_begins_with_nothing_and_is_acked() -> None:
    """First request names nothing; a response is taken over and acknowledged by nonce."""
    c = client()
    assert c.connect() == [Request(P), Request(A)]
    update, requests = c.receive(Response(A, "n1", (resource("x", "one"),)))
    assert update.changed == (("x", "one"),)
    assert requests == [Request(A, nonce="n1")]


def test_synced_when_every_type_was_answered() -> None:
    """An empty response counts: the server has nothing of that type."""
    c = client()
    c.receive(Response(A, "1", (resource("x"),)))
    assert not c.synced
    c.receive(Response(P, "2"))
    assert c.synced


def test_reconnect_says_what_is_held() -> None:
    """Versions of what is held, without what was removed."""
    c = client()
    c.receive(Response(A, "1", (resource("x", version="7"), resource("y", version="8"))))
    update, _ = c.receive(Response(A, "2", removed=("y",)))
    assert update.removed == ("y",)
    assert c.connect() == [Request(P), Request(A, initial_versions={"x": "7"})]


def test_bad_resource_is_refused_by_name_and_not_remembered() -> None:
    """The good one counts; the bad one is in the error and is asked for again on reconnect."""
    c = client()
    c.receive(Response(A, "1", (resource("y", "old", "1"),)))
    bad = resource("y", "bad", "2")
    update, requests = c.receive(Response(A, "2", (resource("x", "good"), bad)))
    assert update.changed == (("x", "good"),)
    assert update.rejected == ("y",)
    assert requests == [Request(A, nonce="2", error="y: it is bad")]
    assert c.connect()[1].initial_versions == {"x": "1"}


def test_resource_of_another_type_inside_is_refused() -> None:
    """The envelope's type and the payload's must agree."""
    _, requests = client().receive(Response(A, "1", (resource("x", kind=P),)))
    assert "x: its payload is a 'type/p'" in requests[0].error


def test_type_never_asked_for_is_an_error() -> None:
    """A server that sends other types breaks the protocol."""
    with pytest.raises(BadInput, match="not asked for"):
        client().receive(Response("type/z", "1"))


def test_on_demand_starts_with_nothing_and_asks_by_name() -> None:
    """First request subscribes and unsubscribes everything; then each name is asked for once."""
    c = client(A)
    assert c.connect() == [Request(P), Request(A, ("*",), ("*",))]
    assert c.demand(A, "/10.0.0.1") == Request(A, ("/10.0.0.1",))
    assert c.demand(A, "/10.0.0.1") is None


def test_on_demand_answer_by_another_name_settles_the_alias() -> None:
    """A VIP is answered by a service and its workloads: the name asked for is an alias of it."""
    c = client(A)
    c.demand(A, "/10.0.0.1")
    answer = Resource("ns/svc", "1", A, b"svc", ("/10.0.0.1",))
    update, _ = c.receive(Response(A, "1", (answer, resource("pod"))))
    assert update.answered == {"/10.0.0.1"}
    assert not c.is_missing(A, "/10.0.0.1")


def test_on_demand_miss_is_remembered_until_it_appears() -> None:
    """Removed means: nothing has that name. It is not asked again, also not after it came."""
    c = client(A)
    c.demand(A, "/1.1.1.1")
    update, _ = c.receive(Response(A, "1", removed=("/1.1.1.1",)))
    assert update.answered == {"/1.1.1.1"}
    assert c.is_missing(A, "/1.1.1.1")
    assert c.demand(A, "/1.1.1.1") is None
    c.receive(Response(A, "2", (Resource("pod", "1", A, b"x", ("/1.1.1.1",)),)))
    assert not c.is_missing(A, "/1.1.1.1")


def test_on_demand_reconnect_asks_again_for_what_is_open_or_missing() -> None:
    """Held ones by version; unanswered and missing ones by name."""
    c = client(A)
    for name in ("/1.1.1.1", "/2.2.2.2"):
        c.demand(A, name)
    c.receive(Response(A, "1", (resource("pod", version="5"),), ("/1.1.1.1",)))
    request = c.connect()[1]
    assert request.initial_versions == {"pod": "5"}
    assert request.subscribe == ("*", "/2.2.2.2", "/1.1.1.1")
    assert request.unsubscribe == ("*",)


def test_missing_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the oldest are unsubscribed: a scan of addresses costs bounded memory."""
    monkeypatch.setattr(delta, "MAX_MISSING", 2)
    c = client(A)
    for i in range(3):
        c.demand(A, f"/{i}")
        _, requests = c.receive(Response(A, str(i), removed=(f"/{i}",)))
    assert requests[1] == Request(A, unsubscribe=("/0",))
    assert not c.is_missing(A, "/0")


# ---- decoders of the real types: hostile bytes -------------------------------------------------

WORKLOAD = convert.workload_to_pb(
    Workload("c//Pod/ns/a", "a", "ns", ("10.0.0.1", "fd00::1"))
).SerializeToString()
SERVICE = convert.service_to_pb(
    Service("s", "ns", "s.ns", vips=("10.0.0.1",), cidrs=("10.1.0.0/16",))
).SerializeToString()
POLICY = convert.authorization_to_pb(
    Authorization("p", "ns", Scope.GLOBAL, Action.DENY)
).SerializeToString()


@given(st.sampled_from([WORKLOAD, SERVICE, POLICY]), st.data())
def test_corrupted_resources_raise_bad_input_or_decode(raw: bytes, data: st.DataObject) -> None:
    """Cut, and with any byte changed: a value or BadInput, nothing else."""
    at = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.integers(0, 255))
    broken = raw[:at] + bytes([byte]) + raw[at + 1 : data.draw(st.integers(0, len(raw)))]
    for decode in (convert.address_untrusted, convert.authorization_untrusted):
        with contextlib.suppress(BadInput):
            decode(broken)
