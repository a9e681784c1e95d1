"""Tokens to a tree. The grammar is Go's text/template, less what our chart does without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cli.chart.lex import Piece, Place, Token, split, unquote
from cli.chart.tree import (
    Assign,
    Body,
    Call,
    If,
    Literal,
    Lookup,
    Node,
    Output,
    Pipeline,
    Range,
    Term,
    Text,
    With,
)

_CONSTANTS: Final = {"true": True, "false": False, "nil": None}
_BLOCKS: Final = ("if", "with", "range", "define")
_UNSUPPORTED: Final = ("template", "block", "break", "continue")


def parse(file: str, source: str) -> tuple[Body, dict[str, Body]]:
    """Read one file: (what it says, the templates it defines); raises TemplateError."""
    reader = _Reader(file, list(split(file, source)))
    body, end, _ = reader.body(Place(file, 1), ())
    assert end == ""
    return body, reader.defined


class _Reader:
    """Reads pieces into nodes."""

    def __init__(self, file: str, pieces: Sequence[Piece]) -> None:
        self.defined: dict[str, Body] = {}
        self._file = file
        self._pieces = pieces
        self._at = 0

    def body(self, opened: Place, ends: tuple[str, ...]) -> tuple[Body, str, _Action | None]:
        """Read until one of `ends` ("" stands for the end of the file)."""
        nodes: list[Node] = []
        while self._at < len(self._pieces):
            piece = self._pieces[self._at]
            self._at += 1
            if piece.tokens is None:
                nodes.append(Text(piece.text))
                continue
            action = _Action(piece.place, piece.tokens)
            word = action.peek("word")
            if word in ("end", "else"):
                if word not in ends:
                    raise piece.place.error(f"{{{{ {word} }}}} without a block that it belongs to")
                action.take()
                return tuple(nodes), word, action
            if word in _UNSUPPORTED:
                raise piece.place.error(f"{{{{ {word} }}}} is not supported")
            if word in _BLOCKS:
                action.take()
                nodes += self._block(word, action)
            else:
                nodes.append(action.statement())
        if ends:
            raise opened.error("this block is never closed: {{ end }} is missing")
        return tuple(nodes), "", None

    def _block(self, word: str, action: _Action) -> list[Node]:
        place = action.place
        if word == "define":
            name = action.string()
            action.finish()
            body, _, _ = self._closed(place, ("end",))
            if name in self.defined:
                raise place.error(f"template {name!r} is defined twice")
            self.defined[name] = body
            return []
        if word == "if":
            return [self._if(action)]
        names = action.variables(2 if word == "range" else 1)
        value = action.pipeline()
        action.finish()
        body, otherwise = self._with_else(place)
        if word == "range":
            return [Range(names, value, body, otherwise, place)]
        return [With(names[0] if names else "", value, body, otherwise, place)]

    def _if(self, action: _Action) -> If:
        place = action.place
        branches = []
        condition = action.pipeline()
        action.finish()
        while True:
            body, end, rest = self._closed(place, ("else", "end"))
            branches.append((condition, body))
            if end == "end":
                return If(tuple(branches), (), place)
            if rest.peek("word") != "if":
                rest.finish()
                otherwise, _, _ = self._closed(place, ("end",))
                return If(tuple(branches), otherwise, place)
            rest.take()
            condition = rest.pipeline()
            rest.finish()

    def _with_else(self, place: Place) -> tuple[Body, Body]:
        body, end, action = self._closed(place, ("else", "end"))
        action.finish()
        if end == "end":
            return body, ()
        otherwise, _, _ = self._closed(place, ("end",))
        return body, otherwise

    def _closed(self, opened: Place, ends: tuple[str, ...]) -> tuple[Body, str, _Action]:
        body, end, action = self.body(opened, ends)
        assert action is not None
        if end == "end" or ends == ("end",):
            action.finish()
        return body, end, action


class _Action:
    """The tokens of one action."""

    def __init__(self, place: Place, tokens: Sequence[Token]) -> None:
        self.place = place
        self._tokens = tokens
        self._at = 0

    def peek(self, kind: str) -> str:
        """Return the next token's text if it is of this kind, else ""."""
        token = self._next()
        return token.text if token is not None and token.kind == kind else ""

    def take(self) -> Token:
        """Return the next token and go on."""
        token = self._next()
        if token is None:
            raise self.place.error("the action ends too early")
        self._at += 1
        return token

    def finish(self) -> None:
        """Expect the end."""
        token = self._next()
        if token is not None:
            raise token.place.error(f"unexpected {token.text!r}")

    def string(self) -> str:
        """Expect a string literal."""
        token = self.take()
        if token.kind != "string":
            raise token.place.error(f"a string is needed, not {token.text!r}")
        return unquote(token)

    def variables(self, most: int) -> tuple[str, ...]:
        """Read `$a, $b :=` if that is what comes."""
        start, names = self._at, []
        while self.peek("variable"):
            names.append(self.take().text)
            mark = self.peek("mark")
            if mark == "," and len(names) < most:
                self.take()
                continue
            if mark == ":=":
                self.take()
                return tuple(names)
            break
        self._at = start
        return ()

    def statement(self) -> Node:
        """Read an assignment or a value to print."""
        names, start = self.variables(1), self._at
        if names:
            value = self.pipeline()
            self.finish()
            return Assign(names[0], value, True, self.place)
        if self.peek("variable"):
            name = self.take().text
            if self.peek("mark") == "=":
                self.take()
                value = self.pipeline()
                self.finish()
                return Assign(name, value, False, self.place)
            self._at = start
        value = self.pipeline()
        self.finish()
        return Output(value, self.place)

    def pipeline(self) -> Pipeline:
        """Read commands joined by bars, up to a bracket or the end."""
        commands = [self._command()]
        while self.peek("mark") == "|":
            self.take()
            commands.append(self._command())
        return Pipeline(tuple(commands), self.place)

    def _command(self) -> Term:
        token = self._next()
        if token is not None and token.kind == "word" and token.text not in _CONSTANTS:
            self.take()
            return Call(token.text, self._arguments(), token.place)
        first = self._term()
        arguments = self._arguments()
        if not arguments:
            return first
        if not isinstance(first, Lookup):
            raise self.place.error("only a function can be given arguments")
        return Call(first, arguments, first.place)

    def _arguments(self) -> tuple[Term, ...]:
        found: list[Term] = []
        while (token := self._next()) is not None:
            if token.kind == "mark" and token.text != "(":
                break
            found.append(self._term())
        return tuple(found)

    def _term(self) -> Term:
        token = self.take()
        match token.kind:
            case "string":
                return Literal(unquote(token), token.place)
            case "number":
                return Literal(int(token.text), token.place)
            case "word" if token.text in _CONSTANTS:
                return Literal(_CONSTANTS[token.text], token.place)
            case "word":  # a function without arguments
                return Call(token.text, (), token.place)
            case "dot":
                return Lookup(".", (), token.place)
            case "field":
                return Lookup(".", (token.text[1:], *self._fields()), token.place)
            case "variable":
                return Lookup(token.text, self._fields(), token.place)
        if token.text != "(":
            raise token.place.error(f"unexpected {token.text!r}")
        inner = self.pipeline()
        if self.peek("mark") != ")":
            raise token.place.error("this bracket is never closed")
        self.take()
        fields = self._fields()
        return Lookup(inner, fields, token.place) if fields else inner

    def _fields(self) -> tuple[str, ...]:
        found = []
        while (token := self._next()) is not None and token.kind == "field" and token.glued:
            found.append(self.take().text[1:])
        return tuple(found)

    def _next(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None
