"""A world small enough to sum over: softmax policies over P prompts x R responses, all in float64.

`expected_gradient` runs sail.objectives under autograd on every pair and every label, weighted by probability;
exact_sums.py says what it must come to.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sail.objectives import LOSSES, Responses
from sail.objectives.links import dpo_link
from sail.objectives.online import OnlineTerms, PairLosses, PolicyPreference


@dataclass(frozen=True)
class World:
    """Fixed numbers of the toy: who asks, who answered in the dataset, what the labeler thinks."""

    prompt_probs: np.ndarray  # [P]
    theta: np.ndarray  # [P, R] logits of the policy
    ref_theta: np.ndarray  # [P, R]
    behavior_theta: np.ndarray  # [P, R] a policy of a few steps ago
    rewards: np.ndarray  # [P, R]
    num_tokens: np.ndarray  # [P, R] lengths of the responses
    dataset: np.ndarray  # [P, R, R] pairs of the dataset, sums to 1 over R, R

    @property
    def labeler(self) -> np.ndarray:
        """[P, R, R]: P(a beats b) by a Bradley-Terry labeler."""
        return 1.0 / (1.0 + np.exp(self.rewards[:, None, :] - self.rewards[:, :, None]))


def make_world(num_prompts: int = 2, num_responses: int = 4, seed: int = 5) -> World:
    rng = np.random.default_rng(seed)
    shape = (num_prompts, num_responses)
    pairs = rng.random((num_prompts, num_responses, num_responses))
    prompts = rng.random(num_prompts)
    theta = rng.normal(size=shape)
    return World(
        prompt_probs=prompts / prompts.sum(),
        theta=theta,
        ref_theta=theta + rng.normal(size=shape),
        behavior_theta=theta + 0.3 * rng.normal(size=shape),
        rewards=rng.normal(size=shape),
        num_tokens=np.tile(np.arange(1.0, num_responses + 1.0), (num_prompts, 1)),
        dataset=pairs / pairs.sum(axis=(1, 2), keepdims=True),
    )


# ---- the estimator's side: sail.objectives under autograd ----------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """All P * R * R pairs, flattened: what a batch that holds every pair once would look like."""

    theta: Tensor  # [P, R], requires grad
    a: Responses
    b: Responses
    losses: PairLosses
    preference: PolicyPreference  # uniforms 0.3 throughout
    p_a: Tensor  # the labeler's
    policy_probs: Tensor  # rho(x) pi(a) pi(b), detached
    dataset_probs: Tensor
    behavior_probs: Tensor
    behavior_logps: Tensor

    @property
    def score_logps(self) -> Tensor:
        return self.a.logps + self.b.logps


def all_pairs(world: World, loss: str, params: dict[str, float]) -> Pairs:
    theta = torch.tensor(world.theta, requires_grad=True)
    logps = torch.log_softmax(theta, dim=-1)
    ref, old = (torch.log_softmax(torch.tensor(t), dim=-1) for t in (world.ref_theta, world.behavior_theta))
    num_prompts, num_responses = world.theta.shape
    x, y1, y2 = (
        t.flatten() for t in torch.meshgrid(*map(torch.arange, (num_prompts, *2 * [num_responses])), indexing="ij")
    )
    lengths = torch.tensor(world.num_tokens)
    a, b = (Responses(logps[x, y], ref[x, y], lengths[x, y]) for y in (y1, y2))
    row = LOSSES[loss]
    link = row.link or dpo_link
    link_params = params if row.link else {}
    prompt_probs = torch.tensor(world.prompt_probs)[x]
    return Pairs(
        theta=theta,
        a=a,
        b=b,
        losses=PairLosses(row.function(a, b, **params), row.function(b, a, **params)),
        preference=PolicyPreference(
            link(a, b, **link_params), link(b, a, **link_params), torch.full_like(prompt_probs, 0.3)
        ),
        p_a=torch.tensor(world.labeler)[x, y1, y2],
        policy_probs=(prompt_probs * (a.logps + b.logps).exp()).detach(),
        dataset_probs=prompt_probs * torch.tensor(world.dataset)[x, y1, y2],
        behavior_probs=prompt_probs * (old[x, y1] + old[x, y2]).exp(),
        behavior_logps=old[x, y1] + old[x, y2],
    )


def label_outcomes(pairs: Pairs, label: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(probability, p_a, uniforms), each [N], of every label that a pair can get.

    A uniform decides only by its side of q_a, so one point of [0, q_a) and one of [q_a, 1) stand for them all.
    """
    ones, q_a = torch.ones_like(pairs.p_a), pairs.preference.log_q_a.detach().exp()
    hard = torch.where(pairs.p_a > 0.5, ones, torch.where(pairs.p_a < 0.5, 0 * ones, 0.5 * ones))
    return {
        "others-hard": [(ones, hard, ones)],
        "others-sampled": [(pairs.p_a, ones, ones), (1 - pairs.p_a, 0 * ones, ones)],
        "others-soft": [(ones, pairs.p_a, ones)],
        "fresh-soft": [(ones, ones, 0.3 * ones)],
        "fresh-hard": [(ones, ones, 0.3 * ones)],
        "fresh-sampled": [(q_a, ones, q_a / 2), (1 - q_a, ones, (1 + q_a) / 2)],
    }[label]


Estimator = Callable[[PairLosses, Tensor, PolicyPreference, OnlineTerms], Tensor]


def expected_gradient(
    pairs: Pairs, label: str, estimator: Estimator, online: OnlineTerms, *, pair_probs: Tensor | None = None
) -> np.ndarray:
    """E[autograd gradient of the estimator], summed over pairs (probability pair_probs) and labels. [P, R]."""
    probs = pairs.policy_probs if pair_probs is None else pair_probs
    total = torch.zeros((), dtype=torch.float64)
    for label_probs, p_a, uniforms in label_outcomes(pairs, label):
        preference = pairs.preference._replace(uniforms=uniforms)
        total = total + (probs * label_probs * estimator(pairs.losses, p_a, preference, online)).sum()
    return torch.autograd.grad(total, pairs.theta, retain_graph=True)[0].numpy()


def per_pair(pairs: Pairs, values: Tensor) -> np.ndarray:
    """The gradient of each pair's value with respect to theta, [N, P * R]."""
    rows = [torch.autograd.grad(value, pairs.theta, retain_graph=True)[0].flatten() for value in values]
    return torch.stack(rows).numpy()
