"""The table of rounds as text."""

import io

import pytest
from rich.console import Console

from sail.evaluation.numerals import number, with_error
from sail.evaluation.rounds import COLUMNS, RoundRow, cells, round_labels
from sail.evaluation.table import rounds_table

from .doubles import full_row


def printed(rows: list[RoundRow]) -> list[str]:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(rounds_table(rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_full_row_survives_100_columns() -> None:
    lines = printed([RoundRow(-1, "main"), full_row(0, eval__reward=-12.345)])
    row = lines[-1].split()
    assert row == ["0", "-12.345", "±0.030", "0.78", "[0.70,", "0.85]", "12.3", "0.61", "0.66", "103.2", "0.98",
                   "0.90", "20,000", "0.0123"]  # fmt: skip
    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines)


def test_what_is_missing_is_a_dash() -> None:
    assert printed([RoundRow(-1, "main")])[-1].split() == ["start", *["-"] * len(COLUMNS)]
    assert cells(RoundRow(0, "main", {"eval/reward": 0.5, "eval/win_rate": 0.5}))[:2] == ["0.500", "0.50"]


def test_phases_are_named_where_there_are_several() -> None:
    assert round_labels([RoundRow(-1, "main"), RoundRow(0, "main")]) == ["start", "0"]
    assert round_labels([RoundRow(0, "sft"), RoundRow(-1, "sail")]) == ["sft 0", "sail start"]


def test_a_phase_cannot_write_markup() -> None:
    lines = printed([RoundRow(0, "[bold]x"), RoundRow(0, "y|z")])
    assert any("[bold]x" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.03124, "0.0312"), (0.5, "0.500"), (-1.234, "-1.23"), (12.34, "12.3"), (1234.5, "1,234"),
     (2e-5, "2e-05"), (float("nan"), "nan")],
)  # fmt: skip
def test_numbers_have_three_digits_or_so(value: float, text: str) -> None:
    assert number(value) == text


def test_the_error_sets_the_places() -> None:
    assert with_error(12.3456, 0.31) == "12.35 ±0.31"
    assert with_error(0.93, 0.05) == "0.930 ±0.050"
    assert with_error(1234.5, 12.0) == "1,234 ±12"
    assert with_error(0.5, 0.0) == "0.500 ±0"
