"""The Triton tiles of the head beside torch's, in Triton's interpreter; prints the errors against float64 as JSON.

Run as a module, by its test: TRITON_INTERPRET must be set before anything imports Triton.
"""

import copy
import itertools
import json
from typing import Any

import torch

from sail.policy.fused_head import LogitTransform, fused_logps
from sail.policy.head_tiles import TorchTiles
from sail.policy.triton_head import TritonTiles

TOKENS, HIDDEN, VOCAB = 37, 48, TritonTiles.size + 333
TRANSFORMS = {"as is": LogitTransform(), "scaled": LogitTransform(0.25), "capped": LogitTransform(2.0, softcap=3.0)}


def run(tiles: Any, dtype: torch.dtype, transform: LogitTransform, *, bias: bool, frozen: bool) -> list[torch.Tensor]:
    """Log-probs, then the gradients of hidden states, weight and bias where there are any; float64."""
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, VOCAB, bias=bias, dtype=torch.float64)
    hidden = 3 * torch.randn(TOKENS, HIDDEN, dtype=torch.float64)
    targets = torch.randint(VOCAB, (TOKENS,))
    targets[:4] = torch.tensor([0, VOCAB - 1, TritonTiles.size, TritonTiles.size - 1])  # the edges of tiles
    upstream = torch.randn(TOKENS, dtype=torch.float64)
    hidden, head = hidden.to(dtype).requires_grad_(), copy.deepcopy(head).to(dtype).requires_grad_(not frozen)
    logps = fused_logps(hidden, head, targets, transform, tiles)
    leaves = [hidden] if frozen else [hidden, *head.parameters()]
    grads = torch.autograd.grad(upstream @ logps.double(), leaves)
    return [values.detach().double() for values in (logps, *grads)]


def errors(dtype: torch.dtype, transform: LogitTransform, **kind: bool) -> dict[str, list[float]]:
    """Relative L2 errors of log-probs and gradients, by who computed the tiles."""
    exact = run(TorchTiles, torch.float64, transform, **kind)
    found = {"triton": run(TritonTiles, dtype, transform, **kind), "torch": run(TorchTiles, dtype, transform, **kind)}
    return {
        name: [float((value - true).norm() / true.norm()) for value, true in zip(values, exact, strict=True)]
        for name, values in found.items()
    }


if __name__ == "__main__":
    half = itertools.product(("float16",), TRANSFORMS, (False, True), (False, True))
    single = itertools.product(("float32",), TRANSFORMS, (True,), (False, True))  # few: its blocks are small and slow
    told = {
        f"{dtype}, {name}, bias {bias}, frozen {frozen}": errors(
            getattr(torch, dtype), TRANSFORMS[name], bias=bias, frozen=frozen
        )
        for dtype, name, bias, frozen in (*half, *single)
    }
    print(json.dumps(told))
