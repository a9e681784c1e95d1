"""A tree to text: what a template says about these values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cli.chart.functions import FUNCTIONS, shown, truth
from cli.chart.lex import Place
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

_MAX_DEPTH: Final = 50
_LAZY: Final = ("and", "or", "include")


class Scope:
    """Variables by name, the innermost block's first."""

    def __init__(self, outer: Scope | None = None) -> None:
        """Open a block inside another."""
        self._outer = outer
        self._own: dict[str, Any] = {}

    def declare(self, name: str, value: Any) -> None:
        """Make a variable of this block."""
        self._own[name] = value

    def assign(self, name: str, value: Any, place: Place) -> None:
        """Change a variable of this block or one around it."""
        holder = self._holder(name, place)
        holder[name] = value

    def read(self, name: str, place: Place) -> Any:
        """Return a variable's value."""
        return self._holder(name, place)[name]

    def _holder(self, name: str, place: Place) -> dict[str, Any]:
        scope: Scope | None = self
        while scope is not None:
            if name in scope._own:
                return scope._own
            scope = scope._outer
        raise place.error(f"no variable {name}")


class Runner:
    """Runs bodies with the templates they may include."""

    def __init__(self, templates: Mapping[str, Body]) -> None:
        """Take the templates by name."""
        self._templates = templates
        self._depth = 0

    def run(self, body: Body, dot: Any) -> str:
        """Render a body; raises TemplateError."""
        scope = Scope()
        scope.declare("$", dot)
        return self._body(body, dot, scope)

    def _body(self, body: Body, dot: Any, scope: Scope) -> str:
        return "".join(self._node(node, dot, scope) for node in body)

    def _node(self, node: Node, dot: Any, scope: Scope) -> str:
        match node:
            case Text():
                return node.text
            case Output():
                value = self._pipeline(node.value, dot, scope)
                return str(_guarded(node.place, shown, value))
            case Assign():
                value = self._pipeline(node.value, dot, scope)
                if node.declare:
                    scope.declare(node.name, value)
                else:
                    scope.assign(node.name, value, node.place)
                return ""
            case If():
                return self._if(node, dot, scope)
            case With():
                return self._with(node, dot, scope)
            case Range():
                return self._range(node, dot, scope)

    def _if(self, node: If, dot: Any, scope: Scope) -> str:
        inner = Scope(scope)
        for condition, body in node.branches:
            if truth(self._pipeline(condition, dot, inner)):
                return self._body(body, dot, inner)
        return self._body(node.otherwise, dot, inner)

    def _with(self, node: With, dot: Any, scope: Scope) -> str:
        value = self._pipeline(node.value, dot, scope)
        inner = Scope(scope)
        if not truth(value):
            return self._body(node.otherwise, dot, inner)
        if node.variable:
            inner.declare(node.variable, value)
        return self._body(node.body, value, inner)

    def _range(self, node: Range, dot: Any, scope: Scope) -> str:
        value = self._pipeline(node.value, dot, scope)
        if isinstance(value, Mapping):
            items = [(key, value[key]) for key in sorted(value)]
        elif isinstance(value, list):
            items = list(enumerate(value))
        else:
            raise node.place.error("range needs a list or a map")
        if not items:
            return self._body(node.otherwise, dot, Scope(scope))
        out = []
        for pair in items:
            inner = Scope(scope)
            for name, part in zip(node.variables, pair[-len(node.variables) :], strict=False):
                inner.declare(name, part)
            out.append(self._body(node.body, pair[1], inner))
        return "".join(out)

    # ---- values ------------------------------------------------------------------------------

    def _pipeline(self, pipeline: Pipeline, dot: Any, scope: Scope) -> Any:
        value = self._term(pipeline.commands[0], dot, scope)
        for command in pipeline.commands[1:]:
            if not isinstance(command, Call):
                raise pipeline.place.error("only a function can be given a value by |")
            value = self._call(command, dot, scope, [value])
        return value

    def _term(self, term: Term, dot: Any, scope: Scope) -> Any:
        match term:
            case Literal():
                return term.value
            case Pipeline():
                return self._pipeline(term, dot, scope)
            case Call():
                return self._call(term, dot, scope, [])
            case Lookup():
                return self._lookup(term, dot, scope)

    def _lookup(self, term: Lookup, dot: Any, scope: Scope) -> Any:
        if isinstance(term.root, Pipeline):
            value, path = self._pipeline(term.root, dot, scope), "(...)"
        elif term.root == ".":
            value, path = dot, ""
        else:
            value, path = scope.read(term.root, term.place), term.root
        for field in term.fields:
            path += f".{field}"
            if not isinstance(value, Mapping) or field not in value:
                raise term.place.error(f"there is no {path}")
            value = value[field]
        return value

    def _call(self, call: Call, dot: Any, scope: Scope, piped: list[Any]) -> Any:
        if call.function in _LAZY:
            return self._lazy(call, dot, scope, piped)
        arguments = [self._term(a, dot, scope) for a in call.arguments] + piped
        if isinstance(call.function, Lookup):
            function = self._lookup(call.function, dot, scope)
            if not callable(function):
                raise call.place.error("this value is no function and takes no arguments")
        elif call.function in FUNCTIONS:
            function = FUNCTIONS[call.function]
        else:
            raise call.place.error(f"function {call.function!r} is not supported")
        return _guarded(call.place, function, *arguments)

    def _lazy(self, call: Call, dot: Any, scope: Scope, piped: list[Any]) -> Any:
        if call.function == "include":
            values = [self._term(a, dot, scope) for a in call.arguments] + piped
            return self._include(call.place, *values)
        value: Any = None
        if not call.arguments and not piped:
            raise call.place.error(f"{call.function} needs an argument")
        for argument in call.arguments:
            value = self._term(argument, dot, scope)
            if truth(value) is (call.function == "or"):
                return value
        return piped[0] if piped else value

    def _include(self, place: Place, *values: Any) -> str:
        if len(values) != 2 or values[0] not in self._templates:
            raise place.error(f"include needs a template's name and a value, not {values[:1]}")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise place.error(f"{values[0]!r} includes itself without end")
        try:
            return self.run(self._templates[values[0]], values[1])
        finally:
            self._depth -= 1


def _guarded(place: Place, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (ValueError, TypeError) as e:
        raise place.error(str(e)) from e
