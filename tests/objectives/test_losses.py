"""The contract of an objective, run over the whole registry. A new loss adds its row to BY_HAND in by_hand.py."""

import math

import pytest
import torch

from sail.core.errors import UserError
from sail.objectives import ALIASES, LOSSES, Responses, find_loss
from sail.objectives.averaged import dpo_norm, ipo_mean
from sail.objectives.pairwise import dpo, hinge, ipo, slic
from sail.objectives.pointwise import sft
from sail.objectives.regression import dro_v, dro_value

from . import contract
from .by_hand import BY_HAND, CHOSEN, CRITICS_BY_HAND, REJECTED, nls, tensor
from .contract import case_by_hand, loss_of, random_case

NAMES = list(LOSSES)
PAIRS = [name for name, row in LOSSES.items() if row.unit == "pair"]


def random_sides(name: str, batch: int = 5) -> tuple[Responses, ...]:
    return random_case(LOSSES[name], batch).sides


@pytest.mark.parametrize("name", NAMES)
def test_values_by_hand(name):
    assert set(BY_HAND) == set(LOSSES)
    contract.has_the_values_by_hand(LOSSES[name], *BY_HAND[name])


@pytest.mark.parametrize("name", NAMES)
def test_one_value_per_row_and_rows_know_nothing_of_each_other(name):
    contract.has_one_value_per_row_and_rows_that_know_nothing_of_each_other(LOSSES[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_finite_difference(name):
    contract.has_the_gradient_of_its_finite_differences(LOSSES[name])


@pytest.mark.parametrize("name", NAMES)
def test_loss_link_and_gradient_are_finite_at_gaps_of_ten_thousand_nats(name):
    contract.is_finite_at_gaps_of_ten_thousand_nats(LOSSES[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_row_declares_what_is_true(name):
    contract.declares_what_is_true(LOSSES[name])


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if row.critic])
def test_a_critic_has_its_values_by_hand_and_learns_alone(name):
    """The critic's gradient flows into its values, the policy's half has none there."""
    assert set(CRITICS_BY_HAND) == {name for name, row in LOSSES.items() if row.critic}
    row, (params, expected) = LOSSES[name], CRITICS_BY_HAND[name]
    case = case_by_hand(row)
    logps, values = (t.clone().requires_grad_() for t in (contract.tokens_of(CHOSEN).logps, case.given[-1]))
    responses = contract.with_tokens(case.sides[0], contract.tokens_of(CHOSEN)._replace(logps=logps))
    critic = row.critic(responses, values, **params)
    torch.testing.assert_close(critic, tensor(*expected), rtol=1e-12, atol=1e-15)
    assert torch.autograd.grad(critic.sum(), logps, allow_unused=True, retain_graph=True) == (None,)
    assert (torch.autograd.grad(critic.sum(), values)[0] != 0).any()
    policy = row.loss(responses, values, **params).sum()
    assert torch.autograd.grad(policy, values, allow_unused=True, retain_graph=True) == (None,)
    assert (torch.autograd.grad(policy, logps)[0] != 0).any()
    assert set(params) <= set(row.params)


def test_the_critics_gradient_is_the_residual_over_the_length():
    """Eq. 7 of arXiv 2405.19107, a mean over the tokens of each response."""
    case = random_case(LOSSES["dro_v"])
    (responses,), values = case.sides, case.given[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(dro_value(responses, values, tau=0.7).sum(), values)
    row = contract.tokens_of(responses).row
    residuals = values - (responses.targets - 0.7 * (responses.logps - responses.ref_logps))[row]
    torch.testing.assert_close(gradient, (residuals / responses.num_tokens[row]).detach())
    assert len(dro_v(responses, values)) == 5


def test_the_first_baseline_is_the_loss_at_the_reference():
    assert LOSSES["dpo"].baseline_start(beta=0.3) == pytest.approx(math.log(2.0))
    assert LOSSES["ipo"].baseline_start(beta=0.1) == pytest.approx(25.0)
    assert LOSSES["slic"].baseline_start(delta=2.0) == pytest.approx(2.0)
    assert LOSSES["simpo"].baseline_start(beta=2.0, gamma=1.0) == pytest.approx(nls(-1.0))
    assert LOSSES["sppo_hard"].baseline_start(beta=0.5) == pytest.approx(2.0)
    assert LOSSES["linear"].baseline_start() == LOSSES["abs_margin"].baseline_start() == 0.0


def test_summed_and_averaged_log_probs_are_not_the_same_loss():
    """On equal lengths ipo_mean is ipo at another beta; on unequal ones nothing is."""
    for row in LOSSES.values():
        case = case_by_hand(row)
        long = case._replace(sides=tuple(side._replace(num_tokens=7.0 + side.num_tokens) for side in case.sides))
        assert torch.equal(loss_of(row, long), loss_of(row, case)) == ("num_tokens" not in row.needs)
    even = [side._replace(num_tokens=tensor(4.0, 4.0, 4.0)) for side in (CHOSEN, REJECTED)]
    torch.testing.assert_close(dpo_norm(*even, beta=2.0), dpo(*even, beta=0.5))
    torch.testing.assert_close(16.0 * ipo_mean(*even, beta=0.4), ipo(*even, beta=0.1))


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if "num_tokens" in row.needs])
def test_a_response_without_tokens_costs_a_finite_number_and_pulls_nowhere(name):
    logps = tensor(0.0).requires_grad_()
    empty = Responses(logps, tensor(0.0), tensor(0.0), feature_distances=tensor(0.0))
    sides = (empty, Responses(tensor(-9.0), tensor(-8.0), tensor(4.0), feature_distances=tensor(1.0)))
    value = LOSSES[name].loss(*sides[: 2 if name in PAIRS else 1])
    assert torch.isfinite(value).all() and torch.isfinite(torch.autograd.grad(value, logps)[0]).all()
    assert sft(empty).tolist() == [0.0]


def test_a_loss_is_found_by_name_and_alias_and_a_wrong_name_is_explained():
    assert find_loss("sigmoid") is LOSSES["dpo"] and set(ALIASES.values()) <= set(LOSSES)
    assert find_loss("fa") is LOSSES["nll"]
    with pytest.raises(UserError, match="Use one of dpo, cdpo"):
        find_loss("dpoo")
    with pytest.raises(UserError, match="sorts log-ratios over the batch"):
        find_loss("aot", where="routes.online.loss")


def test_hinge_is_trls_and_not_slic():
    assert "SLiC-HF has no reference" in LOSSES["hinge"].elsewhere
    assert not torch.equal(hinge(CHOSEN, REJECTED, beta=1.0), slic(CHOSEN, REJECTED))
