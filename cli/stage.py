"""How the demo speaks: steps, checked facts, tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from mesh.errors import MeshError

BOLD, DIM, GREEN, RED, OFF = (
    ("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m")
    if sys.stdout.isatty()
    else ("", "", "", "", "")
)


class DemoFailed(MeshError):
    """A step did not show what it promised; the message says what was seen instead."""


def say(text: str = "") -> None:
    """Print one line at once."""
    print(text, flush=True)


def step(number: int, title: str, command: str) -> None:
    """Head a step, with the command a reader can type for the same."""
    say(f"\n{BOLD}{number}. {title}{OFF}")
    say(f"{DIM}   $ {command}{OFF}")


def good(text: str) -> None:
    """Print a fact that was checked."""
    say(f"   {GREEN}✓{OFF} {text}")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print aligned columns."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    for r in [head, *rows]:
        say("   " + "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip())


def wait(what: str, ready: Callable[[], Any], seconds: float = 10) -> Any:
    """Poll until ready() is true; its value, or DemoFailed naming what never came."""
    deadline = time.monotonic() + seconds
    while True:
        value = ready()
        if value:
            return value
        if time.monotonic() > deadline:
            raise DemoFailed(f"{what}: not seen within {seconds:.0f} s")
        time.sleep(0.2)
