"""The table of rounds on a terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from sail.evaluation.rounds import COLUMNS, Column, RoundRow, cells, round_labels
from sail.evaluation.sweep import SWEEP_COLUMNS, sweep_cells, swept


def tables(rows: Sequence[RoundRow]) -> Group:
    """The table of rounds; under it that of targets, where a round was evaluated at several."""
    last = swept(rows)
    return Group(rounds_table(rows)) if last is None else Group(rounds_table(rows), "", _targets_table(*last))


def rounds_table(rows: Sequence[RoundRow]) -> Table:
    """One row a round, within 100 columns; a missing number is '-'."""
    return _table("Round", COLUMNS, [(label, cells(row)) for label, row in zip(round_labels(rows), rows, strict=True)])


def _targets_table(label: str, row: RoundRow) -> Table:
    return _table(f"Round {label}\nasked for", SWEEP_COLUMNS, sweep_cells(row))


def _table(heading: str, columns: Sequence[Column], rows: Sequence[tuple[str, Sequence[str]]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False, header_style="bold")
    table.add_column(escape(heading), vertical="bottom", overflow="fold", min_width=5)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True, vertical="bottom")
    for label, row in rows:
        table.add_row(escape(label), *map(escape, row))
    return table
