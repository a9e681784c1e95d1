"""Templates are read as Go reads them, or refused with file and line."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.chart.lex import TemplateError
from cli.chart.parse import parse
from cli.chart.run import Runner

VALUES: dict[str, Any] = {
    "name": "web",
    "empty": "",
    "on": True,
    "off": False,
    "two": 2,
    "million": 1_000_000,
    "list": ["a", "b"],
    "none": [],
    "map": {"b": "2", "a": "1"},
    "deep": {"er": {"est": "x"}},
    "has": {"a"}.__contains__,
}


def render(source: str, values: Any = None) -> str:
    body, defined = parse("t.yaml", source)
    return Runner(defined).run(body, VALUES if values is None else values)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a {{ .name }} b", "a web b"),
        ("{{ .deep.er.est }}{{ (.deep).er.est }}", "xx"),
        ("a\n  {{- .name -}}  \n b", "awebb"),
        ("a {{- /* gone }} */ -}} b", "ab"),
        ("a {{/* gone */}} b", "a  b"),
        ('{{ "a}}b" }}{{ `c"d` }}', 'a}}bc"d'),
        (r'{{ "a\"\n" }}', 'a"\n'),
        ("{{ -3 }}{{ true }}{{ .two }}", "-3true2"),
        # blocks
        ("{{ if .on }}y{{ else }}n{{ end }}", "y"),
        ("{{ if .off }}1{{ else if .empty }}2{{ else if .none }}3{{ else }}4{{ end }}", "4"),
        ("{{ with .name }}{{ . }}{{ $.two }}{{ end }}", "web2"),
        ("{{ with .empty }}a{{ else }}{{ .name }}{{ end }}", "web"),
        ("{{ with $x := .name }}{{ $x }}{{ end }}", "web"),
        ("{{ range .list }}[{{ . }}]{{ end }}", "[a][b]"),
        ("{{ range $x := .list }}{{ $x }}{{ end }}", "ab"),
        ("{{ range $i, $x := .list }}{{ $i }}{{ $x }}{{ end }}", "0a1b"),
        ("{{ range $k, $v := .map }}{{ $k }}={{ $v }};{{ end }}", "a=1;b=2;"),
        ("{{ range .none }}a{{ else }}none{{ end }}", "none"),
        # variables
        ("{{ $x := .name }}{{ $x }}", "web"),
        ("{{ $x := 1 }}{{ if .on }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        ("{{ $x := 1 }}{{ if .on }}{{ $x := 2 }}{{ end }}{{ $x }}", "1"),
        ("{{ $m := .deep }}{{ $m.er.est }}", "x"),
        # functions
        ('{{ default "d" .empty }}{{ .name | default "d" }}', "dweb"),
        ("{{ .name | quote }}{{ .two | quote }}{{ .on | quote }}", '"web""2""true"'),
        (r"{{ `a\b` | quote }}", r'"a\\b"'),
        ("{{ toYaml .list | nindent 2 }}", "\n  - a\n  - b"),
        ("x: {{- toYaml .map | nindent 2 }}", 'x:\n  a: "1"\n  b: "2"'),
        ('{{ printf "%s-%d" .name .two }}', "web-2"),
        ('{{ eq .name "a" "web" }}{{ ne .name "web" }}{{ gt .two 1 }}', "truefalsetrue"),
        ('{{ and .on .name }}{{ or .empty "x" }}{{ not .on }}', "webxfalse"),
        ('{{ .name | and .off }}{{ "z" | or .off }}', "falsez"),
        ('{{ ternary "a" "b" .off }}', "b"),
        ('{{ hasKey .map "a" }}{{ hasKey .map "z" }}', "truefalse"),
        ('{{ .has "a" }}{{ .has "b" }}', "truefalse"),
        ('{{ dir "/run/c/c.sock" }}{{ trimSuffix "/" "a/" }}{{ trunc 2 "abc" }}', "/run/caab"),
        ('{{ range list "a" "b" }}{{ . }}{{ end }}', "ab"),
        ('{{ int "7" }}{{ replace "a" "b" "cat" }}{{ lower "A" }}{{ trim " x " }}', "7cbtax"),
        # templates
        ('{{ define "t" }}<{{ . }}>{{ end }}{{ include "t" .name }}', "<web>"),
        ('{{ define "t" }}{{ .a }}{{ $.a }}{{ end }}{{ include "t" (dict "a" .two) }}', "22"),
        ('{{ define "t" }}a\nb{{ end }}{{ include "t" . | nindent 1 }}', "\n a\n b"),
    ],
)
def test_it_says_what_go_would_say(source: str, expected: str) -> None:
    """One line per construct that the chart may use."""
    assert render(source) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{{ .nothing }}", "t.yaml:2: there is no .nothing"),
        ("{{ .deep.er.nothing.more }}", "t.yaml:1: there is no .deep.er.nothing"),
        ("{{ .name.sub }}", "there is no .name.sub"),
        ("{{ $x }}", r"no variable \$x"),
        ("{{ if .on }}{{ $x := 1 }}{{ end }}{{ $x }}", "no variable"),
        ("{{ $x = 1 }}", "no variable"),
        ("\n\n{{ .name ", "t.yaml:3: an action is opened"),
        ("\n{{ if .on }}\n\n", "t.yaml:2: this block is never closed"),
        ("{{ end }}", "without a block"),
        ("{{ if .on }}{{ else }}{{ else }}{{ end }}", "without a block"),
        ("{{ range .list }}{{ else if .on }}{{ end }}", "unexpected 'if'"),
        ('{{ template "t" . }}', "not supported"),
        ("{{ range .list }}{{ break }}{{ end }}", "not supported"),
        ("{{ upper .name }}", "function 'upper' is not supported"),
        ("{{ .list }}", "a list cannot be printed"),
        ("{{ .map }}", "a map cannot be printed"),
        ("{{ nil }}", "nil cannot be printed"),
        ("{{ .million }}", "printed as a float by Helm"),
        ("{{ 1.5 }}", "cannot read"),
        ("{{ eq .name 1 }}", "cannot be compared"),
        ("{{ .name 1 }}", "takes no arguments"),
        ('{{ "a" .name }}', "only a function"),
        ('{{ "a" | .name }}', "only a function|no function"),
        ("{{ (.name }}", "never closed"),
        ("{{ .name | }}", "ends too early"),
        ("{{ nindent 2 }}", "missing 1 required"),
        ('{{ nindent "2" .name }}', "whole number"),
        ('{{ include "nothing" . }}', "include needs"),
        ('{{ define "t" }}{{ include "t" . }}{{ end }}{{ include "t" . }}', "without end"),
        ('{{ define "t" }}{{ end }}{{ define "t" }}{{ end }}', "defined twice"),
        ('{{ fail "no such thing" }}', "t.yaml:1: no such thing"),
        ('{{ required "name it" .empty }}', "name it"),
        ('{{ "a\\q" }}', "escape"),
        ('{{ printf "%v" .name }}', "only %s and %d"),
        ("{{ range .name }}{{ end }}", "needs a list or a map"),
        ("{{ if .on }}{{ end .on }}", "unexpected"),
    ],
)
def test_what_it_does_not_know_it_refuses(source: str, message: str) -> None:
    """An error names file and line; nothing is guessed."""
    with pytest.raises(TemplateError, match=message):
        render(source)


@given(st.text(alphabet='{}-/*"`\\.$|():=, \nabcinderfw1', max_size=60))
def test_no_text_does_worse_than_an_error(source: str) -> None:
    """Whatever is written is rendered or refused."""
    with contextlib.suppress(TemplateError):
        render(source)
