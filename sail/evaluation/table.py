"""The table of rounds on a terminal and in markdown."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from sail.evaluation.rounds import COLUMNS, RoundRow, cells, round_labels


def rounds_table(rows: Sequence[RoundRow]) -> Table:
    """One row a round, within 100 columns; a missing number is '-'."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False, header_style="bold")
    table.add_column("\nRound", vertical="bottom", overflow="fold", min_width=5)
    for column in COLUMNS:
        table.add_column(column.heading, justify="right", no_wrap=True, vertical="bottom")
    for label, row in zip(round_labels(rows), rows, strict=True):
        table.add_row(escape(label), *(escape(cell) for cell in cells(row)))
    return table


def markdown_table(rows: Sequence[RoundRow]) -> str:
    """The same table as GitHub markdown, ending in a newline."""
    headings = ["Round", *(column.name for column in COLUMNS)]
    body = [[_escaped(label), *cells(row)] for label, row in zip(round_labels(rows), rows, strict=True)]
    rules = ["---", *(["---:"] * len(COLUMNS))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (headings, rules, *body))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
