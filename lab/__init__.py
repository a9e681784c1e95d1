"""A mini-cluster of network namespaces on one machine, for the demo, the tests and the benchmarks.

`from lab import Lab` is the door. It is opened on first use: pods run programs of this package
(lab.apps), which must not pay for the manager's imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.api import Lab

__all__ = ["Lab"]


def __getattr__(name: str) -> Any:
    """Import the door when somebody knocks (PEP 562)."""
    if name == "Lab":
        from lab.api import Lab

        return Lab
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
