"""What a template consists of, once it is read."""

from __future__ import annotations

from dataclasses import dataclass

from cli.chart.lex import Place


@dataclass(frozen=True, slots=True)
class Literal:
    """A string, a whole number, true, false or nil."""

    value: object
    place: Place


@dataclass(frozen=True, slots=True)
class Lookup:
    """Fields of the dot ("."), of a variable ("$name"), or of a bracketed pipeline."""

    root: str | Pipeline
    fields: tuple[str, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Call:
    """A function by its name, or a value that may be called (.Capabilities.APIVersions.Has)."""

    function: str | Lookup
    arguments: tuple[Term, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The result of each becomes the last argument of the next."""

    commands: tuple[Term, ...]
    place: Place


Term = Literal | Lookup | Call | Pipeline


@dataclass(frozen=True, slots=True)
class Text:
    """Goes out as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Output:
    """A value that goes out as text."""

    value: Pipeline
    place: Place


@dataclass(frozen=True, slots=True)
class Assign:
    """`$name := value` (declare) or `$name = value`."""

    name: str
    value: Pipeline
    declare: bool
    place: Place


@dataclass(frozen=True, slots=True)
class If:
    """The first branch whose condition holds, or else `otherwise`."""

    branches: tuple[tuple[Pipeline, Body], ...]
    otherwise: Body
    place: Place


@dataclass(frozen=True, slots=True)
class With:
    """The body with the value as dot, or as `variable` too."""

    variable: str
    value: Pipeline
    body: Body
    otherwise: Body
    place: Place


@dataclass(frozen=True, slots=True)
class Range:
    """The body for each item; `variables` are none, value, or key and value."""

    variables: tuple[str, ...]
    value: Pipeline
    body: Body
    otherwise: Body
    place: Place


Node = Text | Output | Assign | If | With | Range
Body = tuple[Node, ...]
