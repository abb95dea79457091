"""Whole populations of single responses under tabular softmax policies: sums, no sampling. All in float64.

`every_response` is a batch that holds each response of each prompt once, `every_group` one that holds each group of n;
weighted by probability, the sum of a loss over them is its expectation and the sum of its gradient is exact.
"""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from sail.objectives import Responses
from sail.objectives.responses import Tokens


class Toy(NamedTuple):
    """Two prompts x three responses."""

    prompt_probs: Tensor  # [P]
    theta: Tensor  # [P, R] logits of the policy
    ref: Tensor  # [P, R] log-probs of the reference
    data: Tensor  # [P, R] log-probs of the policy that wrote the data
    rewards: Tensor  # [P, R]


def make_toy(seed: int = 4) -> Toy:
    generator = torch.Generator().manual_seed(seed)
    theta, ref, data, rewards = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64)
    prompt_probs = torch.tensor([0.4, 0.6], dtype=torch.float64)
    return Toy(prompt_probs, theta, ref.log_softmax(1), data.log_softmax(1), rewards)


def every_response(logps: Tensor, ref: Tensor, targets: Tensor | None = None) -> Responses:
    """All P * R responses, one token each."""
    rows = torch.arange(logps.numel())
    flat = logps.flatten()
    return Responses(
        logps=flat,
        ref_logps=ref.flatten(),
        num_tokens=torch.ones_like(flat.detach()),
        targets=None if targets is None else targets.flatten(),
        group=rows // logps.shape[1],
        tokens=Tokens(flat, rows),
    )


class Groups(NamedTuple):
    responses: Responses  # [P * R**n * n], whole groups after one another
    probs: Tensor  # the same shape: the group's probability over n, detached


def every_group(
    n: int, logps: Tensor, ref: Tensor, draws: Tensor, prompt_probs: Tensor, targets: Tensor | None = None
) -> Groups:
    """Every group of n independent responses to every prompt, with draws [P, R] the log-probs they are drawn by."""
    num_prompts, num_responses = logps.shape
    members = torch.tensor(list(product(range(num_responses), repeat=n)))  # [R ** n, n]
    x = torch.arange(num_prompts).repeat_interleave(members.numel())
    y = members.flatten().repeat(num_prompts)
    probs = prompt_probs[:, None] * draws.detach()[:, members].sum(2).exp()  # [P, R ** n]
    responses = Responses(
        logps[x, y], ref[x, y], torch.ones(len(x), dtype=torch.float64),
        targets=None if targets is None else targets[x, y], group=torch.arange(len(x)) // n,
    )  # fmt: skip
    return Groups(responses, probs.flatten().repeat_interleave(n) / n)


def gradient(value: Tensor, theta: Tensor) -> Tensor:
    return torch.autograd.grad(value, theta, retain_graph=True)[0]


def kl(p: Tensor, q: Tensor, prompt_probs: Tensor) -> Tensor:
    """sum_x rho(x) KL(p(.|x) || q(.|x)) of log-probs [P, R]."""
    return (prompt_probs[:, None] * p.exp() * (p - q)).sum()
