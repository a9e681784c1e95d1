"""What Envoy refuses: what worked stays, and the one bad part of a listener is found."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.waypoints.refusals import Refusals, Trial
from mesh.manifest import Key
from mesh.xds.delta import Resource


def resource(name: str, version: str) -> Resource:
    return Resource(name, version, "t", version.encode())


def served(refusals: Refusals, **wanted: str) -> dict[str, str]:
    here = {"t": {n: resource(n, v) for n, v in wanted.items()}}
    refusals.serve(here)
    return {n: r.version for n, r in here["t"].items()}


def test_what_was_accepted_is_served_instead() -> None:
    r = Refusals()
    r.accept(resource("a", "1"))
    assert r.refuse(resource("a", "2"), "no")
    assert not r.refuse(resource("a", "2"), "no")  # a second Envoy says the same
    assert served(r, a="2", b="1") == {"a": "1", "b": "1"}
    assert r.errors == {("t", "a"): "no"}
    assert served(r, a="3") == {"a": "3"}
    assert r.errors == {}


def test_what_was_never_accepted_stays_where_it_is() -> None:
    """Taking it away could take what an Envoy has kept from before."""
    r = Refusals()
    r.refuse(resource("a", "1"), "no")
    assert served(r, a="1") == {"a": "1"}
    assert r.errors == {("t", "a"): "no"}


def test_one_envoys_refusal_of_what_another_took_changes_nothing() -> None:
    r = Refusals()
    r.accept(resource("a", "1"))
    assert not r.refuse(resource("a", "1"), "no")
    assert served(r, a="1") == {"a": "1"}


def key(name: str) -> Key:
    return Key("Service", "shop", name)


class Envoy:
    """Takes a listener when none of its parts is bad; answers the two listeners one by one."""

    def __init__(self, bad: set[str]) -> None:
        self.bad = bad
        self.has: dict[str, str] = {}
        self.version = 0
        self.steps = 0

    def settle(self, trial: Trial, parts: dict[str, str]) -> None:
        """Serve until nothing is to be served otherwise."""
        wanted = {key(k): v for k, v in parts.items()}
        again = True
        while again:
            self.steps += 1
            assert self.steps < 500
            testing = trial.active
            chosen = trial.choose_trial(wanted) if testing else trial.choose(wanted)
            self.version += 1
            trial.made(str(self.version), chosen, testing)
            if any(v in self.bad for v in chosen.values()):
                again = trial.refuse(str(self.version), "bad", testing)
            else:
                again = trial.accept(str(self.version), testing) or testing
                if not testing:
                    self.has = {k.name: v for k, v in chosen.items()}


def test_a_bad_change_among_many_is_found_and_stays_as_it_was() -> None:
    parts = {f"s{i}": "1" for i in range(1000)}
    trial, envoy = Trial(), Envoy({"bad"})
    envoy.settle(trial, parts)
    assert len(envoy.has) == 1000
    changed = {**parts, **{f"s{i}": "2" for i in range(0, 1000, 2)}, "s500": "bad"}
    envoy.steps = 0
    envoy.settle(trial, changed)
    assert envoy.has == {**changed, "s500": "1"}
    assert [k.name for k in trial.bad] == ["s500"]
    assert envoy.steps < 25
    # Others go on; the bad one is tried again when it is another.
    envoy.settle(trial, {**changed, "s1": "3"})
    assert envoy.has["s1"] == "3"
    envoy.settle(trial, {**changed, "s500": "4"})
    assert envoy.has["s500"] == "4"
    assert trial.bad == {}


def test_what_is_bad_from_the_beginning_is_left_out() -> None:
    trial, envoy = Trial(), Envoy({"bad"})
    envoy.settle(trial, {"a": "1", "b": "bad", "c": "1"})
    assert envoy.has == {"a": "1", "c": "1"}


def test_a_part_that_goes_while_it_is_tried() -> None:
    """The trial goes on with the others."""
    trial = Trial()
    parts = {key("a"): "x", key("b"): "1", key("c"): "1"}
    trial.made("1", trial.choose(parts), False)
    assert trial.refuse("1", "no", False)
    assert list(trial.choose_trial(parts)) == [key("a")]
    del parts[key("a")]
    trial.made("2", trial.choose_trial(parts), True)
    assert trial.accept("2", True)
    assert set(trial.choose_trial(parts)) == {key("b"), key("c")}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([f"s{i}" for i in range(12)]), st.sampled_from(["1", "2", "x", "y"])
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_good_part_arrives(states: list[dict[str, str]]) -> None:
    """However many are bad: the good ones are as wanted, the bad ones as they were good last."""
    trial, envoy = Trial(), Envoy({"x", "y"})
    last: dict[str, str] = {}
    for parts in states:
        envoy.settle(trial, parts)
        last = {
            k: v if v not in envoy.bad else last.get(k, "")
            for k, v in parts.items()
            if v not in envoy.bad or k in last
        }
        assert envoy.has == last
        assert {k.name for k in trial.bad} == {k for k, v in parts.items() if v in envoy.bad}
