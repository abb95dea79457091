"""Regularizers as routes: streams of responses that nobody labels, each with a loss and a weight of its own."""

from torch import Tensor

from sail.objectives import parameters
from sail.objectives.responses import Responses, leave_one_out_means, log_ratio, log_ratio_gap


def kl_policy_ref(responses: Responses) -> Tensor:
    """sg(s - b) log pi(y|x), y ~ pi, shape [B], nats^2: its gradient is that of KL(pi || pi_ref).

    s the log-ratio, b the mean of s over the other responses of the prompt. The value carries no meaning. The naive
    form, mean(s) differentiated through log pi, has gradient zero in expectation: E_pi[grad log pi] = 0.
    HyPO, Song et al. 2024, arXiv 2406.01462.
    """
    ratios = log_ratio(responses).detach()
    return (ratios - leave_one_out_means(ratios, responses)) * responses.logps


def kl_ref_policy(responses: Responses) -> Tensor:
    """log pi_ref(y|x) - log pi(y|x), y ~ pi_ref, shape [B], nats: its mean is KL(pi_ref || pi).

    Pathwise and exact, because the samples do not depend on the policy (SAIL-RevKL, Wu et al. 2026, arXiv 2606.31524).
    """
    return -log_ratio(responses)


def optimism(responses: Responses, *, sign: float = 1.0) -> Tensor:
    """sign (log pi(y|x) - log pi_ref(y|x)), shape [B], nats, unbounded below: keep its weight small.

    sign 1 pushes the mass of a calibration policy's responses down (optimism: VPO online, XPO, SELM), sign -1 pulls it
    up (pessimism: VPO offline). SELM, Zhang et al. 2024, arXiv 2405.19332, eq. 4.2, whose weight is alpha beta; XPO,
    Xie et al. 2024, arXiv 2405.21046, Algorithm 1; VPO, Cen et al. 2024, arXiv 2405.19320.
    """
    parameters.one_of("sign", sign, (1.0, -1.0))
    return sign * log_ratio(responses)


def linear(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Tensor:
    """-beta h, shape [B], unbounded below: the first-order term of dpo, doubled.

    With the reference's response as chosen and the policy's as rejected it is the critic's pessimism in SPAC
    (Ji et al. 2024, arXiv 2406.04274), 1 / eta = beta.
    """
    parameters.positive(beta=beta)
    return -beta * log_ratio_gap(chosen, rejected)


def abs_margin(chosen: Responses, rejected: Responses, *, beta: float = 0.1) -> Tensor:
    """|beta h|, shape [B], >= 0: with weight rho the penalty of oracle-robust SAIL (Li et al. 2026,
    arXiv 2602.20457).

    The same for both labels: it pulls the policy towards indifference.
    """
    parameters.positive(beta=beta)
    return (beta * log_ratio_gap(chosen, rejected)).abs()
