"""Delta xDS as Envoy needs it, by transcript: what follows what, and what waits for what."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.delta import ENVOY, DeltaConnection
from control_plane.resources import Snapshot
from mesh.xds.delta import Request, Resource, Response
from mesh.xds.types import CLUSTER as CDS
from mesh.xds.types import ENDPOINTS as EDS
from mesh.xds.types import LISTENER as LDS
from mesh.xds.types import ROUTES as RDS

SHORT = {CDS: "cds", EDS: "eds", LDS: "lds", RDS: "rds"}
_VERSION = iter(range(1, 1_000_000))


def snapshot(**types: dict[str, str]) -> Snapshot:
    """Resources as name: version, by short type."""
    long = {short: url for url, short in SHORT.items()}
    return Snapshot(
        next(_VERSION),
        {
            long[short]: {n: Resource(n, v, long[short], v.encode()) for n, v in found.items()}
            for short, found in types.items()
        },
    )


class Envoy:
    """One connection; asks for endpoints and routes by name, as Envoy does."""

    def __init__(self, first: Snapshot) -> None:
        self.connection = DeltaConnection(ENVOY)
        self.snapshot = first
        self.has: dict[str, dict[str, str]] = {t: {} for t in SHORT}
        self.waiting: dict[str, Response] = {}  # not answered yet, by short type

    def ask(self, type_url: str, **fields: Any) -> list[str]:
        request = Request(type_url, **fields)
        return self._take(self.connection.receive_untrusted(request, self.snapshot))

    def push(self, new: Snapshot) -> list[str]:
        self.snapshot = new
        return self._take(self.connection.push(new))

    def ack(self, short: str, error: str = "", **fields: Any) -> list[str]:
        response = self.waiting.pop(short)
        return self.ask(response.type_url, nonce=response.nonce, error=error, **fields)

    def _take(self, responses: list[Response]) -> list[str]:
        """Describe what came: "cds a b -c"."""
        out = []
        for r in responses:
            short = SHORT[r.type_url]
            assert short not in self.waiting, "one response of a type at a time"
            self.waiting[short] = r
            self.has[r.type_url].update({x.name: x.version for x in r.resources})
            for name in r.removed:
                self.has[r.type_url].pop(name, None)
            out.append(
                " ".join([short, *(x.name for x in r.resources), *(f"-{n}" for n in r.removed)])
            )
        return out

    def start(self) -> None:
        """Everything it asks for at its start, answered."""
        self.ask(CDS)
        clusters = tuple(self.has[CDS])
        if clusters:
            self.ask(EDS, subscribe=clusters)
            self.ack("eds")
        self.ack("cds")
        self.ask(LDS)
        routes = tuple(self.snapshot.of(RDS))
        if routes:
            self.ask(RDS, subscribe=routes)
            self.ack("rds")
        self.ack("lds")


def started() -> Envoy:
    envoy = Envoy(snapshot(cds={"a": "1"}, eds={"a": "1"}, lds={"l": "1"}, rds={"r": "1"}))
    envoy.start()
    assert envoy.waiting == {}
    return envoy


def test_endpoints_come_again_with_their_cluster() -> None:
    """A changed cluster stays cold until its endpoints come, and Envoy does not ask for them."""
    envoy = started()
    assert envoy.push(snapshot(cds={"a": "2"}, eds={"a": "1"}, lds={"l": "1"}, rds={"r": "1"})) == [
        "cds a",
        "eds a",
    ]


def test_routes_wait_until_clusters_are_warm() -> None:
    """Neither listeners nor routes are sent before Envoy has answered for clusters."""
    envoy = started()
    both = snapshot(
        cds={"a": "1", "b": "1"}, eds={"a": "1", "b": "1"}, lds={"l": "2"}, rds={"r": "2"}
    )
    assert envoy.push(both) == ["cds b"]
    assert envoy.ask(EDS, subscribe=("b",)) == ["eds b"]
    assert envoy.ack("eds") == []
    assert envoy.ack("cds") == ["lds l", "rds r"]


def test_endpoints_do_not_wait_for_clusters() -> None:
    """Envoy answers for clusters when they are warm, which needs the endpoints."""
    envoy = started()
    envoy.push(snapshot(cds={"a": "2"}, eds={"a": "1"}, lds={"l": "1"}, rds={"r": "1"}))
    envoy.ack("eds")
    assert envoy.push(snapshot(cds={"a": "3"}, eds={"a": "2"}, lds={"l": "1"}, rds={"r": "1"})) == [
        "eds a"
    ]
    envoy.ack("eds")
    assert envoy.ack("cds") == ["cds a", "eds a"]


def test_a_cluster_is_taken_away_last() -> None:
    """No route may name a cluster that is gone, not even for a moment."""
    envoy = started()
    moved = snapshot(cds={"b": "1"}, eds={"b": "1"}, lds={"l": "1"}, rds={"r": "2"})
    assert envoy.push(moved) == ["cds b"]
    assert envoy.ask(EDS, subscribe=("b",)) == ["eds b"]
    envoy.ack("eds")
    assert envoy.ack("cds") == ["rds r"]
    assert envoy.ack("rds") == ["cds -a", "eds -a"]
    assert envoy.has[CDS] == {"b": "1"}


def test_a_cluster_that_comes_back_meanwhile_stays() -> None:
    """What was to be taken away and is wanted again is not sent anew."""
    envoy = started()
    envoy.push(snapshot(cds={}, eds={}, lds={"l": "1"}, rds={"r": "2"}))
    assert (
        envoy.push(snapshot(cds={"a": "1"}, eds={"a": "1"}, lds={"l": "1"}, rds={"r": "2"})) == []
    )
    assert envoy.ack("rds") == []
    assert envoy.has[CDS] == {"a": "1"}


def test_only_endpoints_are_sent_when_only_they_change() -> None:
    envoy = started()
    assert envoy.push(snapshot(cds={"a": "1"}, eds={"a": "2"}, lds={"l": "1"}, rds={"r": "1"})) == [
        "eds a"
    ]


def test_a_reconnect_costs_what_changed() -> None:
    """Names with their versions come with the first request: only the rest is sent."""
    now = snapshot(
        cds={"a": "1", "b": "2"}, eds={"a": "1", "b": "2"}, lds={"l": "1"}, rds={"r": "1", "s": "2"}
    )
    envoy = Envoy(now)
    assert envoy.ask(CDS, initial_versions={"a": "1", "b": "1"}) == ["cds b"]
    kept = {"a": "1", "b": "1"}
    # Endpoints of b again: its cluster has changed.
    assert envoy.ask(EDS, subscribe=("a", "b"), initial_versions=kept) == ["eds b"]
    envoy.ack("eds")
    assert envoy.ack("cds") == []
    assert envoy.ask(LDS, initial_versions={"l": "1"}) == ["lds"]
    assert envoy.ask(RDS, subscribe=("r", "s"), initial_versions={"r": "1", "s": "1"}) == ["rds s"]


def test_what_is_gone_at_a_reconnect_goes_after_the_rest() -> None:
    envoy = Envoy(snapshot(cds={"b": "1"}, eds={"b": "1"}, lds={"l": "2"}, rds={}))
    assert envoy.ask(CDS, initial_versions={"a": "1", "b": "1"}) == ["cds"]
    envoy.ack("cds")
    assert envoy.ask(LDS, initial_versions={"l": "1"}) == ["lds l"]
    assert envoy.ack("lds") == ["cds -a"]


def test_a_refused_cluster_does_not_hold_up_the_rest() -> None:
    """A NACK is an answer: routes go on, and the refused state is not sent again."""
    envoy = started()
    envoy.push(snapshot(cds={"a": "bad"}, eds={"a": "1"}, lds={"l": "1"}, rds={"r": "2"}))
    envoy.ack("eds")
    assert envoy.ack("cds", error="no") == ["rds r"]
    (nack,) = envoy.connection.nacks
    assert (nack.type_url, nack.names, nack.error) == (CDS, ("a",), "no")
    assert (
        envoy.push(snapshot(cds={"a": "bad"}, eds={"a": "1"}, lds={"l": "1"}, rds={"r": "2"})) == []
    )


def test_what_was_refused_together_comes_again_alone() -> None:
    """Envoy takes none of several route tables if one is bad, and does not say which."""
    envoy = started()
    three = snapshot(
        cds={"a": "1"}, eds={"a": "1"}, lds={"l": "1"}, rds={"r": "1", "s": "1", "t": "1"}
    )
    envoy.push(three)
    (both,) = envoy.ask(RDS, subscribe=("s", "t"))
    first, second = both.split()[1:]
    assert {first, second} == {"s", "t"}
    envoy.connection.accepted.clear()
    assert envoy.ack("rds", error="a bad regex") == [f"rds {first}"]
    assert envoy.connection.nacks == []
    assert envoy.ack("rds", error="a bad regex") == [f"rds {second}"]
    assert envoy.ack("rds") == []
    (nack,) = envoy.connection.nacks
    assert nack.names == (first,)
    assert [r.name for r in envoy.connection.accepted] == [second]


def test_a_refusal_that_names_its_cause_is_final() -> None:
    envoy = started()
    envoy.push(
        snapshot(
            cds=dict.fromkeys(("a", "bad", "bad.long", "c"), "1"),
            eds={"a": "1"},
            lds={"l": "1"},
            rds={"r": "1"},
        )
    )
    assert envoy.ack("cds", error="Error adding/updating cluster(s) bad: no") == []
    (nack,) = envoy.connection.nacks
    assert nack.names == ("bad",)


NAMES = st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=5),
    st.lists(st.sampled_from(["push", "cds", "eds", "lds", "rds"]), max_size=30),
)
def test_it_ends_with_the_newest_state(states: Any, moves: list[str]) -> None:
    """Whatever order answers come in, Envoy ends with exactly the last snapshot.

    And at no time does it have a route (named as its cluster) without that cluster.
    """

    def make(clusters: dict[str, str], routes: dict[str, str]) -> Snapshot:
        clusters = {**dict.fromkeys(routes, "0"), **clusters}
        return snapshot(cds=clusters, eds=clusters, lds=routes, rds={})

    snapshots = [make(*s) for s in states]
    envoy = Envoy(snapshots[0])
    envoy.start()
    left = snapshots[1:]

    def check() -> None:
        assert set(envoy.has[LDS]) <= set(envoy.has[CDS])

    def subscribe() -> None:
        missing = tuple(n for n in envoy.has[CDS] if n not in envoy.has[EDS])
        if missing:
            envoy.ask(EDS, subscribe=missing)

    for move in [*moves, *["push"] * len(left), *["cds", "eds", "lds", "rds"] * 30]:
        if move == "push" and left:
            envoy.push(left.pop(0))
        elif move in envoy.waiting:
            envoy.ack(move)
        check()
        subscribe()
        check()
    assert envoy.waiting == {}
    for type_url in (CDS, LDS):
        assert envoy.has[type_url] == {
            n: r.version for n, r in snapshots[-1].of(type_url).items()
        }, SHORT[type_url]
    assert envoy.has[EDS] == {n: r.version for n, r in snapshots[-1].of(EDS).items()}
