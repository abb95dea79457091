"""scripts/gradient_variance: gradients out of the update's own step, and what is said of them."""

import runpy
from pathlib import Path

import pytest
import torch

from loops.ablation import load_ablation
from scripts.variance.gradients import MODES, Stepper
from scripts.variance.measure import ESTIMATORS, EXACT, measure
from scripts.variance.moments import Moments
from scripts.variance.samples import FreshPairs, fresh_pairs
from tests.loops.running import NO_EVALUATION, small_config, write_config

SCRIPT = Path(__file__).parents[2] / "scripts" / "gradient_variance"


@pytest.fixture(scope="module")
def config(testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has left its reference, about to draw and to label its first pairs."""
    update = {"steps": 4, "train_batch_size": 8, "learning_rate": 5e-3}
    phases = [
        {"name": "sft", "preset": "sft", "loss": {"type": "sft"}, "update": {"steps": 1, "learning_rate": 1e-5}},
        {"name": "warmup", "preset": "dpo", "round": {"reference": "sft"}},
        {"name": "online", "preset": "sail-pp", "num_rounds": 1, "round": {"reference": "sft"}},
    ]
    base = small_config(testbed, evaluation=NO_EVALUATION, update=update) | {"phases": phases}
    base["data"]["demos"] = {"path": str(testbed / "sft.jsonl")}
    del base["preset"], base["num_rounds"]
    document = {"base": base, "seeds": [1, 2], "arms": {"policy-soft": {}}}
    return write_config(tmp_path_factory.mktemp("variance") / "labels.yaml", document)


@pytest.fixture(scope="module")
def pairs(config: Path) -> FreshPairs:
    return fresh_pairs(load_ablation(str(config)).runs[0].settings, 16, config.parent / "runs")


def test_the_terms_add_up_to_the_gradient_of_the_update_under_any_coefficient(pairs: FreshPairs) -> None:
    stepper, items = Stepper(pairs), pairs.items[:6]
    for mode in MODES:
        _, terms = stepper.terms(items, mode, (0.0, 0.5))
        torch.testing.assert_close(stepper.gradient(items, mode, 0.3, 0.5), terms.at(0.3), rtol=1e-4, atol=1e-7)
        assert terms.score.norm() > 1e-3
        assert (terms.plain.norm() < 1e-6) == (mode == "soft"), "the mean of the plain term over labels is 0"
        assert (terms.label.norm() < 1e-4) == (mode == "hard"), "no draw, no label term beyond rounding"


def test_measuring_moves_no_weight(pairs: FreshPairs) -> None:
    stepper, items = Stepper(pairs), pairs.items[:6]
    first = stepper.gradient(items, "sampled", 0.5, 0.2)
    stepper.settled_baseline([pairs.items[6:12]])
    assert torch.equal(stepper.gradient(items, "sampled", 0.5, 0.2), first)


def test_all_are_compared_with_the_soft_form_and_a_baseline(pairs: FreshPairs) -> None:
    measured = measure(pairs, batch_size=4, num_settling=1, coefs=[0.5, 1.0])
    assert list(measured.figures) == list(ESTIMATORS)
    exact, drawn = measured.figures[EXACT], measured.figures["sampled", True]
    assert exact.bias == {0.5: 0.0, 1.0: 0.0} and drawn.bias[1.0] != 0
    assert exact.terms["plain"] < 1e-9 < drawn.terms["plain"]
    assert measured.signal[0.5] == pytest.approx(measured.signal[1.0] / 4, rel=1e-3), "no plain term: linear in c"


def test_moments_by_hand() -> None:
    """(1, 0) and (3, 4): mean (2, 2), deviations of squared norm 5 each; the product of the two is 3."""
    moments = Moments()
    for vector in ([1.0, 0.0], [3.0, 4.0]):
        moments.add(torch.tensor(vector, dtype=torch.float64))
    assert moments.variance == 10.0 and moments.squared_mean == 3.0


def test_the_table_goes_into_the_page(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = config.parent / "results.md"
    page.write_text("Before.\n<!-- begin: gradient_variance -->\nold\n<!-- end: gradient_variance -->\nAfter.\n")
    main = runpy.run_path(str(SCRIPT))["main"]
    words = ["--config", config, "--root", config.parent / "runs", "--batch-size", 4, "--dry", "--page", page]
    assert main([str(word) for word in words]) == 0
    tables = capsys.readouterr().out.strip()
    for table in tables.split("\n\n"):
        rows = [line.split(" | ")[:2] for line in table.splitlines()[2:]]
        assert rows == [[f"| {mode}", baseline] for mode in MODES for baseline in ("none", "running mean")]
    assert page.read_text().split("\n", 2)[2] == f"{tables}\n<!-- end: gradient_variance -->\nAfter.\n"
