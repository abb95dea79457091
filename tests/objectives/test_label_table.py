"""Every row of the label table is an unbiased estimator of the exact gradient, for every pairwise loss."""

import numpy as np
import pytest
import torch

from sail.objectives.online import (
    FRESH_LABELS,
    FRESH_ROWS,
    OnlineTerms,
    PairLosses,
    PolicyPreference,
    fresh_hard,
    hard_labels,
    labels_by_others,
    pair_value,
)

from .exact_sums import complex_step, exact_gradient, exact_objective, exact_preference
from .tabular import Estimator, all_pairs, expected_gradient, make_world

WORLD = make_world()
PARAMS = {
    "dpo": {"beta": 0.7}, "ipo": {"beta": 0.35}, "slic": {"delta": 1.0}, "cdpo": {"beta": 0.7, "epsilon": 0.2},
    "rdpo": {"beta": 0.7, "epsilon": 0.2}, "simpo": {"beta": 2.0, "gamma": 0.6}, "sppo_hard": {"beta": 0.5},
}  # fmt: skip
LABELS = ["others-hard", "others-sampled", "others-soft", "fresh-soft", "fresh-sampled", "fresh-hard"]


def row_of(label: str) -> Estimator:
    who, mode = label.split("-")
    if who == "others":
        return lambda losses, p_a, preference, online: labels_by_others(losses, p_a, online)
    return lambda losses, p_a, preference, online: FRESH_ROWS[mode](losses, preference, online)


@pytest.mark.parametrize("from_policy", [True, False], ids=["policy", "dataset"])
@pytest.mark.parametrize("sail_coef", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("loss", PARAMS)
def test_the_expected_estimator_is_the_exact_gradient(loss, label, sail_coef, from_policy):
    pairs = all_pairs(WORLD, loss, PARAMS[loss])
    online = OnlineTerms(pairs.score_logps if from_policy else 0.0, sail_coef, baseline=0.37)
    probs = pairs.policy_probs if from_policy else pairs.dataset_probs
    got = expected_gradient(pairs, label, row_of(label), online, pair_probs=probs)
    want = exact_gradient(WORLD, loss, label, PARAMS[loss], sail_coef=sail_coef, from_policy=from_policy)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_the_worlds_reach_both_sides_of_every_kink():
    for loss in ("ipo", "cdpo", "sppo_hard"):
        preference = exact_preference(WORLD, loss, WORLD.theta, PARAMS[loss])
        assert (preference == 0).any() and ((preference > 0) & (preference < 1) & (preference != 0.5)).any()
    slic = all_pairs(WORLD, "slic", PARAMS["slic"]).losses.a
    assert (slic == 0).any() and (slic > 1).any()


@pytest.mark.parametrize("label", ["others-soft", "fresh-soft"])
@pytest.mark.parametrize("loss", PARAMS)
def test_at_c_one_the_complex_step_agrees_with_central_differences_of_the_whole_sum(loss, label):
    """Sixth-order central differences, step 1e-3: truncation 1e-18, rounding about 1e-13."""

    def whole(theta):
        return exact_objective(WORLD, loss, label, PARAMS[loss], theta, theta, theta)

    differences = np.zeros_like(WORLD.theta)
    for index in np.ndindex(*WORLD.theta.shape):
        step = np.zeros_like(WORLD.theta)
        step[index] = 1e-3
        for weight, k in ((45, 1), (-9, 2), (1, 3)):
            ahead, behind = whole(WORLD.theta + k * step).real, whole(WORLD.theta - k * step).real
            differences[index] += weight * (ahead - behind) / (60 * 1e-3)
    np.testing.assert_allclose(complex_step(whole, WORLD.theta), differences, rtol=0, atol=1e-10)
    assert np.abs(differences).max() > 1e-2
    gradient = exact_gradient(WORLD, loss, label, PARAMS[loss], sail_coef=1.0)
    np.testing.assert_allclose(gradient, differences, rtol=0, atol=1e-10)


@pytest.mark.parametrize("label", LABELS)
def test_at_c_zero_the_score_and_label_terms_are_not_even_looked_at(label):
    pairs = all_pairs(WORLD, "dpo", PARAMS["dpo"])
    poison = torch.full_like(pairs.p_a, torch.nan)
    online = OnlineTerms(poison, 0.0, baseline=float("nan"), weight=poison)
    assert torch.isfinite(row_of(label)(pairs.losses, pairs.p_a, pairs.preference, online)).all()


def test_without_sail_a_hard_label_gives_the_loss_itself_bit_for_bit():
    pairs = all_pairs(WORLD, "dpo", PARAMS["dpo"])
    won = labels_by_others(pairs.losses, torch.ones_like(pairs.p_a), OnlineTerms(pairs.score_logps))
    assert torch.equal(won, pairs.losses.a)
    lost = labels_by_others(pairs.losses, torch.zeros_like(pairs.p_a), OnlineTerms(pairs.score_logps))
    assert torch.equal(lost, pairs.losses.b)
    gradients = [torch.autograd.grad(v.sum(), pairs.theta, retain_graph=True)[0] for v in (won, pairs.losses.a)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("mode", FRESH_LABELS)
def test_pair_value_is_the_mean_loss_under_the_rows_own_labels(mode):
    pairs = all_pairs(WORLD, "dpo", PARAMS["dpo"])
    p_a = FRESH_LABELS[mode](pairs.preference)
    value = pair_value(pairs.losses, p_a)
    assert not value.requires_grad and not p_a.requires_grad
    torch.testing.assert_close(value, (p_a * pairs.losses.a + (1 - p_a) * pairs.losses.b).detach())


def test_a_tie_goes_to_the_stored_uniform_and_never_to_a_position():
    half = torch.full((2,), 0.5, dtype=torch.float64).log()
    preference = PolicyPreference(half, half, torch.tensor([0.2, 0.8], dtype=torch.float64))
    assert hard_labels(preference).tolist() == [1.0, 0.0]


def test_swapping_the_two_sides_of_a_pair_changes_nothing():
    pairs = all_pairs(WORLD, "dpo", PARAMS["dpo"])
    online = OnlineTerms(pairs.score_logps, 0.5, 0.2)
    swapped_losses = PairLosses(pairs.losses.b, pairs.losses.a)
    q = pairs.preference
    swapped = PolicyPreference(q.log_q_b, q.log_q_a, 1 - q.uniforms)
    torch.testing.assert_close(
        labels_by_others(pairs.losses, pairs.p_a, online), labels_by_others(swapped_losses, 1 - pairs.p_a, online)
    )
    for row in FRESH_ROWS.values():
        torch.testing.assert_close(row(pairs.losses, q, online), row(swapped_losses, swapped, online))


def test_weights_baseline_and_labels_carry_no_gradient():
    pairs = all_pairs(WORLD, "dpo", PARAMS["dpo"])
    loose = [torch.full_like(pairs.p_a, 0.4, requires_grad=True) for _ in range(4)]
    online = OnlineTerms(pairs.score_logps, 0.5, loose[0].mean(), loose[1], loose[2])
    total = (
        labels_by_others(pairs.losses, loose[3], online).sum()
        + fresh_hard(pairs.losses, pairs.preference, online).sum()
    )
    grads = torch.autograd.grad(total, loose, allow_unused=True)
    assert all(grad is None for grad in grads)
