"""Lines for a person who waits: what is done, what is under way, what is wrong."""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

from cli.cluster.checks import ERROR, NOTE, OK, WARN, Check
from cli.output import printable

_REPEAT: Final = (
    10.0  # seconds between lines of what is under way, where a line cannot be rewritten
)
_MARKS: Final = {OK: ("✔", "ok"), NOTE: ("·", "note"), WARN: ("!", "!"), ERROR: ("✘", "error")}


class Console:
    """Writes to a terminal, where the last line may change, or to a file, where it may not."""

    def __init__(self, out: TextIO | None = None) -> None:
        """Take where to write; standard output by default."""
        self._out = out or sys.stdout
        self._live = self._out.isatty()
        self._pending = ""
        self._said = 0.0
        self._started = time.monotonic()
        encoding = (getattr(self._out, "encoding", None) or "ascii").lower()
        self._column = 0 if encoding.replace("-", "").startswith("utf8") else 1

    def line(self, text: str = "") -> None:
        """Write a line."""
        self._clear()
        self._write("\n".join(printable(part) for part in text.split("\n")) + "\n")

    def mark(self, level: str, text: str) -> None:
        """Write a line with a mark in front."""
        self.line(f"{_MARKS[level][self._column]} {text}")

    def done(self, text: str, seconds: float | None = None) -> None:
        """Write what has been done."""
        self.mark(OK, text if seconds is None else f"{text} ({seconds:.1f} s)")

    def check(self, check: Check) -> None:
        """Write a finding and what to do about it."""
        self.mark(check.level, check.what)
        if check.next:
            self.line(f"    next: {check.next}")

    def doing(self, text: str) -> None:
        """Say what is under way; replaced by whatever comes next."""
        if self._live:
            if text != self._pending:
                self._clear()
                self._write(f"  {printable(text)}")
                self._pending = text
            return
        now = time.monotonic()
        if not self._said:
            self._said = now
        elif now - self._said >= _REPEAT:
            self._said = now
            self._write(f"  {printable(text)}\n")

    def ask(self, question: str) -> bool:
        """Ask for a yes; no where nobody can answer."""
        self._clear()
        if not sys.stdin.isatty():
            self.line(f"{question}: nobody can answer here, give -y")
            return False
        self._write(f"{question} [y/N] ")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def elapsed(self) -> float:
        """Seconds since this began."""
        return time.monotonic() - self._started

    def _clear(self) -> None:
        if self._pending:
            self._write("\r\x1b[K")
            self._pending = ""
        self._said = 0.0

    def _write(self, text: str) -> None:
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        self._out.write(text.encode(encoding, "replace").decode(encoding))
        self._out.flush()
