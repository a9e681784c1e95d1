"""The one error a benchmark ends with."""

from __future__ import annotations

from mesh.errors import MeshError


class BenchError(MeshError):
    """A measurement cannot be trusted or taken; the message says why and what to do."""
