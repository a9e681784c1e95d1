"""What is said of regular expressions, against what Envoy's own library does."""

from __future__ import annotations

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from waypoint.config.regex import (
    BUDGET,
    MAX_PROGRAM,
    budget,
    fault,
    literal,
    substitution_fault,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.mark.parametrize(
    "pattern",
    ["", "/api/v[0-9]+/.*", "(?i)abc", r"\pN+", "(?P<a>x)", "(?<a>x)", "[[:word:]]", "ä"],
)
def test_what_envoy_takes(pattern: str) -> None:
    assert fault(pattern) == ""


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(?=a)", "invalid perl operator: (?="),  # all of these are fine to Python's re
        (r"(a)\1", r"invalid escape sequence: \1"),
        ("(?<!a)b", "invalid perl operator: (?<"),
        ("a{2000}", "invalid repetition size: {2000}"),
        ("(a", "missing ): (a"),
        ("*", "no argument for repetition operator: *"),
        ("[b-a]", "invalid character class range: b-a"),
        ("\ud800", "not valid Unicode text"),
    ],
)
def test_what_envoy_refuses_and_why(pattern: str, why: str) -> None:
    assert why in fault(pattern)


def test_size_is_bounded() -> None:
    """A pattern of a megabyte, or one that grows to one, is refused with the number."""
    assert fault("a" * (1 << 20)) == f"longer than {MAX_PROGRAM} characters"
    assert "too complex" in fault("((a{10}){10}){10}" * 35)
    assert "too large" in fault("((a{10}){10}){10}" * 400)
    assert fault("/" + "a{1000}") == ""


def test_all_of_an_object_is_bounded_too() -> None:
    """The rest is refused unseen. Repeats count, and the next object has a budget of its own."""
    costly = "a{1000}"
    for _ in range(2):  # the second time all of it is known
        with budget():
            taken = [fault(costly) == "" for _ in range(BUDGET // 1000 + 10)]
            assert BUDGET // 1000 - 2 <= sum(taken) <= BUDGET // 1000 + 1
            assert taken == sorted(taken, reverse=True)
            assert f"at most {BUDGET} instructions" in fault("a")
            assert f"at most {BUDGET} instructions" in substitution_fault("a", "")
    assert fault(costly) == ""


def test_what_is_refused_after_much_work_counts_as_much() -> None:
    """Else an object could hold everybody up with what RE2 gives up on."""
    with budget():
        for i in range(BUDGET // MAX_PROGRAM):
            assert "too large" in fault(rf"\pL{{{300 + i}}}")
        assert "used up" in fault("a")


@pytest.mark.parametrize(
    ("pattern", "substitution", "why"),
    [
        ("(a)(b)", r"\2\1", ""),
        ("a", r"x\0", ""),
        ("a", r"a\\b", ""),
        ("(a)", r"\2", "the pattern has 1 groups"),
        ("a", r"\n", r"only \0 to \9"),
        ("a", "b\\", r"only \0 to \9"),
        ("(", "b", "missing )"),
    ],
)
def test_substitutions(pattern: str, substitution: str, why: str) -> None:
    found = substitution_fault(pattern, substitution)
    assert (why in found) if why else found == ""


@given(TEXT, TEXT)
def test_a_literal_matches_itself_only(text: str, other: str) -> None:
    pattern = literal(text)
    assert fault(pattern) == ""
    assert re2.fullmatch(pattern, text)
    assert bool(re2.fullmatch(pattern, other)) == (other == text)
