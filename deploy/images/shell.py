"""Running other programs, and telling what is going on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from deploy.images.errors import ImageError

_TAIL: Final = 12  # lines of a failed program's output that an error shows


def say(text: str) -> None:
    """One line of progress."""
    sys.stderr.write(f"==> {text}\n")


def run(
    command: Iterable[str | Path],
    what: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program; its standard output. Raises ImageError with `what` and its last words."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as e:
        raise ImageError(f"{what}: {words[0]} is not installed") from e
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-_TAIL:]
        raise ImageError("\n".join([f"{what}: {words[0]} failed:", *said]))
    return done.stdout
