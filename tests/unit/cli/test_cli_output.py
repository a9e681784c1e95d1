"""Tables align, ages are short."""

from __future__ import annotations

import pytest

from cli.output import age, table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    """No trailing blanks, so that lines can be compared."""
    text = table(("A", "LONG"), [["wide one", ""], ["x", "y"]], gap=2)
    assert text == "A         LONG\nwide one\nx         y"


def test_no_cell_can_reach_the_terminal() -> None:
    """Escape sequences, line breaks and half characters are shown as question marks."""
    assert table(("A",), [["x\x1b[2Jy\n\ud800"]]) == "A\nx?[2Jy??"


def test_a_table_of_nothing_is_its_headings() -> None:
    """So that one sees what would be there."""
    assert table(("A", "B"), []) == "A   B"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (200000, "2d")],
)
def test_ages_change_unit_at_two_of_the_next(seconds: float, text: str) -> None:
    """119s says more than 1m."""
    assert age(seconds) == text
