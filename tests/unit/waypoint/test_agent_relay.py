"""What the relay keeps, and what it says to Envoy and to the control plane."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.xds.delta import Request, Resource, Response
from mesh.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES
from waypoint.agent.relay import Out, Redial, Relay, ToEnvoy, ToPlane


def resource(url: str, name: str, text: str = "1") -> Resource:
    return Resource(name, hashlib.sha256(text.encode()).hexdigest()[:8], url, text.encode())


def response(url: str, nonce: str, *resources: Resource, removed: tuple[str, ...] = ()) -> Response:
    return Response(url, nonce, resources, removed)


def to_envoy(out: list[Out]) -> list[Response]:
    return [o.response for o in out if isinstance(o, ToEnvoy)]


def to_plane(out: list[Out]) -> list[Request]:
    return [o.request for o in out if isinstance(o, ToPlane)]


def connected() -> Relay:
    r = Relay()
    r.plane_connected()
    r.envoy_started()
    r.envoy_connected()
    return r


def with_cluster(text: str = "1") -> Relay:
    """A relay whose Envoy has acknowledged cluster a."""
    r = connected()
    r.request(Request(CLUSTER))
    (given_,) = to_envoy(r.response(response(CLUSTER, "n1", resource(CLUSTER, "a", text))))
    r.request(Request(CLUSTER, nonce=given_.nonce))
    return r


# ---- the plain way -----------------------------------------------------------------------------


def test_requests_and_answers_pass_with_the_planes_nonces() -> None:
    """Subscription, response, ACK: each reaches the other side once."""
    r = connected()
    assert to_plane(r.request(Request(CLUSTER))) == [Request(CLUSTER)]
    out = r.response(response(CLUSTER, "n1", resource(CLUSTER, "a")))
    (passed,) = to_envoy(out)
    assert passed.resources == (resource(CLUSTER, "a"),)
    out = r.request(Request(CLUSTER, nonce=passed.nonce))
    assert out == [ToPlane(Request(CLUSTER, nonce="n1"))]
    assert r.versions()[CLUSTER] == {"a": resource(CLUSTER, "a").version}


def test_one_message_may_answer_and_subscribe() -> None:
    """Envoy sends both at once; so does the relay."""
    r = connected()
    r.request(Request(ROUTES, ("x",)))
    (given_,) = to_envoy(r.response(response(ROUTES, "n1", resource(ROUTES, "x"))))
    out = r.request(Request(ROUTES, ("y",), ("x",), nonce=given_.nonce))
    assert out == [ToPlane(Request(ROUTES, ("y",), ("x",), nonce="n1"))]
    assert r.versions()[ROUTES] == {}


def test_refusal_reaches_the_plane_and_keeps_what_was_good() -> None:
    """NACK: counted, explained, not kept."""
    r = with_cluster()
    (bad,) = to_envoy(r.response(response(CLUSTER, "n2", resource(CLUSTER, "a", "bad"))))
    out = r.request(Request(CLUSTER, nonce=bad.nonce, error="no such thing"))
    assert out == [ToPlane(Request(CLUSTER, nonce="n2", error="no such thing"))]
    assert r.versions()[CLUSTER] == {"a": resource(CLUSTER, "a").version}
    assert r.rejected[CLUSTER] == 1
    assert r.errors[CLUSTER] == "no such thing"


def test_configured_when_envoy_took_clusters_and_listeners() -> None:
    """And by the Envoy of now, not the one before."""
    r = with_cluster()
    assert not r.configured
    r.request(Request(LISTENER))
    (given_,) = to_envoy(r.response(response(LISTENER, "n2", resource(LISTENER, "web"))))
    assert not r.configured
    r.request(Request(LISTENER, nonce=given_.nonce))
    assert r.configured
    r.envoy_gone()
    assert not r.configured


def test_no_listener_is_no_configuration() -> None:
    """An empty answer is taken by Envoy, but nothing is served."""
    r = with_cluster()
    r.request(Request(LISTENER))
    (given_,) = to_envoy(r.response(response(LISTENER, "n2")))
    r.request(Request(LISTENER, nonce=given_.nonce))
    assert not r.configured


# ---- another Envoy -----------------------------------------------------------------------------


def restart(r: Relay) -> list[Out]:
    r.envoy_gone()
    out = r.envoy_started()
    r.envoy_connected()
    return out


def test_next_envoy_is_given_what_is_kept() -> None:
    """At once, and the control plane hears nothing."""
    r = with_cluster()
    assert restart(r) == []
    out = r.request(Request(CLUSTER))
    (given_,) = to_envoy(out)
    assert given_.resources == (resource(CLUSTER, "a"),)
    assert to_plane(out) == []
    assert r.request(Request(CLUSTER, nonce=given_.nonce)) == []


def test_unanswered_response_is_given_to_the_next_envoy_after_what_is_kept() -> None:
    """Its ACK then reaches the control plane."""
    r = with_cluster()
    r.response(response(CLUSTER, "n2", resource(CLUSTER, "a", "2")))
    restart(r)
    kept, waiting = to_envoy(r.request(Request(CLUSTER)))
    assert kept.resources == (resource(CLUSTER, "a"),)
    assert waiting.resources == (resource(CLUSTER, "a", "2"),)
    assert r.request(Request(CLUSTER, nonce=kept.nonce)) == []
    assert to_plane(r.request(Request(CLUSTER, nonce=waiting.nonce))) == [
        Request(CLUSTER, nonce="n2")
    ]
    assert r.versions()[CLUSTER] == {"a": resource(CLUSTER, "a", "2").version}


def test_response_that_kills_envoy_is_refused_in_its_name() -> None:
    """After three Envoys; the fourth serves what was good."""
    r = with_cluster()
    r.response(response(CLUSTER, "n2", resource(CLUSTER, "a", "deadly")))
    for _ in range(2):
        assert restart(r) == []
        assert len(to_envoy(r.request(Request(CLUSTER)))) == 2
    out = restart(r)
    (nack,) = to_plane(out)
    assert nack.nonce == "n2"
    assert "ended 3 times" in nack.error
    (given_,) = to_envoy(r.request(Request(CLUSTER)))
    assert given_.resources == (resource(CLUSTER, "a"),)


def test_after_a_refusal_the_next_envoy_says_what_it_has() -> None:
    """The refused response may have been taken in part: a new stream tells the truth."""
    r = with_cluster()
    (bad,) = to_envoy(r.response(response(CLUSTER, "n2", resource(CLUSTER, "b"))))
    r.request(Request(CLUSTER, nonce=bad.nonce, error="no"))
    assert restart(r) == [Redial()]
    r.plane_gone()
    (first,) = to_plane(r.plane_connected())
    assert first == Request(CLUSTER, initial_versions={"a": resource(CLUSTER, "a").version})


def test_names_in_a_refused_response_are_doubtful() -> None:
    """Envoy may have taken them: on another stream no version of theirs is claimed."""
    r = with_cluster()
    newer = (resource(CLUSTER, "a", "2"), resource(CLUSTER, "b"))
    (bad,) = to_envoy(r.response(response(CLUSTER, "n2", *newer)))
    r.request(Request(CLUSTER, nonce=bad.nonce, error="no"))
    r.plane_gone()
    (first,) = to_plane(r.plane_connected())
    assert first.initial_versions == {"a": "unknown", "b": "unknown"}
    (good,) = to_envoy(r.response(response(CLUSTER, "n3", newer[0], removed=("b",))))
    r.request(Request(CLUSTER, nonce=good.nonce))
    r.plane_gone()
    (first,) = to_plane(r.plane_connected())
    assert first.initial_versions == {"a": newer[0].version}


def test_name_asked_for_during_an_update_of_it_comes_after() -> None:
    """Never the older one after the newer: what is kept follows once Envoy has answered."""
    r = connected()
    r.request(Request(ROUTES, ("x",)))
    (given_,) = to_envoy(r.response(response(ROUTES, "n1", resource(ROUTES, "x"))))
    r.request(Request(ROUTES, nonce=given_.nonce))
    (newer,) = to_envoy(r.response(response(ROUTES, "n2", resource(ROUTES, "x", "2"))))
    assert to_envoy(r.request(Request(ROUTES, ("x",)))) == []
    (again,) = to_envoy(r.request(Request(ROUTES, nonce=newer.nonce)))
    assert again.resources == (resource(ROUTES, "x", "2"),)


def test_refused_gift_starts_anew() -> None:
    """What one Envoy took and the next refuses is asked for again, or removed if it is gone."""
    r = with_cluster()
    restart(r)
    (given_,) = to_envoy(r.request(Request(CLUSTER)))
    assert Redial() in r.request(Request(CLUSTER, nonce=given_.nonce, error="not by me"))
    r.plane_gone()
    (first,) = to_plane(r.plane_connected())
    assert first.initial_versions == {"a": "unknown"}


# ---- another stream to the control plane -------------------------------------------------------


def test_new_stream_says_subscriptions_and_versions_in_order() -> None:
    """Clusters, endpoints, listeners, routes; names with them."""
    r = connected()
    for url, names in ((ROUTES, ("x",)), (LISTENER, ()), (ENDPOINTS, ("a", "b")), (CLUSTER, ())):
        r.request(Request(url, names))
    r.plane_gone()
    firsts = to_plane(r.plane_connected())
    assert [f.type_url for f in firsts] == [CLUSTER, ENDPOINTS, LISTENER, ROUTES]
    assert [f.subscribe for f in firsts] == [(), ("a", "b"), (), ("x",)]


def test_answer_to_an_older_stream_is_kept_to_oneself() -> None:
    """Nonces of different streams look alike."""
    r = with_cluster()
    (late,) = to_envoy(r.response(response(CLUSTER, "1", resource(CLUSTER, "a", "2"))))
    r.plane_gone()
    r.plane_connected()
    r.response(response(CLUSTER, "1", resource(CLUSTER, "a", "3")))
    assert r.request(Request(CLUSTER, nonce=late.nonce)) == []
    assert r.versions()[CLUSTER] == {"a": resource(CLUSTER, "a", "2").version}


def test_subscription_made_without_a_stream_is_in_the_next_one() -> None:
    """Nothing is lost while the control plane is away."""
    r = Relay()
    r.envoy_started()
    r.envoy_connected()
    assert r.request(Request(CLUSTER)) == []
    assert to_plane(r.plane_connected()) == [Request(CLUSTER)]


def test_type_without_subscription_is_not_asked_for() -> None:
    """A first request without names would mean everything."""
    r = connected()
    r.request(Request(ROUTES, ("x",)))
    r.request(Request(ROUTES, (), ("x",)))
    r.plane_gone()
    assert r.plane_connected() == []


# ---- bounds ------------------------------------------------------------------------------------


def test_too_large_to_keep() -> None:
    """Versions stay known for a new stream; the next Envoy waits for the control plane."""
    r = Relay(limit=10)
    r.plane_connected()
    r.envoy_started()
    r.envoy_connected()
    r.request(Request(CLUSTER))
    (given_,) = to_envoy(r.response(response(CLUSTER, "n1", resource(CLUSTER, "a", "x" * 11))))
    r.request(Request(CLUSTER, nonce=given_.nonce))
    assert r.size == 0
    r.plane_gone()
    (first,) = to_plane(r.plane_connected())
    assert set(first.initial_versions) == {"a"}
    assert restart(r) == [Redial()]
    r.plane_gone()
    assert to_plane(r.plane_connected()) == [Request(CLUSTER)]
    assert to_envoy(r.request(Request(CLUSTER))) == []


def test_kept_bytes_are_counted() -> None:
    """Replaced, removed and given up resources leave nothing behind."""
    r = with_cluster("12345")
    assert r.size == 5
    removal = response(CLUSTER, "n2", resource(CLUSTER, "b", "123"), removed=("a",))
    (given_,) = to_envoy(r.response(removal))
    r.request(Request(CLUSTER, nonce=given_.nonce))
    assert r.size == 3


# ---- whatever happens --------------------------------------------------------------------------


@dataclass
class Envoy:
    """Takes what it subscribed to. Refuses "bad", having taken what came before it."""

    has: dict[str, dict[str, str]] = field(default_factory=dict)
    inbox: deque[Response] = field(default_factory=deque)
    names: dict[str, set[str]] = field(default_factory=dict)


@dataclass
class Plane:
    """Serves `world`; as the control plane does, one response of a type waits for its answer."""

    world: dict[str, dict[str, str]]
    sent: dict[str, dict[str, str]] = field(default_factory=dict)
    names: dict[str, set[str] | None] = field(default_factory=dict)  # None: everything
    again: dict[str, set[str]] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    nonce: int = 0
    inbox: deque[Request] = field(default_factory=deque)

    def take(self, r: Request) -> None:
        if r.type_url not in self.names:
            self.names[r.type_url] = None if not r.subscribe or "*" in r.subscribe else set()
            self.sent[r.type_url] = dict(r.initial_versions)
            self.again[r.type_url] = set()
        names = self.names[r.type_url]
        asked = set(r.subscribe) - {"*"}
        self.again[r.type_url] |= asked - set(r.initial_versions)
        if names is not None:
            names |= asked
            names -= set(r.unsubscribe)
        if r.nonce and r.nonce == self.waiting.get(r.type_url):
            del self.waiting[r.type_url]

    def due(self, url: str) -> Response | None:
        if url not in self.names or url in self.waiting:
            return None
        names, have, sent = self.names[url], self.world[url], self.sent[url]
        wanted = set(have) if names is None else names & set(have)
        again, self.again[url] = self.again[url], set()
        new = [n for n in wanted if n in again or sent.get(n) != resource(url, n, have[n]).version]
        gone = tuple(n for n in sent if n not in have)
        if not new and not gone:
            return None
        for n in gone:
            del sent[n]
        made = tuple(resource(url, n, have[n]) for n in sorted(new))
        sent.update({m.name: m.version for m in made})
        self.nonce += 1
        self.waiting[url] = str(self.nonce)
        return Response(url, str(self.nonce), made, gone)


class World:
    """The relay between the two, with everything under way in queues."""

    def __init__(self, limit: int) -> None:
        self.relay = Relay(limit)
        self.world: dict[str, dict[str, str]] = {CLUSTER: {"a": "1"}, ROUTES: {"x": "1", "y": "1"}}
        self.plane: Plane | None = None
        self.envoy = Envoy()
        self.refused = False  # by this Envoy
        self.start_envoy()

    def do(self, out: list[Out]) -> None:
        for each in out:
            if isinstance(each, ToEnvoy):
                self.envoy.inbox.append(each.response)
            elif isinstance(each, ToPlane):
                if self.plane is not None:
                    self.plane.inbox.append(each.request)
            elif self.plane is not None:
                self.drop_plane()
                self.dial()

    def start_envoy(self) -> None:
        self.relay.envoy_gone()
        self.envoy, self.refused = Envoy(), False
        self.do(self.relay.envoy_started())
        self.relay.envoy_connected()
        self.say(CLUSTER, ())

    def say(self, url: str, names: tuple[str, ...], unsubscribe: tuple[str, ...] = ()) -> None:
        mine = self.envoy.names.setdefault(url, set())
        mine |= set(names)
        mine -= set(unsubscribe)
        for name in unsubscribe:
            self.envoy.has.get(url, {}).pop(name, None)
        self.do(self.relay.request(Request(url, names, unsubscribe)))

    def dial(self) -> None:
        if self.plane is None:
            self.plane = Plane(self.world)
            self.do(self.relay.plane_connected())

    def drop_plane(self) -> None:
        if self.plane is not None:
            self.plane = None
            self.relay.plane_gone()

    def envoy_turn(self) -> None:
        if not self.envoy.inbox:
            return
        r = self.envoy.inbox.popleft()
        has = self.envoy.has.setdefault(r.type_url, {})
        error = ""
        for each in r.resources:
            if each.payload == b"bad":
                error, self.refused = f"{each.name} is bad", True
                break
            if r.type_url == CLUSTER or each.name in self.envoy.names.get(r.type_url, ()):
                has[each.name] = each.payload.decode()
        if not error:
            for name in r.removed:
                has.pop(name, None)
        self.do(self.relay.request(Request(r.type_url, nonce=r.nonce, error=error)))

    def plane_turn(self) -> None:
        if self.plane is None:
            return
        while self.plane.inbox:
            self.plane.take(self.plane.inbox.popleft())
        for url in (CLUSTER, ROUTES):
            plane = self.plane
            made = plane.due(url) if plane is not None else None
            if made is not None:
                self.do(self.relay.response(made))

    def happen(self, what: str, url: str = "", name: str = "", text: str = "bad") -> None:
        """Let one event happen; see _EVENTS."""
        turns = {
            "crash": self.start_envoy,
            "dial": self.dial,
            "drop": self.drop_plane,
            "plane": self.plane_turn,
            "envoy": self.envoy_turn,
        }
        if what in turns:
            turns[what]()
        elif what == "set":
            self.world[url][name] = text
        elif what == "delete":
            self.world[url].pop(name, None)
        elif what == "subscribe":
            self.say(ROUTES, (name,))
        elif name in self.envoy.names.get(ROUTES, ()):
            self.say(ROUTES, (), (name,))

    def settle(self) -> None:
        self.dial()
        for _ in range(200):
            self.plane_turn()
            self.envoy_turn()


_NAMES = st.sampled_from(["a", "b", "x", "y", "z"])
_TYPES = st.sampled_from([CLUSTER, ROUTES])
_EVENTS = st.one_of(
    st.tuples(st.just("set"), _TYPES, _NAMES, st.sampled_from(["1", "2", "3", "4", "bad"])),
    st.tuples(st.just("delete"), _TYPES, _NAMES),
    st.tuples(st.sampled_from(["subscribe", "unsubscribe"]), st.just(ROUTES), _NAMES),
    *(st.tuples(st.just(e)) for e in ("crash", "dial", "drop", "plane", "envoy", "envoy")),
)


@pytest.mark.parametrize("limit", [1 << 20, 3])
@settings(max_examples=300, deadline=None)
@given(st.lists(_EVENTS, max_size=40))
def test_envoy_ends_with_what_the_control_plane_serves(limit: int, events: list[Any]) -> None:
    """Crashes, outages, refusals in any order: when it is quiet, nothing is missing or stale."""
    w = World(limit)
    for event in events:
        w.happen(*event)
    for here in w.world.values():  # somebody repairs what was bad
        here.update({n: "good" for n, text in here.items() if text == "bad"})
    w.settle()
    if w.refused:
        # What came with something bad is sent again when it changes, or on another stream.
        w.drop_plane()
        w.settle()
    assert w.envoy.has.get(CLUSTER, {}) == w.world[CLUSTER]
    wanted = w.envoy.names.get(ROUTES, set())
    assert w.envoy.has.get(ROUTES, {}) == {n: t for n, t in w.world[ROUTES].items() if n in wanted}
    assert not w.relay._types[CLUSTER].pending
