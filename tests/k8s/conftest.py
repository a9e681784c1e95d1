"""The cluster that all of these tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.k8s.cluster import Cluster
from tests.k8s.installed import Mesh, ambit, gateway_crds, load_images

# `make test-k8s` brings its own; a developer's stays up between runs with AMBIT_CLUSTER=name.
_KEPT = os.environ.get("AMBIT_CLUSTER", "")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes, Ready, nothing installed."""
    # One for each of pytest-xdist's workers: they have the same addresses and do not meet.
    found = Cluster(_KEPT or f"test{os.environ.get('PYTEST_XDIST_WORKER', '')}")
    if not _KEPT or not found.layout.kubeconfig.exists():
        found.up(print)
    yield found
    if not _KEPT:
        found.down()


@pytest.fixture(scope="session")
def mesh(cluster: Cluster) -> Mesh:
    """The mesh, installed with the demo profile."""
    if not _KEPT or not os.environ.get("AMBIT_MESH_INSTALLED"):
        load_images(cluster)
        done = ambit(
            cluster, "install", "--profile", "demo", "-y", "--gateway-api-crds", str(gateway_crds())
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return Mesh(cluster)
