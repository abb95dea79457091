"""The score term: its sign, its baseline, its variance, and where it leads."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sail.objectives.online import OnlineTerms, PairLosses, labels_by_others, pair_value, soft_labels

from .exact_sums import complex_step, exact_gradient, exact_objective
from .tabular import all_pairs, expected_gradient, make_world, per_pair
from .test_label_table import row_of

WORLD = make_world()
BETA = {"beta": 0.7}
PAIRS = all_pairs(WORLD, "dpo", BETA)


# ---- sign, baseline, variance --------------------------------------------------------------------------------------


def test_the_score_term_makes_a_costly_pair_rarer():
    """One step against the score gradient alone lowers log pi of a pair whose loss lies above the baseline."""
    i = int(torch.argmax(PAIRS.losses.a))
    losses = PairLosses(PAIRS.losses.a[i : i + 1].detach(), PAIRS.losses.b[i : i + 1].detach())
    S = PAIRS.score_logps[i : i + 1]
    loss = labels_by_others(losses, torch.ones(1, dtype=torch.float64), OnlineTerms(S, 1.0, baseline=0.1))
    downhill = -torch.autograd.grad(loss.sum(), PAIRS.theta, retain_graph=True)[0]
    uphill_of_S = torch.autograd.grad(S.sum(), PAIRS.theta, retain_graph=True)[0]
    assert losses.a > 0.1 and (downhill * uphill_of_S).sum() < 0


@pytest.mark.parametrize("label", ["others-sampled", "others-soft", "fresh-soft", "fresh-sampled", "fresh-hard"])
def test_a_constant_baseline_leaves_the_expectation_alone(label):
    gradients = [
        expected_gradient(PAIRS, label, row_of(label), OnlineTerms(PAIRS.score_logps, 1.0, baseline))
        for baseline in (0.0, 0.69, -20.0)
    ]
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(gradients[2], gradients[0], rtol=0, atol=1e-12)


def total_variance(label: str, baseline: float) -> float:
    """Trace of the covariance of the one-pair estimator of SAIL-PR at c = 1, over prompts, responses and labels."""
    p_ones = [torch.ones_like(PAIRS.p_a), torch.zeros_like(PAIRS.p_a)]
    draws = [(PAIRS.p_a, p_ones[0]), (1 - PAIRS.p_a, p_ones[1])] if label == "sampled" else [(p_ones[0], PAIRS.p_a)]
    online = OnlineTerms(PAIRS.score_logps, 1.0, baseline)
    second, mean = 0.0, np.zeros(8)
    for probs, p_a in draws:
        weight = (PAIRS.policy_probs * probs).numpy()
        gradient = per_pair(PAIRS, labels_by_others(PAIRS.losses, p_a, online))
        second += (weight * (gradient**2).sum(axis=1)).sum()
        mean += weight @ gradient
    return float(second - (mean**2).sum())


def test_baseline_and_soft_labels_each_reduce_the_variance():
    mean_loss = float((PAIRS.policy_probs * pair_value(PAIRS.losses, PAIRS.p_a)).sum())
    bare, with_baseline = total_variance("sampled", 0.0), total_variance("sampled", mean_loss)
    soft = total_variance("soft", mean_loss)
    assert soft < 0.8 * with_baseline < 0.8 * 0.8 * bare


# ---- section 5c: what the optimum is -------------------------------------------------------------------------------


def test_at_the_true_reward_the_plain_term_vanishes_and_the_score_term_does_not():
    """theta_ref + reward / beta makes sigmoid(beta h) equal to the labeler's p for every pair."""
    theta = WORLD.ref_theta + WORLD.rewards / BETA["beta"]
    solved = replace(WORLD, theta=theta)
    plain = exact_gradient(solved, "dpo", "others-soft", BETA, sail_coef=0.0)
    assert np.abs(plain).max() < 1e-13
    assert np.abs(exact_gradient(solved, "dpo", "others-soft", BETA, sail_coef=1.0)).max() > 1e-2


def test_the_pr_objective_is_label_entropy_plus_divergence():
    theta = WORLD.theta.astype(complex)
    p = WORLD.labeler.flatten()
    q = soft_labels(PAIRS.preference).numpy()
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    value = exact_objective(WORLD, "dpo", "others-soft", BETA, theta, theta, theta)
    assert abs(value.real - (PAIRS.policy_probs.numpy() * (entropy + divergence)).sum()) < 1e-13


def test_the_complex_step_differentiates_a_known_function_to_rounding():
    theta = np.array([[0.3, -1.2]])
    np.testing.assert_allclose(complex_step(lambda t: complex(np.exp(t).sum()), theta), np.exp(theta), rtol=1e-14)
