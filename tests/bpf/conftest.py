"""One node for all tests (loading takes seconds); each test starts with nothing captured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hook_rig import Rig

from bpf.datapath import Datapath


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    made = Rig()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def datapath(rig: Rig) -> Iterator[Datapath]:
    opened = rig.open()
    try:
        yield opened
    finally:
        for uid in list(opened.captured()):
            opened.release(uid)
        opened.close()
        rig.quiet()


@pytest.fixture
def fresh() -> Iterator[Rig]:
    """A node of this test's own."""
    made = Rig()
    try:
        yield made
    finally:
        made.remove()
