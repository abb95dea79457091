"""Importance weights: exact off-policy where every term carries them, 1 on fresh samples, cut at the cap."""

import numpy as np
import pytest
import torch

from sail.core.errors import UserError
from sail.objectives.importance import importance_weights, plain_weights
from sail.objectives.online import OnlineTerms

from .exact_sums import exact_gradient
from .tabular import all_pairs, expected_gradient, make_world
from .test_known_mistakes import error
from .test_label_table import LABELS, row_of

WORLD = make_world()
BETA = {"beta": 0.7}
PAIRS = all_pairs(WORLD, "dpo", BETA)


def stale_gradient(label: str, weights: torch.Tensor, apply_to: str) -> np.ndarray:
    online = OnlineTerms(PAIRS.score_logps, 1.0, 0.4, weights, plain_weights(weights, apply_to))
    return expected_gradient(PAIRS, label, row_of(label), online, pair_probs=PAIRS.behavior_probs)


@pytest.mark.parametrize("label", LABELS)
def test_weighing_every_term_is_exact_on_stale_samples(label):
    want = exact_gradient(WORLD, "dpo", label, BETA, sail_coef=1.0)
    stale = importance_weights(PAIRS.score_logps, PAIRS.behavior_logps, cap=1e9)
    assert stale.weights.max() > 1.5 and stale.cut_share == 0
    assert error(stale_gradient(label, stale.weights, "all"), want) < 1e-12


def test_weighing_the_score_term_alone_or_nothing_leaves_an_error():
    want = exact_gradient(WORLD, "dpo", "others-soft", BETA, sail_coef=1.0)
    ratio, none = (
        importance_weights(PAIRS.score_logps, PAIRS.behavior_logps, mode=mode, cap=1e9).weights
        for mode in ("sequence_mask", "none")
    )
    assert error(stale_gradient("others-soft", ratio, "score"), want) > 0.03
    assert error(stale_gradient("others-soft", none, "all"), want) > 0.1


@pytest.mark.parametrize("mode", ["sequence_mask", "truncate", "none"])
def test_weights_are_one_on_fresh_samples(mode):
    fresh = importance_weights(PAIRS.score_logps, PAIRS.score_logps.detach(), mode=mode)
    assert torch.equal(fresh.weights, torch.ones_like(fresh.weights)) and not fresh.weights.requires_grad
    assert fresh.cut_share == 0


def test_the_three_modes_by_hand():
    log_ratios = torch.tensor([0.5, 1.0, 1.5, 8.0], dtype=torch.float64).log()
    old = torch.full_like(log_ratios, -40.0)
    mask, truncate, none = (
        importance_weights(old + log_ratios, old, mode=m) for m in ("sequence_mask", "truncate", "none")
    )
    torch.testing.assert_close(mask.weights, torch.tensor([0.5, 1.0, 1.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(truncate.weights, torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64))
    assert none.weights.tolist() == [1.0] * 4
    assert [float(w.cut_share) for w in (mask, truncate, none)] == [0.25, 0.25, 0.0]


def test_a_ratio_beyond_the_floats_is_cut():
    far = importance_weights(torch.full((2,), 2000.0), torch.zeros(2))
    assert far.weights.tolist() == [0.0, 0.0] and far.cut_share == 1
    assert importance_weights(torch.full((1,), 2000.0), torch.zeros(1), mode="truncate").weights.tolist() == [2.0]


def test_mistaken_settings_say_where_they_are():
    one = torch.zeros(1)
    with pytest.raises(UserError, match=r"importance_sampling\.cap"):
        importance_weights(one, one, cap=0.5)
    with pytest.raises(UserError, match="sequence_mask, truncate, none"):
        importance_weights(one, one, mode="clip")
    with pytest.raises(UserError, match="all or score"):
        plain_weights(one, "plain")
