"""Our losses beside TRL's real trainers, same tiny models, same tokens: equal where the formula is, numbers where not.

Loss and whole gradient, models in float64; TRL's head works in float32 all the same, hence the tolerances.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed (extra: bench)")

from sail.objectives import LOSSES
from sail.objectives.statistics import kto_z0
from tests.objectives.trl_side import (
    Outcome,
    cpo_outcome,
    distance,
    dpo_outcome,
    kto_outcome,
    orpo_outcome,
    our_outcome,
    our_responses,
)
from tests.policy.oracle import gradient

# TRL's name and options, ours and its parameters. A new pair loss that TRL has too is one row.
SAME_IN_DPO_TRAINER: list[tuple[str, dict[str, Any], str, dict[str, float]]] = [
    ("sigmoid", {"beta": 0.3}, "dpo", {"beta": 0.3}),
    ("hinge", {"beta": 0.3}, "hinge", {"beta": 0.3}),
    ("ipo", {"beta": 0.3}, "ipo_mean", {"beta": 0.3}),
    ("exo_pair", {"beta": 0.3, "label_smoothing": 0.1}, "exo", {"beta": 0.3, "epsilon": 0.1}),
    ("nca_pair", {"beta": 0.3}, "nca", {"beta": 0.3}),
    ("robust", {"beta": 0.3, "label_smoothing": 0.2}, "rdpo", {"beta": 0.3, "epsilon": 0.2}),
    ("bco_pair", {"beta": 0.3}, "bco_pair", {"beta": 0.3}),
    ("sppo_hard", {"beta": 0.3}, "sppo_hard", {"beta": 0.3}),
    ("apo_zero", {"beta": 0.3}, "apo_zero", {"beta": 0.3}),
    ("apo_down", {"beta": 0.3}, "apo_down", {"beta": 0.3}),
    ("discopop", {"beta": 0.3, "discopop_tau": 0.2}, "discopop", {"beta": 0.3, "tau": 0.2}),
    ("sigmoid_norm", {"beta": 3.0}, "dpo_norm", {"beta": 3.0}),
]


def ours_beside(theirs: Outcome, name: str, **params: float) -> Outcome:
    return our_outcome(name, theirs.chosen, theirs.rejected, **params)


def assert_same(theirs: Outcome, ours: Outcome) -> None:
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6, abs=1e-6)
    assert distance(theirs.gradient, ours.gradient) < 1e-5


@pytest.mark.parametrize(
    ("loss_type", "options", "name", "params"), SAME_IN_DPO_TRAINER, ids=[row[0] for row in SAME_IN_DPO_TRAINER]
)
def test_loss_and_gradient_are_those_of_dpo_trainer(
    tmp_path: Path, loss_type: str, options: dict[str, Any], name: str, params: dict[str, float]
) -> None:
    theirs = dpo_outcome(tmp_path, loss_type, **options)
    assert_same(theirs, ours_beside(theirs, name, **params))


def test_simpo_is_cpo_trainers_simpo_whose_gamma_is_ours(tmp_path: Path) -> None:
    theirs = cpo_outcome(tmp_path, "simpo", beta=2.0, simpo_gamma=0.7, cpo_alpha=0.0)
    assert_same(theirs, ours_beside(theirs, "simpo", beta=2.0, gamma=0.7))


def test_slic_is_cpo_trainers_hinge_which_has_no_reference(tmp_path: Path) -> None:
    theirs = cpo_outcome(tmp_path, "hinge", beta=1.0, cpo_alpha=0.0)
    assert_same(theirs, ours_beside(theirs, "slic", delta=1.0))


def test_kto_is_trls_on_its_rows_and_its_mismatched_ones(tmp_path: Path) -> None:
    """w (1 - sigmoid(+-beta (s - z0))), z0 = max(0, mean log-ratio of mismatched responses): 2402.01306, eq. 8."""
    theirs = kto_outcome(tmp_path, beta=0.3, desirable_weight=1.0, undesirable_weight=1.5)
    responses, policy = our_responses(theirs.rows)
    z0 = kto_z0(our_responses(theirs.mismatched)[0]).value
    rated = responses._replace(targets=torch.tensor(theirs.up, dtype=torch.float64))
    loss = LOSSES["kto"].loss(rated, z0, beta=0.3, desirable_weight=1.0, undesirable_weight=1.5).mean()
    loss.backward()
    assert float(z0) > 0 and {tuple(row) for row in theirs.rows}.isdisjoint(tuple(row) for row in theirs.mismatched)
    assert float(loss.detach()) == pytest.approx(theirs.loss, rel=1e-6)
    assert distance(theirs.gradient, gradient(policy)) < 1e-5


# ---- same name, another meaning --------------------------------------------------------------------------------------


def test_label_smoothing_does_nothing_to_trls_sigmoid_and_makes_ours_cdpo(tmp_path: Path) -> None:
    theirs = dpo_outcome(tmp_path, "sigmoid", beta=0.3, label_smoothing=0.2)
    assert_same(theirs, ours_beside(theirs, "dpo", beta=0.3))
    smoothed = ours_beside(theirs, "cdpo", beta=0.3, epsilon=0.2)
    assert abs(smoothed.loss - theirs.loss) > 0.01
    assert distance(smoothed.gradient, theirs.gradient) > 0.1


def test_trls_ipo_averages_over_tokens_and_ours_sums(tmp_path: Path) -> None:
    theirs = dpo_outcome(tmp_path, "ipo", beta=0.3)
    summed = ours_beside(theirs, "ipo", beta=0.3)
    assert abs(summed.loss - theirs.loss) > 0.1
    assert distance(summed.gradient, theirs.gradient) > 1.0


def test_trls_hinge_has_a_reference_and_slic_has_none(tmp_path: Path) -> None:
    theirs = dpo_outcome(tmp_path, "hinge", beta=1.0)
    assert_same(theirs, ours_beside(theirs, "hinge", beta=1.0))
    slic = ours_beside(theirs, "slic", delta=1.0)
    assert abs(slic.loss - theirs.loss) > 0.1


def test_trls_sigmoid_norm_has_a_reference_and_no_margin_so_it_is_not_simpo(tmp_path: Path) -> None:
    theirs = dpo_outcome(tmp_path, "sigmoid_norm", beta=3.0)
    assert abs(ours_beside(theirs, "simpo", beta=3.0, gamma=0.0).loss - theirs.loss) > 0.01


def test_trls_sft_averages_over_the_tokens_of_the_batch_and_ours_over_responses(tmp_path: Path) -> None:
    theirs = dpo_outcome(tmp_path, "sft")
    each = [our_outcome("sft", [row], []).loss for row in theirs.chosen]
    tokens = [len(row.response_ids) for row in theirs.chosen]
    by_tokens = sum(loss * count for loss, count in zip(each, tokens, strict=True)) / sum(tokens)
    assert len(set(tokens)) > 1, "equal lengths would hide it"
    assert theirs.loss == pytest.approx(by_tokens, rel=1e-6)
    assert abs(sum(each) / len(each) - theirs.loss) > 1e-3
    assert ours_beside(theirs, "sft").loss == pytest.approx(sum(each) / len(each), rel=1e-6)


def test_trls_orpo_has_the_same_odds_and_learns_the_prompt_too(tmp_path: Path) -> None:
    """Its odds_ratio part is ours; its likelihood part runs over prompt and response, all tokens of the batch alike."""
    theirs = orpo_outcome(tmp_path, beta=0.25)
    odds = ours_beside(theirs, "orpo", odds_weight=0.25).loss - ours_beside(theirs, "orpo", odds_weight=0.0).loss
    whole = [our_outcome("sft", [_all_but_first(row)], []).loss for row in theirs.chosen]
    tokens = [len(row.prompt_ids) + len(row.response_ids) - 1 for row in theirs.chosen]
    likelihood = sum(loss * count for loss, count in zip(whole, tokens, strict=True)) / sum(tokens)
    assert theirs.loss == pytest.approx(likelihood + odds, rel=1e-6)
    assert abs(ours_beside(theirs, "orpo", odds_weight=0.25).loss - theirs.loss) > 1e-3


def test_trls_aot_makes_a_pairs_loss_depend_on_its_neighbours_so_it_is_not_here(tmp_path: Path) -> None:
    """Log-ratios sorted over the batch meet other partners: another number than the mean over pairs, which is cdpo."""
    theirs = dpo_outcome(tmp_path, "aot_unpaired", beta=0.3, label_smoothing=0.2)
    assert abs(ours_beside(theirs, "cdpo", beta=0.3, epsilon=0.2).loss - theirs.loss) > 1e-3


def _all_but_first(row: Any) -> Any:
    """The row with everything after its first token as the response."""
    return type(row)(row.prompt_ids[:1], (*row.prompt_ids[1:], *row.response_ids))
