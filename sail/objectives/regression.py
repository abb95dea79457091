"""Losses that regress the log-ratio on rewards: direct reward optimisation and its neighbours.

max_pi E[r] - tau KL(pi || pi_ref) has the optimum r = V*(x) + tau log pi*/pi_ref, V* = tau log E_{pi_ref} exp(r/tau):
one squared error for policy and value together (Richemond et al. 2024, arXiv 2405.19107, eq. 4).
"""

from torch import Tensor

from sail.objectives import parameters
from sail.objectives.responses import (
    Responses,
    group_means,
    group_sizes,
    leave_one_out_means,
    log_ratio,
    row_sums,
    targets_of,
    tokens_of,
)


def dro_v(responses: Responses, values: Tensor, *, tau: float = 1.0) -> Tensor:
    """-sum_k sg(r - V_k) log pi(y_k) + (tau/2) s^2, shape [B]: the policy's half of DRO-V.

    values, [T]: V at every response token, or V(x) repeated; detached here. The gradient is that of eq. 8 divided by
    tau, so that one learning rate fits every tau. (The paper's Algorithm 1 prints 1/2 for tau/2: right at tau = 1.)
    """
    parameters.positive(tau=tau)
    tokens = tokens_of(responses)
    advantages = (targets_of(responses)[tokens.row] - values).detach()
    pulls = row_sums(advantages * tokens.logps, responses)
    return -pulls + 0.5 * tau * log_ratio(responses).square()


def dro_value(responses: Responses, values: Tensor, *, tau: float = 1.0) -> Tensor:
    """(1/2) mean_k (V_k - sg(r - tau s))^2, shape [B]: the value's half of DRO-V (arXiv 2405.19107, eq. 7).

    The gradient flows into values, [T], alone.
    """
    errors = values - (targets_of(responses) - tau * log_ratio(responses)).detach()[tokens_of(responses).row]
    return 0.5 * row_sums(errors.square(), responses) / responses.num_tokens.clamp_min(1.0)


def dro_p(responses: Responses, *, tau: float = 1.0) -> Tensor:
    """(1/2) n/(n-1) (d - mean d)^2, d = r - tau s, shape [B]: its mean over a prompt's n responses is half their
    variance (arXiv 2405.19107, eq. 15), which needs no value.

    A response alone with its prompt has loss 0.
    """
    parameters.positive(tau=tau)
    residuals = targets_of(responses) - tau * log_ratio(responses)
    sizes = group_sizes(responses)
    unbiased = sizes / (sizes - 1.0).clamp_min(1.0)
    return 0.5 * unbiased * (residuals - group_means(residuals, responses)).square()


def rloo(responses: Responses, *, beta: float = 0.05) -> Tensor:
    """-sg(R - b) log pi(y|x), R = r - beta s, b the mean of R over the other responses of the prompt, shape [B].

    REINFORCE with a leave-one-out baseline on the KL-regularised reward (Ahmadian et al. 2024, arXiv 2402.14740,
    section 2.3). The value carries no meaning.
    """
    parameters.not_negative(beta=beta)
    rewards = (targets_of(responses) - beta * log_ratio(responses)).detach()
    return -(rewards - leave_one_out_means(rewards, responses)) * responses.logps
