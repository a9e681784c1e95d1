"""Template text to tokens: what is text, what is an action, and where each began."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mesh.errors import ConfigError


class TemplateError(ConfigError):
    """A template (or the values given to it) cannot work; begins with FILE:LINE."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands."""

    file: str
    line: int

    def error(self, message: str) -> TemplateError:
        """Build the error for what stands here."""
        return TemplateError(f"{self.file}:{self.line}: {message}")


@dataclass(frozen=True, slots=True)
class Token:
    """One word of an action. `glued`: no space before it, as .b in $a.b."""

    kind: str  # string | number | variable | field | dot | word | mark
    text: str
    place: Place
    glued: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Text (tokens None), or the tokens of one {{ action }}."""

    place: Place
    text: str
    tokens: tuple[Token, ...] | None


_OPEN: Final = "{{"
_COMMENT = re.compile(r"\{\{(?:- )?/\*.*?\*/(?: -)?\}\}", re.S)
_ACTION = re.compile(
    r"""\{\{(?:-(?=\s))?
    ((?:"(?:\\.|[^"\\\n])*"|`[^`]*`|(?!\}\})[^"`])*?)
    (?:\s-)?\}\}""",
    re.X | re.S,
)
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)
    |(?P<number>-?\d+(?![\w.]))
    |(?P<variable>\$\w*)
    |(?P<field>\.[A-Za-z_]\w*)
    |(?P<dot>\.)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<mark>:=|[=|(),])""",
    re.X,
)


def split(file: str, source: str) -> Iterator[Piece]:
    """Cut a template into text and actions; trim markers are obeyed, comments are gone."""
    at, text, trim = 0, "", False
    text_place = Place(file, 1)

    def flush(cut: bool) -> Piece | None:
        nonlocal text
        kept = text.lstrip(" \t\r\n") if trim else text
        kept = kept.rstrip(" \t\r\n") if cut else kept
        text = ""
        return Piece(text_place, kept, None) if kept else None

    while (found := source.find(_OPEN, at)) >= 0:
        text = source[at:found]
        place = Place(file, source.count("\n", 0, found) + 1)
        match = _COMMENT.match(source, found) or _ACTION.match(source, found)
        if match is None:
            raise place.error("an action is opened by {{ and never closed")
        whole = match[0]
        if (piece := flush(cut=whole.startswith("{{- "))) is not None:
            yield piece
        if match.re is _ACTION:
            yield Piece(place, "", tuple(_tokens(match[1], place)))
        at, trim = match.end(), whole.endswith(" -}}")
        text_place = Place(file, source.count("\n", 0, at) + 1)
    text = source[at:]
    if (piece := flush(cut=False)) is not None:
        yield piece


def _tokens(action: str, start: Place) -> Iterator[Token]:
    at, line, glued = 0, start.line, False
    while at < len(action):
        match = _TOKEN.match(action, at)
        place = Place(start.file, line)
        if match is None or match.lastgroup is None:
            raise place.error(f"cannot read {action[at : at + 20]!r}")
        if match.lastgroup != "space":
            yield Token(match.lastgroup, match[0], place, glued)
        glued = match.lastgroup != "space"
        line += match[0].count("\n")
        at = match.end()


_ESCAPES: Final = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


def unquote(token: Token) -> str:
    """Read a string literal."""
    body = token.text[1:-1]
    if token.text[0] == "`":
        return body

    def escape(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            raise token.place.error(f"escape \\{match[1]} is not supported")
        return _ESCAPES[match[1]]

    return re.sub(r"\\(.)", escape, body)
