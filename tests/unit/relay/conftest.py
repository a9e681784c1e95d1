"""Every relay test runs on the compiled and on the plain form of the worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from relay_rig import FORMS, Mesh


@pytest.fixture(params=FORMS)
def pure(request: pytest.FixtureRequest) -> bool:
    return request.param == "pure"


@pytest.fixture
def mesh(tmp_path: Path, pure: bool) -> Iterator[Mesh]:
    """Pod a (client), pod b (server, an echo application), their worker."""
    made = Mesh(tmp_path, pure)
    yield made
    made.stop()
