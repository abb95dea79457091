"""The identities of the SAIL derivation (docs/methods.md), each by enumeration in float64.

L = log sigmoid(z) = -loss of dpo. J is maximised there and losses are minimised here, hence the signs.
"""

import numpy as np
import pytest
import torch

from sail.objectives.online import (
    OnlineTerms,
    fresh_sampled,
    fresh_soft,
    labels_by_others,
    soft_labels,
)

from .tabular import all_pairs, expected_gradient, make_world, per_pair
from .test_label_table import row_of

WORLD = make_world()
BETA = {"beta": 0.7}
PAIRS = all_pairs(WORLD, "dpo", BETA)
C = 0.3


# ---- section 3: the published gradients ----------------------------------------------------------------------------


def test_dp_is_the_published_sum():
    by_hand = np.zeros(8)
    q_a = soft_labels(PAIRS.preference)
    for loss, q in ((PAIRS.losses.a, q_a), (PAIRS.losses.b, 1 - q_a)):
        L = -loss
        weight = (PAIRS.dataset_probs * q * (1 + L.detach()))[:, None].numpy()
        by_hand += (weight * per_pair(PAIRS, L)).sum(axis=0)
    online = OnlineTerms(sail_coef=1.0)
    got = expected_gradient(PAIRS, "fresh-sampled", row_of("fresh-sampled"), online, pair_probs=PAIRS.dataset_probs)
    np.testing.assert_allclose(got.flatten(), -by_hand, rtol=0, atol=1e-10)


@pytest.mark.parametrize("setup", ["PP", "PR"])
def test_pp_and_pr_are_the_published_sums(setup):
    label = {"PP": "fresh-sampled", "PR": "others-sampled"}[setup]
    p_a = soft_labels(PAIRS.preference) if setup == "PP" else PAIRS.p_a
    score = per_pair(PAIRS, PAIRS.score_logps)
    by_hand = np.zeros(8)
    for loss, p in ((PAIRS.losses.a, p_a), (PAIRS.losses.b, 1 - p_a)):
        L = -loss
        grad_L, value = per_pair(PAIRS, L), L.detach().numpy()[:, None]
        bracket = score + grad_L if setup == "PP" else score
        by_hand += ((PAIRS.policy_probs * p)[:, None].numpy() * (grad_L + value * bracket)).sum(axis=0)
    got = expected_gradient(PAIRS, label, row_of(label), OnlineTerms(PAIRS.score_logps, 1.0))
    np.testing.assert_allclose(got.flatten(), -by_hand, rtol=0, atol=1e-10)


# ---- section 4: the surrogate losses -------------------------------------------------------------------------------


def test_the_surrogates_have_the_gradients_of_our_rows_pair_by_pair():
    """With b = 0 in the label term, as printed there, and L of the label drawn. Our b is -b there."""
    u = PAIRS.preference.uniforms
    L = torch.where(u < soft_labels(PAIRS.preference), -PAIRS.losses.a, -PAIRS.losses.b)
    S = PAIRS.score_logps
    dp = -L - C / 2 * L.square()
    pp = -L - C * (L.square() / 2 + L.detach() * S)
    ours_dp = fresh_sampled(PAIRS.losses, PAIRS.preference, OnlineTerms(sail_coef=C))
    ours_pp = fresh_sampled(PAIRS.losses, PAIRS.preference, OnlineTerms(S, C))
    np.testing.assert_allclose(per_pair(PAIRS, ours_dp), per_pair(PAIRS, dp), rtol=0, atol=1e-13)
    np.testing.assert_allclose(per_pair(PAIRS, ours_pp), per_pair(PAIRS, pp), rtol=0, atol=1e-13)

    pr = PAIRS.losses.a - C * (-PAIRS.losses.a + 0.5).detach() * S
    ours_pr = labels_by_others(PAIRS.losses, torch.ones_like(u), OnlineTerms(S, C, baseline=0.5))
    np.testing.assert_allclose(per_pair(PAIRS, ours_pr), per_pair(PAIRS, pr), rtol=0, atol=1e-13)


# ---- section 5a: self-labels ---------------------------------------------------------------------------------------


def test_under_self_labels_the_plain_term_has_zero_mean_for_every_pair():
    q_a = soft_labels(PAIRS.preference).numpy()[:, None]
    mean = q_a * per_pair(PAIRS, PAIRS.losses.a) + (1 - q_a) * per_pair(PAIRS, PAIRS.losses.b)
    assert np.abs(mean).max() < 1e-13 < 1e-2 < np.abs(per_pair(PAIRS, PAIRS.losses.a)).max()


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_fresh_soft_without_sail_moves_nothing(loss):
    params = {"beta": 0.05}  # small enough that ipo's preference is clipped nowhere
    pairs = all_pairs(WORLD, loss, params)
    gradient = per_pair(pairs, fresh_soft(pairs.losses, pairs.preference, OnlineTerms(pairs.score_logps)))
    assert np.abs(gradient).max() < 1e-12


def test_dp_in_expectation_only_sharpens_the_policys_own_preference():
    q = soft_labels(PAIRS.preference)
    entropy = -(
        PAIRS.preference.log_q_a.exp() * PAIRS.preference.log_q_a
        + PAIRS.preference.log_q_b.exp() * PAIRS.preference.log_q_b
    )
    got = per_pair(PAIRS, fresh_soft(PAIRS.losses, PAIRS.preference, OnlineTerms(sail_coef=C, baseline=0.2)))
    np.testing.assert_allclose(got, C * per_pair(PAIRS, entropy), rtol=0, atol=1e-13)
    assert q.min() < 0.3


def test_the_soft_row_is_the_mean_of_the_sampled_row_over_its_labels():
    online = OnlineTerms(PAIRS.score_logps, C, baseline=0.4)
    q_a = soft_labels(PAIRS.preference)
    uniforms = (q_a / 2, (1 + q_a) / 2)
    drawn_a, drawn_b = (
        per_pair(PAIRS, fresh_sampled(PAIRS.losses, PAIRS.preference._replace(uniforms=u), online)) for u in uniforms
    )
    share = q_a.numpy()[:, None]
    soft = per_pair(PAIRS, fresh_soft(PAIRS.losses, PAIRS.preference, online))
    np.testing.assert_allclose(share * drawn_a + (1 - share) * drawn_b, soft, rtol=0, atol=1e-13)
