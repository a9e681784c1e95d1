"""Fixtures of the tests that need root and network namespaces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from lab import Lab


@pytest.fixture
def lab() -> Iterator[Callable[..., Lab]]:
    """Make labs (a factory, called as Lab is); all are gone when the test ends."""
    with contextlib.ExitStack() as stack:

        def make(name: str, **how: object) -> Lab:
            return stack.enter_context(Lab(name, **how))  # type: ignore[arg-type]

        yield make
