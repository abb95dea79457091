"""Direct reward optimisation finds the policy and the value of the KL-regularised problem, whoever wrote the data."""

from itertools import product

import pytest
import torch
from torch import Tensor

from sail.objectives import Responses
from sail.objectives.regression import dro_p, dro_v, dro_value
from sail.objectives.responses import Tokens, log_ratio

from .populations import every_group, every_response, gradient, make_toy

TOY = make_toy()
WEIGHTS = (TOY.prompt_probs[:, None] * TOY.data.exp()).flatten()  # who asks and who wrote the data: not the policy


def optimum(tau: float) -> tuple[Tensor, Tensor]:
    """log pi* = log pi_ref + (r - V*) / tau and V* = tau log E_ref exp(r / tau)."""
    value = tau * torch.logsumexp(TOY.ref + TOY.rewards / tau, 1)
    return TOY.ref + (TOY.rewards - value[:, None]) / tau, value


def descend(losses, shapes: list[tuple[int, ...]], rate: float) -> list[Tensor]:
    """Plain gradient descent on exact sums, (*policy parameters, values), each half on its own loss, to its rest."""
    parts = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    for _ in range(4000):
        policy, critic = losses(*parts)
        slopes = torch.autograd.grad(policy, parts[:-1], retain_graph=True) + torch.autograd.grad(critic, parts[-1])
        if max(slope.abs().max() for slope in slopes) < 1e-10:
            return [part.detach() for part in parts]
        with torch.no_grad():
            for part, slope in zip(parts, slopes, strict=True):
                part -= rate * slope
    raise AssertionError("no rest was found")


def solve(tau: float, coefficient: float) -> tuple[Tensor, Tensor]:
    """(log pi, V) where DRO-V comes to rest with `coefficient` before s^2."""

    def losses(theta: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        responses = every_response(theta.log_softmax(1), TOY.ref, TOY.rewards)
        printed = (coefficient - 0.5 * tau) * log_ratio(responses).square()
        of_tokens = values.repeat_interleave(3)
        policy = (WEIGHTS * (dro_v(responses, of_tokens, tau=tau) + printed)).sum()
        return policy, (WEIGHTS * dro_value(responses, of_tokens, tau=tau)).sum()

    theta, values = descend(losses, [(2, 3), (2,)], rate=2.0 / max(tau, 1.0))
    return theta.log_softmax(1), values


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_dro_v_finds_the_best_policy_and_its_value_off_policy(tau):
    logps, values = solve(tau, coefficient=0.5 * tau)
    best, best_value = optimum(tau)
    torch.testing.assert_close(logps, best, rtol=0, atol=1e-8)
    torch.testing.assert_close(values, best_value, rtol=0, atol=1e-8)


def test_the_coefficient_printed_in_the_papers_algorithm_leads_elsewhere():
    """Algorithm 1 of arXiv 2405.19107 has 1/2 where its eq. 8 over tau gives tau/2."""
    logps, _ = solve(tau=0.5, coefficient=0.5)
    assert (logps - optimum(0.5)[0]).abs().max() > 0.05


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_the_best_policy_is_a_rest_under_the_papers_equation_and_under_its_algorithm_only_at_tau_one(tau):
    best, best_value = optimum(tau)
    theta = best.clone().requires_grad_()
    responses = every_response(theta.log_softmax(1), TOY.ref, TOY.rewards)
    by_equation = (WEIGHTS * dro_v(responses, best_value.repeat_interleave(3), tau=tau)).sum()
    by_algorithm = by_equation + (WEIGHTS * (0.5 - 0.5 * tau) * log_ratio(responses).square()).sum()
    assert gradient(by_equation, theta).abs().max() < 1e-15
    assert (gradient(by_algorithm, theta).abs().max() > 1e-2) == (tau != 1.0)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_the_policys_half_is_the_papers_gradient_over_tau(tau):
    """Eq. 8 over tau, and so the gradient of the joint squared error, eq. 4, over tau."""
    theta = TOY.theta.clone().requires_grad_()
    responses = every_response(theta.log_softmax(1), TOY.ref, TOY.rewards)
    values = torch.tensor([0.3, -0.2], dtype=torch.float64).repeat_interleave(3)
    error = responses.targets - values - tau * log_ratio(responses)
    joint = gradient((WEIGHTS * 0.5 * error.square()).sum(), theta)
    half = gradient((WEIGHTS * dro_v(responses, values, tau=tau)).sum(), theta)
    torch.testing.assert_close(half, joint / tau, rtol=0, atol=1e-14)


# ---- a value at every token ----------------------------------------------------------------------------------------


def two_tokens(first: Tensor, second: Tensor, ref: Tensor, rewards: Tensor) -> Responses:
    """All four responses of two tokens to one prompt: pi(a) and pi(b | a) from logits [2] and [2, 2]."""
    log_a, log_b = first.log_softmax(0), second.log_softmax(1)
    tokens = torch.stack([torch.stack([log_a[a], log_b[a, b]]) for a, b in product(range(2), repeat=2)])
    row = torch.arange(4).repeat_interleave(2)
    return Responses(tokens.sum(1), ref, torch.full((4,), 2.0).double(), rewards, tokens=Tokens(tokens.flatten(), row))


def test_a_value_at_every_token_has_the_same_optimum_and_every_value_is_that_of_the_prompt():
    """At pi* the rest r - tau s is V*(x) for every response, so no prefix can know better."""
    tau, ref, rewards = 0.7, TOY.ref.flatten()[:4].log_softmax(0), TOY.rewards.flatten()[:4]
    data = TOY.data.flatten()[:4].softmax(0)
    prefix = torch.tensor([0, 1, 0, 1, 0, 2, 0, 2])  # values: of the prompt, after a = 0, after a = 1

    def losses(first: Tensor, second: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        responses = two_tokens(first, second, ref, rewards)
        halves = (loss(responses, values[prefix], tau=tau) for loss in (dro_v, dro_value))
        return tuple((data * half).sum() for half in halves)

    first, second, values = descend(losses, [(2,), (2, 2), (3,)], rate=2.0)
    best_value = tau * torch.logsumexp(ref + rewards / tau, 0)
    got = two_tokens(first, second, ref, rewards).logps
    torch.testing.assert_close(got, ref + (rewards - best_value) / tau, rtol=0, atol=1e-8)
    torch.testing.assert_close(values, best_value.expand(3), rtol=0, atol=1e-8)


# ---- without a value -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3])
def test_dro_p_is_half_the_variance_of_the_residual_in_expectation_for_any_group_size(n):
    tau, logps = 0.7, TOY.theta.log_softmax(1)
    responses, probs = every_group(n, logps, TOY.ref, TOY.data, TOY.prompt_probs, TOY.rewards)
    residual = TOY.rewards - tau * (logps - TOY.ref)
    mean = (TOY.data.exp() * residual).sum(1, keepdim=True)
    variance = (TOY.data.exp() * (residual - mean).square()).sum(1)
    torch.testing.assert_close((probs * dro_p(responses, tau=tau)).sum(), 0.5 * (TOY.prompt_probs * variance).sum())


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_dro_p_is_smallest_at_the_best_policy_off_policy(tau):
    theta = optimum(tau)[0].clone().requires_grad_()
    at_best = every_group(2, theta.log_softmax(1), TOY.ref, TOY.data, TOY.prompt_probs, TOY.rewards)
    value = (at_best.probs * dro_p(at_best.responses, tau=tau)).sum()
    assert value < 1e-28 and gradient(value, theta).abs().max() < 1e-13
    elsewhere = every_group(2, TOY.theta.log_softmax(1), TOY.ref, TOY.data, TOY.prompt_probs, TOY.rewards)
    assert (elsewhere.probs * dro_p(elsewhere.responses, tau=tau)).sum() > 1e-2


def test_dro_p_of_two_is_a_regression_of_the_reward_gap_and_of_one_is_nothing():
    logps, zeros = torch.tensor([-1.0, -3.0, -2.0]).double(), torch.zeros(3).double()
    responses = Responses(logps, zeros, zeros, targets=torch.tensor([1.0, 2.0, 9.0]).double(),
                          group=torch.tensor([0, 0, 1]))  # fmt: skip
    gap = (1.0 - 2.0) - 0.5 * (-1.0 + 3.0)
    assert dro_p(responses, tau=0.5).tolist() == [0.25 * gap**2, 0.25 * gap**2, 0.0]
