"""Delta xDS by transcript: requests and snapshots in, responses out, no sockets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.delta import MAX_NAME, DeltaConnection
from control_plane.resources import Snapshot
from mesh.errors import BadInput
from mesh.model.convert import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.xds.delta import Request, Resource, Response

ON_DEMAND = {"subscribe": ("*",), "unsubscribe": ("*",)}


class World:
    """Makes snapshots; a resource is name: version."""

    def __init__(self) -> None:
        self.version = 0

    def snapshot(
        self,
        addresses: dict[str, str],
        policies: dict[str, str] | None = None,
        aliases: dict[str, Iterable[str]] | None = None,
        members: dict[str, Iterable[str]] | None = None,
    ) -> Snapshot:
        self.version += 1

        def make(type_url: str, names: dict[str, str]) -> dict[str, Resource]:
            return {n: Resource(n, v, type_url, v.encode()) for n, v in names.items()}

        return Snapshot(
            self.version,
            {
                ADDRESS_TYPE: make(ADDRESS_TYPE, addresses),
                AUTHORIZATION_TYPE: make(AUTHORIZATION_TYPE, policies or {}),
            },
            {k: tuple(v) for k, v in (aliases or {}).items()},
            {k: tuple(v) for k, v in (members or {}).items()},
        )


class Client:
    """One connection and what its client would believe."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.connection = DeltaConnection()
        self.snapshot = snapshot
        self.has: dict[str, dict[str, str]] = {}

    def ask(self, type_url: str = ADDRESS_TYPE, **fields: Any) -> list[Response]:
        return self._take(
            self.connection.receive_untrusted(Request(type_url, **fields), self.snapshot)
        )

    def push(self, snapshot: Snapshot) -> list[Response]:
        self.snapshot = snapshot
        return self._take(self.connection.push(snapshot))

    def ack(self, response: Response, error: str = "", **fields: Any) -> list[Response]:
        return self.ask(response.type_url, nonce=response.nonce, error=error, **fields)

    def _take(self, responses: list[Response]) -> list[Response]:
        for r in responses:
            known = self.has.setdefault(r.type_url, {})
            known.update({x.name: x.version for x in r.resources})
            for name in r.removed:
                known.pop(name, None)
        return responses


def shown(responses: list[Response]) -> list[tuple[str, list[str], list[str]]]:
    """Responses as (short type, resource names, removed names)."""
    return [
        (
            "address" if r.type_url == ADDRESS_TYPE else "policy",
            sorted(x.name for x in r.resources),
            sorted(r.removed),
        )
        for r in responses
    ]


def test_wildcard_gets_all_then_changes() -> None:
    """All at first; then what changed, appeared and went, and nothing when nothing did."""
    w = World()
    c = Client(w.snapshot({"a": "1", "b": "1"}))
    (first,) = c.ask()
    assert shown([first]) == [("address", ["a", "b"], [])]
    assert c.ack(first) == []
    (second,) = c.push(w.snapshot({"a": "2", "c": "1"}))
    assert shown([second]) == [("address", ["a", "c"], ["b"])]
    assert c.ack(second) == []
    assert c.push(w.snapshot({"a": "2", "c": "1"})) == []


def test_first_request_is_answered_even_with_nothing() -> None:
    """A client waits for the first response of each type before it is ready."""
    c = Client(World().snapshot({}))
    assert shown(c.ask()) == [("address", [], [])]
    assert shown(c.ask(AUTHORIZATION_TYPE)) == [("policy", [], [])]


def test_slow_client_skips_what_is_past() -> None:
    """While a response is unanswered nothing is queued; the answer brings the difference."""
    w = World()
    c = Client(w.snapshot({"a": "1"}))
    (first,) = c.ask()
    for i in range(2, 50):
        assert c.push(w.snapshot({"a": str(i), f"passing{i}": "1"})) == []
    last = w.snapshot({"a": "50"})
    assert c.push(last) == []
    (second,) = c.ack(first)
    assert shown([second]) == [("address", ["a"], [])]
    assert c.has[ADDRESS_TYPE] == {"a": "50"}


def test_refused_resource_is_not_sent_again_until_it_changes() -> None:
    """A NACK is noted with its names; the same version is not sent in a loop."""
    w = World()
    c = Client(w.snapshot({"a": "1"}))
    (first,) = c.ask()
    assert c.ack(first, error="cannot parse a") == []
    (nack,) = c.connection.nacks
    assert (nack.names, nack.error) == (("a",), "cannot parse a")
    (second,) = c.push(w.snapshot({"a": "1", "b": "1"}))
    assert shown([second]) == [("address", ["b"], [])]
    assert c.ack(second) == []
    assert shown(c.push(w.snapshot({"a": "2", "b": "1"}))) == [("address", ["a"], [])]


def test_stale_nonce_answers_nothing() -> None:
    """A late answer to an earlier response does not count for the one in flight."""
    w = World()
    c = Client(w.snapshot({"a": "1"}))
    (first,) = c.ask()
    (second,) = [*c.ack(first), *c.push(w.snapshot({"a": "2"}))]
    assert c.ack(first) == []
    assert c.push(w.snapshot({"a": "3"})) == []
    assert shown(c.ack(second)) == [("address", ["a"], [])]


def test_reconnect_costs_what_changed() -> None:
    """initial_resource_versions: unchanged resources are not sent, lost ones are removed."""
    w = World()
    c = Client(w.snapshot({"same": "1", "new": "1", "changed": "2"}))
    versions = {"same": "1", "changed": "1", "gone": "1"}
    assert shown(c.ask(initial_versions=versions)) == [("address", ["changed", "new"], ["gone"])]
    c = Client(w.snapshot({"same": "1"}))
    assert shown(c.ask(initial_versions={"same": "1"})) == [("address", [], [])]


def test_policies_go_before_the_workloads_that_name_them() -> None:
    """A workload does not overtake a policy that must still wait for an answer."""
    w = World()
    c = Client(w.snapshot({"a": "1"}, {"p": "1"}))
    (addresses,) = c.ask()
    (policies,) = c.ask(AUTHORIZATION_TYPE)
    assert c.ack(addresses) == []
    both = w.snapshot({"a": "2"}, {"p": "2"})
    assert c.push(both) == []
    assert shown(c.ack(policies)) == [("policy", ["p"], []), ("address", ["a"], [])]


def test_on_demand_asks_by_address_name_and_service() -> None:
    """Nothing at first; then by uid, network/ip, VIP and hostname; a miss is said at once."""
    w = World()
    c = Client(
        w.snapshot(
            {"uid/a": "1", "uid/b": "1", "uid/c": "1", "shop/svc": "1"},
            aliases={"/10.0.0.1": ["uid/a"], "/10.96.0.1": ["shop/svc"]},
            members={"shop/svc": ["uid/b", "uid/c"]},
        )
    )
    (first,) = c.ask(**ON_DEMAND)
    assert shown([first]) == [("address", [], [])]
    (one,) = c.ack(first, subscribe=("/10.0.0.1", "/10.0.0.9"))
    assert shown([one]) == [("address", ["uid/a"], ["/10.0.0.9"])]
    (two,) = c.ack(one, subscribe=("/10.96.0.1",))
    assert shown([two]) == [("address", ["shop/svc", "uid/b", "uid/c"], [])]
    (three,) = c.ack(two, subscribe=("uid/a",))
    assert shown([three]) == [("address", ["uid/a"], [])], "an explicit question is answered"
    assert c.ack(three) == []


def test_on_demand_is_kept_current() -> None:
    """Changes of what was sent, new endpoints of an asked VIP, and late arrivals are pushed."""
    w = World()
    vip = {"/10.96.0.1": ["svc"]}
    late = {**vip, "/10.0.0.9": ["late"]}
    before = {"svc": "1", "a": "1", "x": "1"}
    c = Client(w.snapshot(before, aliases=vip, members={"svc": ["a"]}))
    (r,) = c.ask(**ON_DEMAND)
    (r,) = c.ack(r, subscribe=("/10.96.0.1", "/10.0.0.9"))
    assert c.ack(r) == []
    assert c.push(w.snapshot({**before, "x": "2"}, aliases=vip, members={"svc": ["a"]})) == []
    # An endpoint that left the service is still followed: the client holds it.
    after = {"svc": "1", "a": "2", "b": "1", "late": "1"}
    (r,) = c.push(w.snapshot(after, aliases=late, members={"svc": ["b"]}))
    assert shown([r]) == [("address", ["a", "b", "late"], [])]
    assert c.ack(r) == []
    del after["a"]
    (r,) = c.push(w.snapshot(after, aliases=late, members={"svc": ["b"]}))
    assert shown([r]) == [("address", [], ["a"])]


def test_unsubscribe_stops_updates() -> None:
    """What is not subscribed any more is forgotten, unless something else needs it."""
    w = World()
    members = {"svc": ["a"]}
    c = Client(w.snapshot({"svc": "1", "a": "1", "b": "1"}, members=members))
    (r,) = c.ask(subscribe=("svc", "a", "b"))
    assert shown([r]) == [("address", ["a", "b", "svc"], [])]
    assert c.ack(r, unsubscribe=("a", "b")) == []
    (r,) = c.push(w.snapshot({"svc": "1", "a": "2", "b": "2"}, members=members))
    assert shown([r]) == [("address", ["a"], [])]
    assert c.ack(r) == []
    assert c.push(w.snapshot({"svc": "1", "a": "2"}, members=members)) == []


def test_on_demand_reconnect_keeps_its_subscriptions() -> None:
    """Known names are subscriptions; names without a version are asked again."""
    w = World()
    c = Client(w.snapshot({"a": "1", "b": "2", "new": "1"}, aliases={"/10.0.0.1": ["b"]}))
    (r,) = c.ask(**ON_DEMAND, initial_versions={"a": "1", "/10.0.0.1": "", "/gone": "", "d": "1"})
    assert shown([r]) == [("address", ["b"], ["/gone", "d"])]
    assert c.ack(r) == []
    assert shown(c.push(w.snapshot({"a": "2", "b": "2"}, aliases={"/10.0.0.1": ["b"]}))) == [
        ("address", ["a"], [])
    ]


@pytest.mark.parametrize(
    "request_",
    [
        Request("type.googleapis.com/envoy.config.cluster.v3.Cluster"),
        Request(ADDRESS_TYPE, subscribe=("x" * (MAX_NAME + 1),)),
        Request(ADDRESS_TYPE, initial_versions={"x" * (MAX_NAME + 1): "1"}),
        Request(ADDRESS_TYPE, subscribe=tuple(str(i) for i in range(500_001))),
    ],
)
def test_nonsense_is_refused(request_: Request) -> None:
    """Unknown types and unbounded names end the stream with a reason."""
    with pytest.raises(BadInput):
        DeltaConnection().receive_untrusted(request_, World().snapshot({}))


_names = st.sampled_from(["a", "b", "c", "d"])
_world = st.dictionaries(_names, st.sampled_from(["1", "2", "3"]))


@settings(max_examples=200, deadline=None)
@given(st.booleans(), st.lists(st.tuples(_world, _world, st.booleans(), st.booleans())))
def test_client_converges(wildcard: bool, steps: list[Any]) -> None:
    """Whatever changes while answers come late or refuse, the client ends with the last state."""
    w = World()
    c = Client(w.snapshot({}))
    start = {} if wildcard else {"subscribe": ("a", "b", "c", "d")}
    waiting = [*c.ask(**start), *c.ask(AUTHORIZATION_TYPE)]
    for addresses, policies, answer, refuse in steps:
        waiting += c.push(w.snapshot(addresses, policies))
        assert len({r.type_url for r in waiting}) == len(waiting), "one in flight per type"
        if answer and waiting:
            waiting += c.ack(waiting.pop(0), error="no" if refuse else "")
    while waiting:
        waiting += c.ack(waiting.pop(0))
    if steps:
        assert c.has.get(ADDRESS_TYPE, {}) == steps[-1][0]
        assert c.has.get(AUTHORIZATION_TYPE, {}) == steps[-1][1]
