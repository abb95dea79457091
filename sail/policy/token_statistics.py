"""How sure a policy is of its tokens: entropy and top-1, from hidden states, without the logits of all tokens at once.

    H_n = -sum_v p_n[v] log p_n[v] = lse_n - sum_v p_n[v] z_n[v]        nats

One more pass over the head's tiles, without a gradient: it is made on few steps only.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sail.policy.head_tiles import Head, TorchTiles


class TokenStatistics(NamedTuple):
    """Of each scored token; float32 or wider, on the device of the model."""

    entropy: Tensor  # [N] nats, of the distribution the token stands in
    is_likeliest: Tensor  # [N] 1 where no other token is likelier, else 0


@torch.no_grad()
def token_statistics(head: Head) -> TokenStatistics:
    """Of the head's targets; z as in fused_head."""
    tiles = TorchTiles(head)
    picked = head.hidden.new_zeros(len(head.hidden), dtype=head.wide)
    top = torch.full_like(picked, -torch.inf)
    total, moment = torch.zeros_like(picked), torch.zeros_like(picked)  # sums of exp(z - top) and of z exp(z - top)
    for start in range(0, len(head.weight), tiles.size):
        logits = tiles.logits(start)
        picked += tiles.at_targets(logits, start)
        highest = torch.maximum(top, logits.amax(-1))
        kept, weights = (top - highest).exp_(), (logits - highest[:, None]).exp_()
        total = total * kept + weights.sum(-1)
        moment = moment * kept + weights.mul_(logits).sum(-1)
        top = highest
    return TokenStatistics(top + total.log() - moment / total, (picked >= top).to(head.wide))
