"""Values are laid over each other as Helm does it, and checked before anything is rendered."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli.chart.load import Chart, Release, load
from cli.chart.schema import check
from cli.chart.text import read_documents, read_mapping, to_documents, to_yaml
from cli.chart.values import lay, merge, parse_set
from mesh.errors import ConfigError

BASE = {"a": {"b": 1, "c": "x"}, "l": [1, 2], "s": "t"}


def test_maps_unite_and_the_rest_replaces() -> None:
    """Lists replace whole; null removes."""
    over = {"a": {"b": 2, "d": {"e": None, "f": 1}}, "l": [3], "s": None, "n": 1}
    assert merge(BASE, over) == {"a": {"b": 2, "c": "x", "d": {"f": 1}}, "l": [3], "n": 1}
    assert BASE == {"a": {"b": 1, "c": "x"}, "l": [1, 2], "s": "t"}


def test_a_null_survives_until_it_meets_the_defaults() -> None:
    """One file may set what another removes from the defaults."""
    over = lay(lay({"a": {"b": 5}}, {"a": {"c": None}}), {"a": {"b": 6}})
    assert over == {"a": {"b": 6, "c": None}}
    assert merge(BASE, over)["a"] == {"b": 6}


def test_a_map_is_not_replaced_by_something_else() -> None:
    """--set controlPlane=2 is a mistake, not a wish."""
    with pytest.raises(ConfigError, match=r"value a: a map is needed, not 2"):
        merge(BASE, {"a": 2})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", {"a": 1}),
        ("a.b=x,a.c=true", {"a": {"b": "x", "c": True}}),
        ("a=null,b=false,c=", {"a": None, "b": False, "c": ""}),
        ("a=007,b=0,c=-3,d=1.5,e=1e3", {"a": "007", "b": 0, "c": -3, "d": "1.5", "e": "1e3"}),
        (r"a=b\,c,d=e", {"a": "b,c", "d": "e"}),
        (r"a.b\.c/d=1", {"a": {"b.c/d": 1}}),
        ("a={x,2,true}", {"a": ["x", 2, True]}),
        ("a={},b={,}", {"a": [""], "b": ["", ""]}),
        (r"a={x\,y,z}", {"a": ["x,y", "z"]}),
        ("a=+5,b=-0,c=-007,d=TRUE,e=Null", {"a": 5, "b": 0, "c": -7, "d": True, "e": None}),
        ("a=9223372036854775808,b=yes", {"a": "9223372036854775808", "b": "yes"}),
        ("a[0].k=v,a[0].w=u,a[1].k=z", {"a": [{"k": "v", "w": "u"}, {"k": "z"}]}),
        ("a=x=y", {"a": "x=y"}),
    ],
)
def test_set_is_read_as_helm_reads_it(text: str, expected: dict[str, Any]) -> None:
    """Types, lists, escapes."""
    assert parse_set([text], {}) == expected


def test_set_strings_stay_strings_and_the_base_stays_as_it_was() -> None:
    """--set-string, and lists that -f gave."""
    base = {"a": [{"k": "v"}]}
    assert parse_set(["a[0].w=1"], base, as_text=True) == {"a": [{"k": "v", "w": "1"}]}
    assert base == {"a": [{"k": "v"}]}


@pytest.mark.parametrize(
    "text", ["a", "=1", "a.=1", "a..b=1", "a={x", "a[x]=1", "a[9999]=1", "a\\", "a=1,a.b=2"]
)
def test_a_set_that_cannot_be_read_is_quoted(text: str) -> None:
    """The message says how to write it."""
    with pytest.raises(ConfigError, match="write KEY=VALUE"):
        parse_set([text], {})


# ---- YAML ------------------------------------------------------------------------------------

_SCALARS = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=20)
_JSON = st.recursive(
    _SCALARS,
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3),
)


@given(st.dictionaries(st.text(max_size=5), _JSON, max_size=4))
def test_yaml_comes_back_as_it_was(value: dict[str, Any]) -> None:
    """For our reader and for the library's own."""
    text = to_yaml(value)
    assert read_mapping("x", text) == value
    assert yaml.safe_load(text) == value


@pytest.mark.parametrize(
    "text", ["y", "No", "1e3", "0o7", "1_000", "~", "2026-01-01", "0x1f", "-", "a: b"]
)
def test_text_that_looks_like_something_else_is_quoted(text: str) -> None:
    """Readers of YAML 1.1 and 1.2 differ in what these are."""
    assert to_yaml({"k": text}) == f'k: "{text}"'


def test_documents_are_separated_and_dates_stay_text() -> None:
    """As kubectl takes and gives them."""
    assert read_documents("x", to_documents([{"a": 1}, {"b": 2}])) == [{"a": 1}, {"b": 2}]
    assert read_mapping("x", "a: 2026-01-01") == {"a": "2026-01-01"}


@pytest.mark.parametrize(
    "text", ["- a", "a: [", "a: b: c", "x", "[" * 5000, "!!int x", "a: 1\n---\nb: 1"]
)
def test_yaml_that_is_no_mapping_is_one_clear_error(text: str) -> None:
    """It begins with the file's name."""
    with pytest.raises(ConfigError, match=r"^f\.yaml: "):
        read_mapping("f.yaml", text)


# ---- the schema ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chart() -> Chart:
    return load()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("controlPlane.replicaz=2", r"controlPlane.replicaz: no such value \(known here: affinity"),
        ("controlPlane.replicas=0", "controlPlane.replicas: 0 is below 1"),
        ("controlPlane.replicas=99", "99 is above 20"),
        ("controlPlane.replicas=two", "'two' is not of type integer"),
        ("controlPlane.replicas=null", "controlPlane.replicas: needed"),
        ("imagePullPolicy=Sometimes", "not one of Always, IfNotPresent, Never"),
        ("namespace=Istio_System", "write the name of a namespace"),
        ("nodeAgent.criSocket=run/x.sock", "absolute path"),
        ("nodeAgent.extraEnv[0].nam=x", "no such value"),
        ("ztunnel.tolerations={x}", r"tolerations\[0\]: 'x' is not of type object"),
        ("trustDomain=", "DNS name"),
    ],
)
def test_a_value_that_cannot_work_is_named(chart: Chart, setting: str, message: str) -> None:
    """With what is wrong with it."""
    with pytest.raises(ConfigError, match=message):
        chart.values([parse_set([setting], {})])


def test_a_keyword_that_is_not_checked_is_an_error_of_the_schema() -> None:
    """Helm would check it and we would not."""
    with pytest.raises(ConfigError, match="keyword 'maxLength'"):
        check({"a": "b"}, {"properties": {"a": {"maxLength": 1}}})


def test_all_values_have_a_type_and_no_value_is_unknown(chart: Chart) -> None:
    """The schema names exactly what values.yaml has."""

    def compare(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        if schema.get("additionalProperties") is not False:
            return
        known = set(schema["properties"]) - {"global"}
        assert known == set(values) == set(schema["required"]), path
        for key, value in values.items():
            if isinstance(value, dict):
                compare(value, schema["properties"][key], f"{path}.{key}")

    compare(chart.defaults, chart.schema, "")


def test_unknown_profiles_are_named_with_those_there_are(chart: Chart) -> None:
    """A typo must not install the defaults."""
    with pytest.raises(ConfigError, match="no profile 'demmo'; there are: default, demo, minimal"):
        chart.profile("demmo")


def test_a_chart_that_is_not_there_is_named(tmp_path: Any) -> None:
    """For a broken installation."""
    with pytest.raises(ConfigError, match=r"no Chart\.yaml"):
        load(tmp_path)


def test_what_is_rendered_must_be_objects() -> None:
    """A template that renders nonsense is named."""
    chart = Chart(
        {
            "Chart.yaml": "{name: x, version: 1, appVersion: 1}",
            "values.yaml": "{}",
            "values.schema.json": "{}",
            "templates/a.yaml": "kind: A\napiVersion: v1",
        }
    )
    with pytest.raises(
        ConfigError, match=r"templates/a\.yaml: rendered something that is no object"
    ):
        chart.render({}, Release(), [])
