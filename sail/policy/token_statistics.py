"""How sure a policy is of its tokens: entropy and top-1, from hidden states, without the logits of all tokens at once.

    H_n = -sum_v p_n[v] log p_n[v] = lse_n - sum_v p_n[v] z_n[v]        nats

One more pass over the head's tiles, without a gradient: it is made on few steps only.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sail.policy.head_tiles import AS_IS, TILE, LogitTransform


class TokenStatistics(NamedTuple):
    """Of each scored token; float32 on the device of the model."""

    entropy: Tensor  # [N] nats, of the distribution the token stands in
    is_likeliest: Tensor  # [N] 1 where no other token is likelier, else 0


@torch.no_grad()
def token_statistics(
    hidden: Tensor, head: torch.nn.Linear, targets: Tensor, transform: LogitTransform = AS_IS
) -> TokenStatistics:
    """Of `targets` [N] predicted by hidden states [N, H]; z as in fused_head."""
    top = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
    total, moment, picked = (torch.zeros_like(top) for _ in range(3))  # sums of exp(z - top) and of z exp(z - top)
    for start in range(0, len(head.weight), TILE):
        bias = None if head.bias is None else head.bias[start : start + TILE]
        logits = transform(torch.nn.functional.linear(hidden, head.weight[start : start + TILE], bias)).float()
        rows = ((targets >= start) & (targets < start + logits.shape[1])).nonzero().squeeze(-1)
        picked[rows] = logits[rows, targets[rows] - start]
        highest = torch.maximum(top, logits.amax(-1))
        kept, weights = (top - highest).exp_(), (logits - highest[:, None]).exp_()
        total = total * kept + weights.sum(-1)
        moment = moment * kept + weights.mul_(logits).sum(-1)
        top = highest
    return TokenStatistics(top + total.log() - moment / total, (picked >= top).float())
