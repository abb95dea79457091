"""Where the losses of single responses lead: filters, reward weights, thumbs, win rates."""

import math

import pytest
import torch

from sail.objectives import Responses
from sail.objectives.pointwise import kto, nll, rwr, sft, sppo
from sail.objectives.statistics import rwr_log_z

from .by_hand import CHOSEN, tensor
from .populations import every_response, gradient, make_toy

TOY = make_toy()
PROMPTS = TOY.prompt_probs[:, None]


def slope_at(target: torch.Tensor, loss, *given, draws: torch.Tensor) -> torch.Tensor:
    """The exact gradient at the policy with log-probs `target`, on responses drawn by `draws` (log-probs)."""
    theta = target.clone().requires_grad_()
    responses = every_response(theta.log_softmax(1), TOY.ref, TOY.rewards)
    return gradient(((PROMPTS * draws.exp()).flatten() * loss(responses, *given)).sum(), theta)


# ---- likelihood ----------------------------------------------------------------------------------------------------


def test_nll_is_sft_times_the_length():
    torch.testing.assert_close(nll(CHOSEN), sft(CHOSEN) * CHOSEN.num_tokens)


def test_filtering_ends_at_the_writers_own_distribution_over_what_is_kept():
    kept = TOY.rewards >= TOY.rewards.sort(dim=1).values[:, 1:2]
    survivors = torch.where(kept, TOY.data, -math.inf).log_softmax(1)
    near = torch.where(kept, survivors, torch.full_like(survivors, -60.0))
    assert slope_at(near, nll, draws=survivors).abs().max() < 1e-12
    assert slope_at(TOY.data, nll, draws=survivors).abs().max() > 0.05


# ---- reward-weighted regression ------------------------------------------------------------------------------------


def weighted(temperature: float, cap: float, log_z: float = 0.0):
    return lambda responses: rwr(responses, tensor(log_z)[0], temperature=temperature, cap=cap)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_reward_weights_on_responses_of_the_reference_end_at_its_exponential_tilt(temperature):
    """pi_ref exp(r / T), normalised per prompt, whatever the batch-wide log_z; of data by others, their tilt."""
    for draws in (TOY.ref, TOY.data):
        best = (draws + TOY.rewards / temperature).log_softmax(1)
        for log_z in (0.0, 1.3):
            assert slope_at(best, weighted(temperature, 1e9, log_z), draws=draws).abs().max() < 1e-14
    assert slope_at(TOY.ref, weighted(temperature, 1e9), draws=TOY.ref).abs().max() > 0.05


def test_capped_weights_end_at_the_capped_tilt():
    cap = 1.2
    best = (TOY.ref + TOY.rewards.clamp_max(math.log(cap))).log_softmax(1)
    assert (TOY.rewards.exp() > cap).any()
    assert slope_at(best, weighted(1.0, cap), draws=TOY.ref).abs().max() < 1e-14
    assert slope_at(best, weighted(1.0, 1e9), draws=TOY.ref).abs().max() > 0.02


def test_a_prompt_with_higher_scores_weighs_more_because_the_weights_are_normalised_over_the_batch():
    """One nat of score (at T = 1) multiplies a prompt's share of the gradient by e: z-score, or give it a tag."""
    scores = tensor(0.0, 1.0, 1.0, 2.0)
    logps = torch.full((4,), -3.0, dtype=torch.float64).requires_grad_()
    log_z = rwr_log_z(Responses(logps, logps, logps, scores)).value
    (pulls,) = torch.autograd.grad(rwr(Responses(logps, logps, logps, scores), log_z).sum(), logps)
    assert float(pulls[2:].sum() / pulls[:2].sum()) == pytest.approx(math.e)
    assert float(-pulls.mean()) == pytest.approx(1.0)


# ---- thumbs --------------------------------------------------------------------------------------------------------


def pulls_of(thumb: float, ratios: torch.Tensor, z0: float = 0.0, **params: float) -> torch.Tensor:
    logps = ratios.clone().requires_grad_()
    responses = Responses(logps, 0 * ratios, 0 * ratios, torch.full_like(ratios, thumb))
    return torch.autograd.grad(kto(responses, tensor(z0)[0], **params).sum(), logps)[0]


def test_a_thumb_up_raises_a_response_and_one_down_lowers_it_most_of_all_at_the_reference_point():
    ratios = tensor(-200.0, -3.0, 0.0, 2.0, 5.0, 200.0)
    up, down = (pulls_of(thumb, ratios, z0=2.0) for thumb in (1.0, 0.0))
    assert (up < 0).all()
    torch.testing.assert_close(down, -up)
    assert int(up.abs().argmax()) == 3 and float(up[3]) == pytest.approx(-0.1 / 4)
    assert up[[0, -1]].abs().max() < 1e-8


def test_class_weights_scale_their_own_class():
    ratios = tensor(-1.0, 0.5)
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.25}
    torch.testing.assert_close(pulls_of(1.0, ratios, **weights), 1.5 * pulls_of(1.0, ratios))
    torch.testing.assert_close(pulls_of(0.0, ratios, **weights), 0.25 * pulls_of(0.0, ratios))
    assert pulls_of(0.0, ratios, undesirable_weight=0.0).tolist() == [0.0, 0.0]


# ---- win rates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.001, 0.3])
def test_sppo_is_smallest_where_the_log_ratio_is_the_excess_win_rate_over_beta(beta):
    rates = tensor(0.1, 0.5, 0.95)
    logps = (-400.0 + (rates - 0.5) / beta).requires_grad_()
    loss = sppo(Responses(logps, tensor(-400.0, -400.0, -400.0), rates, rates), beta=beta)
    assert loss.max() < 1e-20 and torch.autograd.grad(loss.sum(), logps)[0].abs().max() < 1e-10


def test_sppo_aims_at_the_multiplicative_weights_update_up_to_a_normaliser_of_second_order():
    """pi_t exp(P / beta) / Z: the gradient there falls like 1 / beta^2, that at pi_t only like 1 / beta."""
    ahead = 1.0 / (1.0 + torch.exp(TOY.rewards[:, None] - TOY.rewards[:, :, None]))
    rates = (ahead * TOY.ref.exp()[:, None]).sum(2)  # P(y beats a draw of pi_t), pi_t = ref
    torch.testing.assert_close((rates * TOY.ref.exp()).sum(1), tensor(0.5, 0.5))

    def slope(policy: torch.Tensor, beta: float) -> float:
        def loss(responses: Responses) -> torch.Tensor:
            return sppo(responses._replace(targets=rates.flatten()), beta=beta)

        return float(slope_at(policy, loss, draws=TOY.ref).abs().max())

    def update(beta: float) -> torch.Tensor:
        return (TOY.ref + rates / beta).log_softmax(1)

    assert slope(TOY.ref, 4.0) / slope(TOY.ref, 8.0) == pytest.approx(2.0)
    assert slope(update(4.0), 4.0) < 0.02 * slope(TOY.ref, 4.0)
    assert slope(update(4.0), 4.0) / slope(update(8.0), 8.0) > 3.5
