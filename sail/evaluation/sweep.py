"""The sweep of conditional alignment: what a policy does at each target that it is asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sail.evaluation.rounds import COLUMNS, Column, RoundRow, round_labels

SWEEP_METRICS = ("eval/reward", "eval/win_rate", "completions/mean_length", "completions/eos_rate")
SWEEP_COLUMNS: tuple[Column, ...] = tuple(column for column in COLUMNS if column.metric in SWEEP_METRICS)


def ordered(targets: Iterable[str]) -> list[str]:
    """Targets from low to high: percentiles, the maximum, then numbers."""
    return sorted(targets, key=_height)


def _height(target: str) -> tuple[int, float]:
    if target == "max":
        return 1, 0.0
    return (0, float(target[1:])) if target.startswith("p") else (2, float(target))


def swept(rows: Sequence[RoundRow]) -> tuple[str, RoundRow] | None:
    """The last round that was evaluated at several targets, and its label; None where none was."""
    found = [(label, row) for label, row in zip(round_labels(rows), rows, strict=True) if row.targets]
    return found[-1] if found else None


def sweep_cells(row: RoundRow) -> list[tuple[str, list[str]]]:
    """Each target with its row of the table; the one that samples and checkpoint ask for is marked."""
    return [
        (
            f"{target} (the run's)" if target == row.target else target,
            [column.cell(replace(row, metrics=row.targets[target])) for column in SWEEP_COLUMNS],
        )
        for target in ordered(row.targets)
    ]
