"""Conditional alignment: a row for each target that was asked for, on the terminal, in report and comparison."""

import io
import re
from dataclasses import replace

from rich.console import Console

from sail.evaluation.comparison import ArmResults, Comparison, as_json
from sail.evaluation.comparison_table import grids
from sail.evaluation.report import ReportData, render_report
from sail.evaluation.rounds import RoundRow
from sail.evaluation.sweep import ordered, sweep_cells
from sail.evaluation.table import tables

from .doubles import full_row

SWEPT = replace(
    full_row(2), target="p90",
    targets={"p90": full_row(2).metrics, "max": {"eval/reward": 1.5}, "p5": {"completions/mean_length": 7.0}},
)  # fmt: skip


def printed(rows: list[RoundRow]) -> list[str]:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(tables(rows))
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_targets_go_from_low_to_high() -> None:
    assert ordered(["max", "p99", "5.0", "p5", "-1.0", "p99.5"]) == ["p5", "p99", "p99.5", "max", "-1.0", "5.0"]


def test_a_target_shows_its_reward_win_rate_and_length_and_the_runs_own_is_marked() -> None:
    assert sweep_cells(SWEPT) == [
        ("p5", ["-", "-", "7.0", "-"]),
        ("p90 (the run's)", ["0.500 ±0.030", "0.78 [0.70, 0.85]", "103.2", "0.98"]),
        ("max", ["1.50", "-", "-", "-"]),
    ]


def test_the_last_swept_round_stands_under_the_table_of_rounds() -> None:
    earlier = replace(SWEPT, round_index=1, targets={"p1": {"eval/reward": 9.0}})
    lines = printed([earlier, SWEPT, full_row(3)])
    assert lines[-6].startswith("Round 2 Reward") and lines[-5] == "asked for ± s.e. [95 %] tokens EOS"
    assert [line.split()[0] for line in lines[-3:]] == ["p5", "p90", "max"]
    assert not any(line.startswith("p1 ") for line in lines)
    assert len(printed([full_row(0), full_row(1)])) == 2 + len(printed([])), "no table of targets without any"


def test_the_report_has_the_table_and_only_where_there_is_a_sweep() -> None:
    page = render_report(ReportData("ca", [SWEPT]))
    table = page.split('aria-label="Table of targets"')[1].split("</table>")[0]
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["p5", "p90 (the run&#39;s)", "max"]
    assert "103.2" in table and "Round 2, by what it is asked for" in page
    assert "Table of targets" not in render_report(ReportData("ca", [full_row(0)]))


def test_arms_are_compared_at_each_target_over_the_seeds_that_have_it() -> None:
    swept = {1: {"p10": {"eval/reward": 1.0}}, 2: {"p10": {"eval/reward": 3.0}, "max": {"eval/reward": 4.0}}}
    rounds = {seed: [{"eval/reward": 2.0, "objective/kl": 1.0}] for seed in swept}
    arms = [ArmResults("dpo", rounds, {}), ArmResults("ca", rounds, {}, swept)]
    comparison = Comparison("c", "dpo", [1, 2], arms)
    (grid,) = [grid for grid in grids(comparison) if grid.title.startswith("By target")]
    assert grid.headings == ["Arm, target", "Reward"]
    assert grid.rows == [["ca p10", "2.0 ±1.0"], ["ca max", "4.00"]]
    assert as_json(comparison)["arms"]["ca"]["targets"]["2"]["max"] == {"eval/reward": 4.0}
