"""PPO: advantages worked by hand, the surrogate's gradient against the policy gradient, against exact sums, clipped."""

import itertools

import pytest
import torch

from sail.objectives.ppo import gae, ppo, ppo_diagnostics, ppo_rollouts, ppo_value
from sail.objectives.regression import rloo
from sail.objectives.responses import Responses, Rollout, Tokens, Trajectory, row_sums

from .by_hand import tensor

NO_CLIP = 1e300


def responses(logps: torch.Tensor, rollouts: list[Rollout], rewards: list[float] | None = None) -> Responses:
    """Responses of the rollouts' lengths whose tokens have these log-probs."""
    lengths = [len(each.old_logps) for each in rollouts]
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    whole = Rollout(*(torch.cat(parts) for parts in zip(*rollouts, strict=True)))
    sums = torch.zeros(len(lengths), dtype=torch.float64).index_add(0, row, logps)
    return Responses(
        logps=sums, ref_logps=sums.detach(), num_tokens=tensor(*map(float, lengths)),
        targets=None if rewards is None else tensor(*rewards),
        group=torch.zeros(len(lengths), dtype=torch.int64), tokens=Tokens(logps, row, whole),
    )  # fmt: skip


def coefficients(loss: torch.Tensor, logps: torch.Tensor) -> torch.Tensor:
    """d loss / d log pi of every token."""
    return torch.autograd.grad(loss.sum(), logps)[0]


def some_trajectories(rewards: list[float]) -> list[Trajectory]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for index, reward in enumerate(rewards):
        logps, ref_logps, values = (torch.randn(3, 2 + index, generator=generator, dtype=torch.float64)).unbind()
        made.append(Trajectory(-logps.abs(), -ref_logps.abs(), values, reward))
    return made


# ---- advantages ------------------------------------------------------------------------------------------------------


def test_gae_by_hand():
    """d = (0 + .9*2 - 1, 1 + .9*3 - 2, 4 + 0 - 3) = (.8, 1.7, 1); A = d + .9 * .5 * A of the next."""
    advantages = gae(tensor(0.0, 1.0, 4.0), tensor(1.0, 2.0, 3.0), gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages, tensor(0.8 + 0.45 * 2.15, 1.7 + 0.45 * 1.0, 1.0))


def test_gae_ends_at_the_one_step_error_and_at_the_whole_return():
    rewards, values = tensor(0.5, -1.0, 2.0), tensor(0.3, 0.7, -0.2)
    one_step = gae(rewards, values, gamma=1.0, lam=0.0)
    torch.testing.assert_close(one_step, tensor(0.5 + 0.7 - 0.3, -1.0 - 0.2 - 0.7, 2.0 + 0.2))
    torch.testing.assert_close(gae(rewards, values, gamma=1.0, lam=1.0), tensor(1.5, 1.0, 2.0) - values)
    assert gae(tensor(), tensor(), gamma=1.0, lam=0.95).shape == (0,)


def test_the_kl_penalty_stands_at_every_token_and_the_reward_at_the_last():
    """kl = (.5, -1): rewards -.1 * kl + (0, 3) = (-.05, 3.1); with V = (1, 2), lam 1: A = (3.05 - 1, 3.1 - 2)."""
    (rollout,) = ppo_rollouts(
        [Trajectory(tensor(-0.5, -2.0), tensor(-1.0, -1.0), tensor(1.0, 2.0), 3.0)], kl_coef=0.1, lam=1.0, whiten=0.0
    )
    torch.testing.assert_close(rollout.advantages, tensor(2.05, 1.1))
    torch.testing.assert_close(rollout.returns, tensor(3.05, 3.1))
    torch.testing.assert_close(rollout.old_logps, tensor(-0.5, -2.0))


def test_whitening_is_over_all_tokens_of_the_round_and_spares_the_returns():
    """Advantages 1, 2 of one response and 6 of another: mean 3, variance 14/3."""
    made = [
        Trajectory(tensor(-1.0, -1.0), tensor(-1.0, -1.0), tensor(1.0, 0.0), 2.0),
        Trajectory(tensor(-1.0), tensor(-1.0), tensor(0.0), 6.0),
    ]
    plain = ppo_rollouts(made, lam=1.0, whiten=0.0)
    white = ppo_rollouts(made, lam=1.0)
    assert [each.advantages.tolist() for each in plain] == [[1.0, 2.0], [6.0]]
    scale = (14.0 / 3.0 + 1e-8) ** 0.5
    torch.testing.assert_close(white[0].advantages, tensor(-2.0 / scale, -1.0 / scale))
    torch.testing.assert_close(white[1].advantages, tensor(3.0 / scale))
    assert [each.returns.tolist() for each in white] == [[2.0, 2.0], [6.0]]


# ---- the surrogate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cliprange", [0.2, NO_CLIP])
def test_where_nothing_has_moved_the_gradient_is_the_policy_gradient(cliprange):
    rollouts = ppo_rollouts(some_trajectories([1.0, -2.0, 0.5]))
    logps = torch.cat([each.old_logps for each in rollouts]).requires_grad_()
    batch = responses(logps, rollouts)
    advantages = torch.cat([each.advantages for each in rollouts])
    torch.testing.assert_close(coefficients(ppo(batch, logps, cliprange=cliprange), logps), -advantages)
    torch.testing.assert_close(ppo(batch, logps), -row_sums(advantages, batch))


def test_clipping_by_hand():
    """rho = 1.5, 1.5, .5, .5, 1.1 against A = 2, -2, 2, -2, 2 and a range of .2: the gradient is gone where the
    surrogate would reward going further, rho A everywhere else."""
    ratios, advantages = tensor(1.5, 1.5, 0.5, 0.5, 1.1), tensor(2.0, -2.0, 2.0, -2.0, 2.0)
    logps = (ratios.log() - 1.0).requires_grad_()
    batch = responses(logps, [Rollout(0 * ratios - 1.0, 0 * ratios, advantages, 0 * ratios)])
    loss = ppo(batch, logps, cliprange=0.2)
    torch.testing.assert_close(loss, -tensor(1.2 * 2 - 1.5 * 2 + 0.5 * 2 - 0.8 * 2 + 1.1 * 2))
    torch.testing.assert_close(coefficients(loss, logps), -tensor(0.0, 1.5 * -2, 0.5 * 2, 0.0, 1.1 * 2))
    logged = ppo_diagnostics(batch, cliprange=0.2)
    torch.testing.assert_close(logged["policy/clipfrac_avg"], tensor(0.8))
    torch.testing.assert_close(logged["policy/approxkl_avg"], (0.5 * ratios.log().square()).mean()[None])


def test_loss_and_gradient_are_finite_ten_thousand_nats_away():
    for advantage, far in itertools.product((1.0, -1.0), (1e4, -1e4)):
        logps = tensor(far).requires_grad_()
        batch = responses(logps, [Rollout(tensor(0.0), tensor(0.0), tensor(advantage), tensor(0.0))])
        loss = ppo(batch, logps)
        assert torch.isfinite(loss).all() and torch.isfinite(coefficients(loss, logps)).all()


def test_without_clipping_whitening_and_bootstrapping_it_is_reinforce_with_the_value_as_baseline():
    rewards = [1.0, -2.0, 0.5]
    made = some_trajectories(rewards)
    rollouts = ppo_rollouts(made, kl_coef=0.0, lam=1.0, whiten=0.0)
    logps = torch.cat([each.logps for each in made]).requires_grad_()
    found = coefficients(ppo(responses(logps, rollouts), logps, cliprange=NO_CLIP), logps)
    reinforce = [-(reward - each.values) for reward, each in zip(rewards, made, strict=True)]
    torch.testing.assert_close(found, torch.cat(reinforce))


def test_with_the_mean_of_the_others_for_a_value_it_is_rloo():
    rewards = [1.0, -2.0, 0.5]
    others = [(sum(rewards) - reward) / 2 for reward in rewards]
    made = [
        each._replace(values=torch.full_like(each.values, other))
        for each, other in zip(some_trajectories(rewards), others, strict=True)
    ]
    rollouts = ppo_rollouts(made, kl_coef=0.0, lam=1.0, whiten=0.0)
    logps = torch.cat([each.logps for each in made]).requires_grad_()
    batch = responses(logps, rollouts, rewards)
    found = coefficients(ppo(batch, logps, cliprange=NO_CLIP), logps)
    torch.testing.assert_close(found, coefficients(rloo(batch, beta=0.0), logps))


def test_its_expected_gradient_is_that_of_reward_minus_kl_whatever_the_values():
    """Exact sums over all responses of two tokens out of two, under a policy that is one table a prefix."""
    generator = torch.Generator().manual_seed(1)
    policy = torch.randn(3, 2, generator=generator, dtype=torch.float64).requires_grad_()  # prefixes: none, 0, 1
    reference, values = (torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    rewards = {(0, 0): 1.0, (0, 1): -1.0, (1, 0): 0.3, (1, 1): 2.0}
    kl_coef, kinds = 0.4, list(itertools.product((0, 1), (0, 1)))

    def logps(table: torch.Tensor, response: tuple[int, int]) -> torch.Tensor:
        rows = torch.log_softmax(table, -1)
        return torch.stack([rows[0, response[0]], rows[1 + response[0], response[1]]])

    goal = torch.zeros((), dtype=torch.float64)
    surrogate = torch.zeros((), dtype=torch.float64)
    for response in kinds:
        now, ref = logps(policy, response), logps(reference, response)
        goal = goal + now.sum().exp() * (rewards[response] - kl_coef * (now - ref).sum())
        known = torch.stack([values[0, 0], values[1 + response[0], 0]])
        (rollout,) = ppo_rollouts(
            [Trajectory(now.detach(), ref, known, rewards[response])], kl_coef=kl_coef, lam=1.0, whiten=0.0
        )
        loss = ppo(responses(now, [rollout]), now)
        surrogate = surrogate + now.detach().sum().exp() * loss.sum()
    (expected,) = torch.autograd.grad(-goal, policy, retain_graph=True)
    (found,) = torch.autograd.grad(surrogate, policy)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected)


# ---- the critic ------------------------------------------------------------------------------------------------------


def test_the_critic_by_hand():
    """V = 3, 1.1 from V_old = 1, 1, returns 4, 2, range .5: near = 1.5, 1.1; errors max(1, 6.25), .81."""
    values = tensor(3.0, 1.1).requires_grad_()
    rollout = Rollout(tensor(-1.0, -1.0), tensor(1.0, 1.0), tensor(0.0, 0.0), tensor(4.0, 2.0))
    batch = responses(tensor(-1.0, -1.0), [rollout])
    loss = ppo_value(batch, values, cliprange_value=0.5)
    torch.testing.assert_close(loss, tensor(0.5 * (6.25 + 0.81) / 2))
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    torch.testing.assert_close(gradient, tensor(0.0, 0.5 * (1.1 - 2.0)))
