"""Arms compared: means, t intervals, differences paired by seed, the frontier, and what is written of them."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from sail.evaluation.comparison import FRONTIER, ArmResults, Comparison, as_json, estimate, t_quantile
from sail.evaluation.comparison_page import ComparisonPage, write_comparison
from sail.evaluation.comparison_table import grids, markdown
from sail.evaluation.svg import LIGHT

REWARD, KL = "eval/reward", "objective/kl"


def arm(name: str, *by_seed: list[tuple[float, float]]) -> ArmResults:
    """(reward, KL) of each evaluation, for seeds 1, 2, ..."""
    rounds = {
        seed: [{REWARD: reward, KL: kl} for reward, kl in turns] for seed, turns in enumerate(by_seed, 1)
    }  # fmt: skip
    return ArmResults(name, rounds, {seed: {"Optimizer steps": 10.0 * seed} for seed in rounds})


BASE = arm("base", [(0.0, 0.0), (1.0, 2.0)], [(0.0, 0.0), (3.0, 2.0)], [(0.0, 0.0), (5.0, 2.0)])
BETTER = arm("better", [(1.5, 0.5), (1.2, 4.0)], [(3.1, 0.5), (3.4, 4.0)], [(5.9, 0.5), (5.6, 4.0)])
COMPARISON = Comparison("labels <b>", "base", [1, 2, 3], [BASE, BETTER], kl_limit=1.0)


def test_a_mean_has_its_standard_error_and_t_interval() -> None:
    found = estimate([1.0, 2.0, 6.0])
    assert found is not None and found.se is not None and found.low is not None and found.high is not None
    assert found.mean == 3.0
    assert found.se == pytest.approx(math.sqrt(7.0) / math.sqrt(3.0))  # variance (4 + 1 + 9) / 2
    assert (found.low, found.high) == pytest.approx((3.0 - 4.3027 * found.se, 3.0 + 4.3027 * found.se))


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    assert estimate([2.0]) == (2.0, None, None, None, 1)
    assert estimate([]) is None


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30, 31, 40, 100])
def test_quantiles_are_those_of_students_t(degrees: int) -> None:
    """By integrating its density; with t = sqrt(v) tan(a) it is proportional to cos(a)^(v - 1)."""
    angles = np.linspace(0.0, math.pi / 2, 400_001)
    density = np.cos(angles) ** (degrees - 1)
    upto = angles <= math.atan(t_quantile(degrees) / math.sqrt(degrees))
    below = 0.5 + 0.5 * np.trapezoid(density[upto], angles[upto]) / np.trapezoid(density, angles)
    assert below == pytest.approx(0.975, abs=2e-5)


def test_differences_are_paired_by_seed() -> None:
    """Rewards of base spread over 1, 3, 5, the differences over .2, .4, .6 only."""
    differences = COMPARISON.differences(BETTER, REWARD)
    assert differences == pytest.approx({1: 0.2, 2: 0.4, 3: 0.6})
    found = estimate(list(differences.values()))
    assert found is not None and found.se == pytest.approx(0.2 / math.sqrt(3))
    assert COMPARISON.differences(BASE, REWARD) == {}


def test_a_seed_that_only_one_arm_has_is_in_no_difference() -> None:
    short = arm("short", [(1.0, 0.0)])
    comparison = Comparison("c", "base", [1, 2, 3], [BASE, short])
    assert comparison.differences(short, REWARD) == {1: 0.0}
    without = Comparison("c", "base", [1, 2, 3], [short])
    assert without.differences(short, REWARD) == {}


def test_the_frontier_is_the_best_reward_under_the_limit() -> None:
    assert COMPARISON.values(BETTER, FRONTIER) == {1: 1.5, 2: 3.1, 3: 5.9}
    assert COMPARISON.values(BASE, FRONTIER) == {1: 0.0, 2: 0.0, 3: 0.0}
    none_under = Comparison("c", "far", [1], [arm("far", [(1.0, 2.0)])], kl_limit=1.0)
    assert none_under.values(none_under.arms[0], FRONTIER) == {}


def test_the_tables_hold_means_differences_and_what_was_spent() -> None:
    means, paired, spent = grids(COMPARISON)
    assert means.headings[:3] == ["Arm", "Reward", "Best under\nKL 1"]
    assert [row[1] for row in means.rows] == ["3.0 ±1.2", "3.4 ±1.3"]
    assert [row[0] for row in paired.rows] == ["better"]
    assert paired.rows[0][1] == "+0.40 ±0.50"  # 4.3027 x .2 / sqrt(3)
    assert spent.rows[0] == ["base", "20"]
    text = markdown(COMPARISON)
    widths = {line.count("|") for line in text.split("\n\n")[1].splitlines()}
    assert widths == {len(means.headings) + 1}


def test_a_single_seed_shows_values_without_errors() -> None:
    one = Comparison("c", "a", [1], [arm("a", [(1.0, 0.5)]), arm("b", [(0.5, 0.5)])])
    means, paired, _ = grids(one)
    assert means.rows[0][1] == "1.00" and paired.rows[0][1] == "-0.50"


def test_the_folder_gets_json_markdown_figures_and_a_page_that_escapes(tmp_path: Path) -> None:
    page = ComparisonPage(COMPARISON, ["base-seed1"], "base: <script>", alarms=["a & b"], notes=["note"])
    path = write_comparison(tmp_path, page)
    html = path.read_text()
    assert "labels &lt;b&gt;" in html and "<script>" not in html and "a &amp; b" in html
    assert 'href="base-seed1/report.html"' in html
    assert (tmp_path / "results.md").read_text() == markdown(COMPARISON)
    told = json.loads((tmp_path / "results.json").read_text())
    assert told == as_json(COMPARISON)
    assert told["arms"]["better"]["metrics"][REWARD]["difference"]["mean"] == pytest.approx(0.4)
    figures = sorted(tmp_path.glob("results-*.svg"))
    assert len(figures) == 4
    assert html.count("<figure>") == len(figures)
    for figure in figures:
        assert "var(" not in figure.read_text(), "no page around it gives the variables"


def test_figures_on_their_own_have_the_pages_light_colours() -> None:
    style = (Path(__file__).parents[2] / "sail" / "evaluation" / "page.css").read_text()
    light = style[: style.index("@media")]
    assert {name: color for name, color in re.findall(r"--([\w-]+): (#\w+)", light) if name in LIGHT} == LIGHT
