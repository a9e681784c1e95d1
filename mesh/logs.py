"""Logging: one stream (stderr), levels by scope, changeable while running.

A scope is the name of a Python logger, or a short name that the process has for one (`access`).
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from collections.abc import Mapping
from typing import Final

from mesh.errors import BadInput

_LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 10,
}
_NAMES: Final = {logging.WARNING: "warn", logging.CRITICAL + 10: "off"}
_SCOPES: Final = {"access": "access", "xds": "mesh.xds", "ca": "mesh.ca"}


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "level": _name(record.levelno),
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(),
            "scope": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Levels:
    """The levels in force; `scopes`: this process's short names of loggers.

    Raises BadInput on a specification it cannot read.
    """

    def __init__(self, start: str, scopes: Mapping[str, str] | None = None) -> None:
        self._names = {**_SCOPES, **(scopes or {})}
        self._start = parse(start)
        self._scopes: dict[str, int] = {}
        self.reset()

    def reset(self) -> None:
        """Go back to the levels of the start."""
        for scope in self._scopes:
            logging.getLogger(self._logger(scope)).setLevel(logging.NOTSET)
        self._scopes = {}
        self._apply(self._start)

    def set(self, text: str) -> None:
        """Change some: `debug`, `access=debug`, `info,access=debug` (or a colon)."""
        self._apply(parse(text))

    def _apply(self, levels: dict[str, int]) -> None:
        for scope, level in levels.items():
            logging.getLogger(self._logger(scope) if scope else None).setLevel(level)
            if scope:
                self._scopes[scope] = level

    def _logger(self, scope: str) -> str:
        return self._names.get(scope, scope.replace("::", "."))

    @property
    def root(self) -> str:
        """The level of everything without its own."""
        return _name(logging.getLogger().level)

    @property
    def for_workers(self) -> str:
        """The same as Python's logging names it; workers that start later take it over."""
        return logging.getLevelName(min(logging.getLogger().level, logging.CRITICAL))

    def __str__(self) -> str:
        """Render as it could be set."""
        own = [f"{scope}={_name(level)}" for scope, level in sorted(self._scopes.items())]
        return ",".join([self.root, *own])


def parse(text: str) -> dict[str, int]:
    """Read a specification: scope ("" is everything) to level; raises BadInput."""
    levels: dict[str, int] = {}
    for part in text.split(","):
        scope, _, level = part.strip().replace(":", "=").rpartition("=")
        if level.lower() not in _LEVELS:
            raise BadInput(
                f"log level {part[:100]!r}: write LEVEL or SCOPE=LEVEL, LEVEL one of"
                f" {', '.join(_LEVELS)}"
            )
        levels[scope.strip()] = _LEVELS[level.lower()]
    return levels


def _name(level: int) -> str:
    return _NAMES.get(level, logging.getLevelName(level).lower())


def setup(levels: str, json_format: bool, scopes: Mapping[str, str] | None = None) -> Levels:
    """Log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter()
        if json_format
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    )
    logging.basicConfig(handlers=[handler], force=True)
    return Levels(levels, scopes)


def write(lines: str) -> None:
    """Write finished lines beside what logging writes."""
    sys.stderr.write(lines)
    sys.stderr.flush()
