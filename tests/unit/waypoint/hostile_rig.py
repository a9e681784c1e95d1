"""Junk, and how to put it into any place of a good object."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 70), 1 << 70),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["*", "\0", "\ud800", "1s", "a|b", "(", "mesh", "x" * 20000]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


# Values of the right type that are at the edge of what makes sense, by that type.
EDGES: dict[type, Any] = {
    str: st.sampled_from(
        [
            *(
                "",
                " ",
                "\t",
                "\x01",
                "\x7f",
                "\xe9",
                "\u2028",
                "%",
                "%%",
                "%REQ(x)%",
                "%DOWNSTREAM%",
            ),
            *(
                "a" * 256,
                "a" * 4096,
                "a" * 16384,
                "/" * 300,
                "A",
                "x_y",
                "a|b",
                "a,b",
                "a;b",
                "a=b",
            ),
            *(
                "*",
                "**",
                "*.a",
                ".",
                "..",
                "/",
                "//",
                "/a?b",
                "/a#b",
                "\\",
                "\\1",
                "\\9",
                "$1",
                '"',
            ),
            *("(a)", "[a]", ".*", "(?i)a", "a{1000}", "0s", "1ms", "999us", "87600h", "0.0000001s"),
            *("host", ":authority", ":path", "content-length", "connection", "transfer-encoding"),
            *("503", "5xx", "503,5xx,reset", "mesh", "localhost", "127.0.0.1", "::1", "http://a"),
        ]
    ),
    int: st.sampled_from([-1, 0, 1, 2, 99, 100, 101, 200, 599, 600, 65535, 65536, (1 << 31) - 1])
    | st.sampled_from([1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, 1 << 64, 0.5, 1e-9, 1e300]),
    float: st.sampled_from([0.0, 1e-9, 0.00001, 99.9999999, 100.0, float("inf"), float("nan")]),
    bool: st.booleans(),
    list: st.just([]),
    dict: st.just({}),
}


def edge(draw: st.DrawFn, value: Any, path: tuple[Any, ...]) -> Any:
    """Put a value at the edge of its type into a place of an object; lists may also grow."""
    inner = value
    for step in path:
        inner = inner[step]
    if isinstance(inner, list) and inner and draw(st.booleans()):
        return replaced(value, path, inner * draw(st.sampled_from([2, 3, 40])))
    return replaced(value, path, draw(EDGES[type(inner)]))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    if isinstance(value, list):
        for i, inner in enumerate(value):
            found += places(inner, (*path, i))
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, dict):
        return {k: replaced(v, path[1:], new) if k == path[0] else v for k, v in value.items()}
    return [replaced(v, path[1:], new) if i == path[0] else v for i, v in enumerate(value)]


def added(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Put a field that does not exist into a mapping."""
    inner = value
    for step in path:
        inner = inner[step]
    return replaced(value, path, {**inner, "bogus": new}) if isinstance(inner, dict) else value
