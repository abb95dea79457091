"""scripts/bench_update: a whole tiny run, and the arithmetic behind its figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench.bars import BARS, Bar, bars_of
from scripts.bench.cases import CASES, DRY, Pair, make_model
from scripts.bench.correctness import Deviation
from scripts.bench.floors import least_flops
from scripts.bench.measure import ALL, MEMORY, Figures
from scripts.bench.table import case_table, write_between
from scripts.bench.timing import Interval, Seconds, ratio
from scripts.bench.trl_variants import TRL
from scripts.bench.variants import OURS

ROOT = Path(__file__).resolve().parents[2]


def figures(seconds: dict[str, list[float]], case: str = "v8k/ragged") -> Figures:
    result = Figures(CASES[case], matmul_rate=1.0)
    result.deviations = {name: Deviation(1e-7, 1e-6) for name in seconds}
    result.seconds = {name: [Seconds(value, value) for value in values] for name, values in seconds.items()}
    result.flops = dict.fromkeys(("reference in the loop", "reference stored"), [0.5] * len(seconds["ours"]))
    return result


def bar(about: str) -> Bar:
    return next(bar for bar in BARS if (bar.case, bar.about) == ("v8k/ragged", about))


def test_a_dry_run_measures_every_variant_and_writes_json_and_page(tmp_path: Path) -> None:
    page, record = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text("before\n<!-- begin: bench_update -->\nold\n<!-- end: bench_update -->\nafter\n")
    command = [sys.executable, "scripts/bench_update", "--dry", "--check", "--json", str(record), "--page", str(page)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    (case,) = json.loads(record.read_text())["cases"]
    timed = set(ALL) - {"ours, SAIL", "ours, checkpointing"}
    assert set(case["seconds"]) == timed and all(len(steps) == 2 for steps in case["seconds"].values())
    assert set(case["deviations"]) == set(ALL) - {"ours, SAIL"}
    assert max(max(deviation) for deviation in case["deviations"].values()) < 1e-5
    assert case["peak_mb"]["ours"] > 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| ours, microbatches of 2 |" in text and "scripts/bench_update --dry --check" in text


def test_a_ratio_is_taken_within_a_round_and_its_interval_holds_the_median() -> None:
    slow, fast = ([Seconds(value, 9.0) for value in values] for values in ([2.0, 40.0, 6.0], [1.0, 20.0, 2.0]))
    assert ratio(slow, fast) == Interval(2.0, 2.0, 3.0)
    assert not ratio(slow, fast).conclusive


def test_a_bar_is_passed_by_the_unfavourable_end_of_its_interval() -> None:
    speed = bar("time, TRL / ours")
    assert speed.verdict(figures({"trl": [3.0, 3.1, 3.0], "ours": [1.0, 1.0, 1.0]})) == "passed"
    assert speed.verdict(figures({"trl": [2.75, 3.0, 3.0], "ours": [1.0, 1.0, 1.0]})) == "failed"
    sail = bar("time, SAIL / DPO")
    measured = figures({"ours": [1.0]})
    measured.sail = {"ours, SAIL": [Seconds(1.05, 1.0)], "ours, stored reference": [Seconds(1.0, 1.0)]}
    assert sail.verdict(measured) == "failed"


def test_a_wide_interval_concludes_nothing() -> None:
    assert bar("time, TRL / ours").verdict(figures({"trl": [3.0, 5.0, 9.0], "ours": [1.0, 1.0, 1.0]})) == "inconclusive"


def test_without_trl_its_bars_are_not_measured_and_the_others_are() -> None:
    without = figures({"naive": [2.0, 2.0], "ours": [1.0, 1.0]})
    verdicts = {bar.about: bar.verdict(without) for bar in bars_of(without)}
    assert {verdict for about, verdict in verdicts.items() if "TRL" in about} == {"not measured"}
    assert verdicts["time, naive / ours"] == "passed"
    assert "| naive | 2.00 | - | - | 25% | - | - |" in case_table(without)


def test_bars_are_for_float32_on_a_cpu_and_the_shapes_they_name() -> None:
    assert bars_of(figures({"ours": [1.0]}))
    assert not bars_of(Figures(DRY))
    assert {bar.case for bar in BARS} <= set(CASES) and set(MEMORY) <= set(OURS) | set(TRL)


def test_mfu_is_the_fewest_flops_over_time_and_rate() -> None:
    assert figures({"ours": [1.0, 1.0]}).mfu("ours") == pytest.approx(0.5)


def test_the_fewest_flops_of_a_pair_by_hand() -> None:
    """Prompt 2, responses 2 and 3: 2 + 1 + 2 tokens run; 3 attended in the prompt, 2 + 1 and 4 + 3 in the branches.

    The first prompt token predicts none of a response: the second layer makes its key and its value alone."""
    pair = Pair((1, 2), (3, 4), (5, 6, 7))
    layers = make_model(DRY, 0).model.layers
    body = sum(weight.numel() for weight in layers.parameters() if weight.ndim > 1)
    queries_and_mlp = body // 2 - sum(
        weight.numel() for name, weight in layers[1].named_parameters() if "k_proj" in name or "v_proj" in name
    )
    forward = 2 * (body * 5 - queries_and_mlp) + 4 * 64 * (2 * (3 + 3 + 7) - 1) + 2 * 64 * 300 * 5
    assert least_flops(DRY, [pair], reference=False) == 3 * forward
    assert least_flops(DRY, [pair], reference=True) == 4 * forward


def test_a_page_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(ValueError):
        write_between(page, "bench_update", "text")
    assert page.read_text() == "no marks"
