"""log pi(token) from hidden states without logits: the head goes over the vocabulary in tiles.

    z_n = softcap(scale * (W h_n + b)),   log pi_n = z_n[y_n] - logsumexp_v z_n[v]

The forward keeps one number per token (the log-sum-exp, built online as in flash attention: Milakov and Gimelshein
2018, arXiv 1805.02867); the backward makes each tile again. Vocabulary outermost, so that W is read and dW written
once per pass. Memory: N x TILE instead of 3 x N x V numbers (compare Cut Cross-Entropy, arXiv 2411.09009).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE = 2048


class LogitTransform(NamedTuple):
    """What a model does to the head's output: z = cap * tanh(scale * x / cap); no cap: z = scale * x."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        scaled = raw if self.scale == 1.0 else raw * self.scale
        return scaled if self.softcap is None else torch.tanh(scaled / self.softcap) * self.softcap

    def backward(self, grad: Tensor, transformed: Tensor) -> Tensor:
        """dL/draw from dL/dz and z."""
        if self.softcap is not None:
            grad = grad * (1 - (transformed / self.softcap).square())
        return grad if self.scale == 1.0 else grad * self.scale


AS_IS = LogitTransform()


class _Tiles(NamedTuple):
    """The head cut along the vocabulary; matmuls in `compute` precision, everything after them in `wide`."""

    hidden: Tensor  # [N, H] in compute precision
    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    targets: Tensor  # [N]
    transform: LogitTransform
    wide: torch.dtype

    def starts(self) -> range:
        return range(0, len(self.weight), TILE)

    def weight_tile(self, start: int) -> Tensor:
        return self.weight[start : start + TILE].to(self.hidden.dtype)

    def logits(self, start: int) -> Tensor:
        """[N, tile] z."""
        raw = self.hidden @ self.weight_tile(start).T
        if self.bias is not None:
            raw = raw + self.bias[start : start + TILE].to(raw.dtype)
        return self.transform(raw.to(self.wide))

    def targets_in(self, start: int) -> tuple[Tensor, Tensor]:
        """The tokens whose target lies in the tile, and its column."""
        rows = ((self.targets >= start) & (self.targets < start + TILE)).nonzero().squeeze(-1)
        return rows, self.targets[rows] - start


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, transform: LogitTransform
    ) -> Tensor:
        compute = _compute_dtype(hidden)
        tiles = _Tiles(hidden.to(compute), weight, bias, targets, transform, _wide(hidden.dtype))
        picked = hidden.new_zeros(len(hidden), dtype=tiles.wide)
        lse = torch.full_like(picked, -torch.inf)
        for start in tiles.starts():
            logits = tiles.logits(start)
            rows, columns = tiles.targets_in(start)
            picked[rows] = logits[rows, columns]
            lse = torch.logaddexp(lse, torch.logsumexp(logits, dim=-1))
        ctx.save_for_backward(hidden, weight, bias, targets, lse)
        ctx.transform, ctx.compute = transform, compute
        return picked - lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d log pi_n / dz_n = onehot(y_n) - softmax(z_n), then through the transform into h, W and b."""
        hidden, weight, bias, targets, lse = ctx.saved_tensors
        tiles = _Tiles(hidden.to(ctx.compute), weight, bias, targets, ctx.transform, lse.dtype)
        scale = grads[0].to(lse.dtype)
        needs_weight, needs_bias = ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]
        grad_hidden = torch.zeros_like(tiles.hidden, dtype=lse.dtype)
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias else None
        for start in tiles.starts():
            grad_raw = _tile_grad(tiles, start, lse, scale)
            end = start + TILE
            if grad_bias is not None:
                grad_bias[start:end] = grad_raw.sum(0)
            grad_raw = grad_raw.to(ctx.compute)
            grad_hidden += grad_raw @ tiles.weight_tile(start)
            if grad_weight is not None:
                grad_weight[start:end] = grad_raw.T @ tiles.hidden
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None


def _tile_grad(tiles: _Tiles, start: int, lse: Tensor, scale: Tensor) -> Tensor:
    """[N, tile] dL/draw = scale_n * (onehot - softmax), through the transform."""
    logits = tiles.logits(start)
    grad = (logits - lse[:, None]).exp_().mul_(-scale[:, None])
    rows, columns = tiles.targets_in(start)
    grad[rows, columns] += scale[rows]
    return tiles.transform.backward(grad, logits)


def fused_logps(hidden: Tensor, head: torch.nn.Linear, targets: Tensor, transform: LogitTransform = AS_IS) -> Tensor:
    """log pi [N] (float32 or wider) of `targets` [N] from hidden states [N, H]; differentiable in both and the bias.

    A frozen head (LoRA) costs no gradient of the weight. Under autocast the matmuls run in its precision.
    """
    result: Tensor = _FusedHead.apply(hidden, head.weight, head.bias, targets, transform)
    return result


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
