"""The tables of a comparison on a terminal and in markdown: means, paired differences, what was spent."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from sail.evaluation.comparison import ArmResults, Comparison, Headline, estimate
from sail.evaluation.numerals import with_error
from sail.evaluation.rounds import MISSING
from sail.evaluation.sweep import SWEEP_METRICS, ordered


class Grid(NamedTuple):
    """A table's text: its title, headings (the first is of the names), and rows."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def grids(comparison: Comparison) -> list[Grid]:
    """Means and what was spent; between them the differences, where there is anything to compare."""
    headlines = comparison.headlines()
    headings = ["Arm", *(_heading(headline, comparison) for headline in headlines)]
    means = [[arm.arm, *(_mean(comparison, arm, headline) for headline in headlines)] for arm in comparison.arms]
    tables = [Grid("Mean ± standard error over seeds", [*headings, "Seeds"], _with_counts(comparison, means))]
    others = [arm for arm in comparison.arms if arm.arm != comparison.compare_to]
    if others:
        paired = [[arm.arm, *(_difference(comparison, arm, headline) for headline in headlines)] for arm in others]
        title = f"Difference to {comparison.compare_to}, paired by seed ± half of the 95 % t interval"
        tables.append(Grid(title, headings, paired))
    return [*tables, *_sweeps(comparison), _spent(comparison)]


def terminal_tables(comparison: Comparison) -> list[Table]:
    return [_terminal(grid) for grid in grids(comparison)]


def markdown(comparison: Comparison) -> str:
    """All tables as GitHub markdown."""
    return "\n".join(_markdown(grid) for grid in grids(comparison))


def _terminal(grid: Grid) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, header_style="bold", title=grid.title,
                  title_justify="left")  # fmt: skip
    for index, heading in enumerate(grid.headings):
        side = "left" if index == 0 else "right"
        table.add_column(escape(heading), justify=side, vertical="bottom", overflow="fold")  # type: ignore[arg-type]
    for row in grid.rows:
        table.add_row(*map(escape, row))
    return table


def _markdown(grid: Grid) -> str:
    headings = [heading.replace("\n", " ") for heading in grid.headings]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *grid.rows]
    return f"{grid.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _heading(headline: Headline, comparison: Comparison) -> str:
    limit = comparison.kl_limit
    return headline.heading if limit is None else headline.heading.replace("KL limit", f"KL {limit:g}")


def _with_counts(comparison: Comparison, rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[*row, str(len(arm.rounds))] for arm, row in zip(comparison.arms, rows, strict=True)]


def _mean(comparison: Comparison, arm: ArmResults, headline: Headline) -> str:
    return _cell(list(comparison.values(arm, headline.metric).values()), headline)


def _cell(values: Sequence[float], headline: Headline) -> str:
    found = estimate(values)
    if found is None:
        return MISSING
    return headline.form(found.mean) if found.se is None else with_error(found.mean, found.se)


def _difference(comparison: Comparison, arm: ArmResults, headline: Headline) -> str:
    found = estimate(list(comparison.differences(arm, headline.metric).values()))
    if found is None:
        return MISSING
    if found.high is None:
        return f"{found.mean:+.2f}"
    sign = "" if found.mean < 0 else "+"
    return sign + with_error(found.mean, found.high - found.mean)


def _sweeps(comparison: Comparison) -> list[Grid]:
    """Arms of conditional alignment at each of their targets; none where no arm was evaluated at several."""
    headlines = [headline for headline in comparison.headlines() if headline.metric in SWEEP_METRICS]
    rows = []
    for arm in comparison.arms:
        for target in ordered({target for swept in arm.targets.values() for target in swept}):
            seeds = [swept[target] for swept in arm.targets.values() if target in swept]
            cells = [_cell([one[h.metric] for one in seeds if h.metric in one], h) for h in headlines]
            rows.append([f"{arm.arm} {target}", *cells])
    headings = ["Arm, target", *(_heading(headline, comparison) for headline in headlines)]
    return [Grid("By target, mean ± standard error over seeds", headings, rows)] if rows else []


def _spent(comparison: Comparison) -> Grid:
    names = list(dict.fromkeys(name for arm in comparison.arms for spent in arm.spent.values() for name in spent))
    rows = [
        [arm.arm, *(f"{np.mean([spent.get(name, 0) for spent in arm.spent.values()]):,.0f}" for name in names)]
        for arm in comparison.arms
    ]
    return Grid("Spent per run, on average", ["Arm", *names], rows)
