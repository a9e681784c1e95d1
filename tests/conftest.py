"""What every test begins with."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Hear Ctrl-C: a shell lets what it starts in the background, and all below it, ignore that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
