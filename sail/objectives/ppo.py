"""PPO on single responses: the clipped surrogate token by token, its critic, and the advantages both learn from.

Schulman et al. 2017, arXiv 1707.06347; with the KL penalty inside the reward as in Ouyang et al. 2022, arXiv
2203.02155. A round estimates advantages once, at the policy that drew its samples, and takes several epochs over them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sail.objectives import parameters
from sail.objectives.responses import Responses, Rollout, Trajectory, row_sums, tokens_of

_MAX_LOG_RATIO = 20.0  # either way: past it a ratio is clipped or the run is lost, and exp would overflow at 709


def ppo(responses: Responses, values: Tensor, *, cliprange: float = 0.2) -> Tensor:
    """-sum_k min(rho_k A_k, clip(rho_k, 1 - cliprange, 1 + cliprange) A_k), shape [B].

    rho_k = pi(y_k) / pi_old(y_k) and A_k are per token (arXiv 1707.06347, eq. 7). Summed, so that at rho = 1 the
    gradient is the policy gradient whatever the lengths. values, [T], are the critic's business: not read here.
    """
    parameters.positive(cliprange=cliprange)
    rollout, ratios = _rollout(responses), _log_ratios(responses).exp()
    clipped = ratios.clamp(1.0 - cliprange, 1.0 + cliprange)
    return -row_sums(torch.minimum(ratios * rollout.advantages, clipped * rollout.advantages), responses)


def ppo_value(responses: Responses, values: Tensor, *, cliprange_value: float = 0.2) -> Tensor:
    """(1/2) mean_k max((V_k - R_k)^2, (V'_k - R_k)^2), shape [B], V' = V_old + clip(V - V_old, +-cliprange_value).

    The gradient flows into values, [T], alone; its weight against the policy's loss is the value network's own
    learning rate. (Not in the paper: the clipped value loss of OpenAI's baselines and of TRL.)
    """
    parameters.positive(cliprange_value=cliprange_value)
    rollout = _rollout(responses)
    near = rollout.values + (values - rollout.values).clamp(-cliprange_value, cliprange_value)
    errors = torch.maximum((values - rollout.returns).square(), (near - rollout.returns).square())
    return 0.5 * row_sums(errors, responses) / responses.num_tokens.clamp_min(1.0)


def ppo_rollouts(
    trajectories: Sequence[Trajectory], *, kl_coef: float = 0.05, gamma: float = 1.0, lam: float = 0.95,
    whiten: float = 1.0,
) -> list[Rollout]:  # fmt: skip
    """Advantages and returns of a round's responses, one Rollout each.

    The reward of token k is -kl_coef (log pi_old - log pi_ref)(y_k), and the response's reward is added to the last
    one's; returns are advantages + values. whiten 1: advantages of mean 0 and variance 1 over all tokens of the round,
    0: as they are. Returns are never whitened.
    """
    parameters.not_negative(kl_coef=kl_coef)
    parameters.at_most_one(gamma=gamma)
    parameters.share(lam=lam)
    parameters.one_of("whiten", whiten, (0.0, 1.0))
    advantages = [gae(_rewards(each, kl_coef), each.values, gamma=gamma, lam=lam) for each in trajectories]
    returns = [advantage + each.values for advantage, each in zip(advantages, trajectories, strict=True)]
    if whiten:
        advantages = _whitened(advantages)
    return [
        Rollout(each.logps, each.values, advantage, target)
        for each, advantage, target in zip(trajectories, advantages, returns, strict=True)
    ]


def gae(rewards: Tensor, values: Tensor, *, gamma: float, lam: float) -> Tensor:
    """A_k = d_k + gamma lam A_{k+1}, d_k = r_k + gamma V_{k+1} - V_k, shape [T]; after the last token V and A are 0.

    Generalised advantage estimation, Schulman et al. 2015, arXiv 1506.02438, eq. 16.
    """
    errors = (rewards + gamma * torch.cat([values[1:], values.new_zeros(1)])[: len(values)] - values).tolist()
    total, advantages = 0.0, []
    for error in reversed(errors):
        total = error + gamma * lam * total
        advantages.append(total)
    return values.new_tensor(advantages[::-1])


def ppo_diagnostics(responses: Responses, *, cliprange: float) -> dict[str, Tensor]:
    """What to log of each response, [B], detached, means over its tokens: the share of clipped ratios, and
    (1/2) (log rho)^2, which estimates KL(pi_old || pi); names as in TRL."""
    moved, lengths = _log_ratios(responses).detach(), responses.num_tokens.clamp_min(1.0)
    outside = ((moved.exp() - 1.0).abs() > cliprange).to(moved.dtype)
    return {
        "policy/clipfrac_avg": row_sums(outside, responses) / lengths,
        "policy/approxkl_avg": row_sums(0.5 * moved.square(), responses) / lengths,
    }


def _rewards(trajectory: Trajectory, kl_coef: float) -> Tensor:
    rewards = -kl_coef * (trajectory.logps - trajectory.ref_logps)
    rewards[-1:] += trajectory.reward
    return rewards


def _whitened(advantages: Sequence[Tensor]) -> list[Tensor]:
    whole = torch.cat(list(advantages))
    scale = (whole.var(correction=0) + 1e-8).sqrt()
    return [(each - whole.mean()) / scale for each in advantages]


def _rollout(responses: Responses) -> Rollout:
    rollout = tokens_of(responses).rollout
    assert rollout is not None, "a round's estimates are made before its update"
    return rollout


def _log_ratios(responses: Responses) -> Tensor:
    moved = tokens_of(responses).logps - _rollout(responses).old_logps
    return moved.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
