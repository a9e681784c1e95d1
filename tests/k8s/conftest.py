"""The cluster that all of these tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.k8s.cluster import Cluster

# `make test-k8s` brings its own; a developer's stays up between runs with AMBIT_CLUSTER=name.
_KEPT = os.environ.get("AMBIT_CLUSTER", "")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes, Ready, nothing installed."""
    found = Cluster(_KEPT or "test")
    if not _KEPT or not found.layout.kubeconfig.exists():
        found.up(print)
    yield found
    if not _KEPT:
        found.down()
