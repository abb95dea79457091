"""log pi(token) from hidden states without logits: the head goes over the vocabulary in tiles.

    z_n = softcap(scale * (W h_n + b)),   log pi_n = z_n[y_n] - logsumexp_v z_n[v]

The forward keeps one number per token (the log-sum-exp, built online as in flash attention: Milakov and Gimelshein
2018, arXiv 1805.02867); the backward makes each tile again: 8 N H V operations, 6 for those tiles, float32, that fit
into 100 MB and are kept. Vocabulary outermost, so that W is read and dW written once per pass. Memory: N x tile, and
those 100 MB at most, instead of 3 x N x V numbers (compare Cut Cross-Entropy, arXiv 2411.09009). A frozen head (LoRA)
takes 4 N H V: the direction d log pi_n / d h_n needs no coefficient, so it is made on the way, as attention with Q = h
and K = V = W, and the backward scales it.

Tiles come from torch's operations, or from Triton kernels for half precision on CUDA.
"""

from typing import Any

import torch
from torch import Tensor

from sail.policy.head_tiles import AS_IS, TILE, Head, HeadTiles, LogitTransform, TorchTiles

__all__ = ["AS_IS", "TILE", "LogitTransform", "fused_logps", "head_of"]


def fused_logps(
    hidden: Tensor,
    head: torch.nn.Linear,
    targets: Tensor,
    transform: LogitTransform = AS_IS,
    tiles: type[HeadTiles] | None = None,
) -> Tensor:
    """log pi [N] (float32 or wider) of `targets` [N] from hidden states [N, H]; differentiable in both and the bias.

    Under autocast the matmuls run in its precision. tiles: who computes them; default: what suits the device.
    """
    tiles = tiles or _tiles_for(hidden)
    trained = [weight for weight in (head.weight, head.bias) if weight is not None and weight.requires_grad]
    function = _FusedHead if trained or not hidden.requires_grad else _FrozenHead
    keep = torch.is_grad_enabled()
    result: Tensor = function.apply(hidden, head.weight, head.bias, targets, transform, tiles, keep)
    return result


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        tiles: type[HeadTiles],
        keep: bool,
    ) -> Tensor:
        head = head_of(hidden, weight, bias, targets, transform)
        by_tile = tiles(head, keep=keep)
        picked = hidden.new_zeros(len(hidden), dtype=head.wide)
        lse = torch.full_like(picked, -torch.inf)
        for start in range(0, len(weight), tiles.size):
            tile_picked, tile_lse = by_tile.scores(start)
            picked += tile_picked
            lse = torch.logaddexp(lse, tile_lse)
        ctx.save_for_backward(hidden, weight, bias, targets, lse, *by_tile.kept)
        ctx.transform, ctx.tiles, ctx.compute = transform, tiles, head.hidden.dtype
        return picked - lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d log pi_n / dz_n = onehot(y_n) - softmax(z_n), then through the transform into h, W and b."""
        hidden, weight, bias, targets, lse, *kept = ctx.saved_tensors
        head = Head(hidden.to(ctx.compute), weight, bias, targets, ctx.transform, lse.dtype)
        by_tile, size, scale = ctx.tiles(head, kept), ctx.tiles.size, grads[0].to(lse.dtype)
        needs_weight, needs_bias = ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]
        grad_hidden = torch.zeros_like(head.hidden, dtype=lse.dtype)
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias else None
        for start in range(0, len(weight), size):
            grad_raw = by_tile.gradient(start, lse, scale)
            if grad_bias is not None:
                grad_bias[start : start + size] = grad_raw.sum(0, dtype=lse.dtype)
            head.add_product(grad_raw, head.weight_tile(start, size), to=grad_hidden)
            if grad_weight is not None:
                grad_weight[start : start + size] = head.product(grad_raw.T, head.hidden)
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None, None, None


class _FrozenHead(torch.autograd.Function):
    """log pi and d log pi / dh in one pass: U_n = z'[y_n] W[y_n] - sum_v p_n[v] z'[v] W[v], z' = dz/draw."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        tiles: type[HeadTiles],
        _keep: bool,
    ) -> Tensor:
        head = head_of(hidden, weight, bias, targets, transform)
        by_tile = tiles(head)
        picked = hidden.new_zeros(len(hidden), dtype=head.wide)
        top, total = torch.full_like(picked, -torch.inf), torch.zeros_like(picked)
        mean = torch.zeros_like(head.hidden, dtype=head.wide)  # [N, H], still times total
        for start in range(0, len(weight), tiles.size):
            tile = by_tile.softmax(start)
            picked += tile.picked
            highest = torch.maximum(top, tile.top)
            kept, added = (top - highest).exp_(), (tile.top - highest).exp_()
            total = total * kept + tile.total * added
            product = head.product(tile.weights, head.weight_tile(start, tiles.size))
            mean.mul_(kept[:, None]).add_(product.mul_(added[:, None]))
            top = highest
        slope = transform.backward(torch.ones_like(picked), picked)
        direction = slope[:, None] * weight[targets].to(head.wide) - mean.div_(total[:, None])
        ctx.save_for_backward(direction.to(hidden.dtype))
        return picked - top - total.log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors
        return (grads[0][:, None] * direction).to(direction.dtype), None, None, None, None, None, None


def head_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, transform: LogitTransform) -> Head:
    """In the precision of autocast where that is on; sums in float32 or wider."""
    device = hidden.device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return Head(hidden.to(compute), weight, bias, targets, transform, wide)


def _tiles_for(hidden: Tensor) -> type[HeadTiles]:
    """Triton where its kernels pay: matmuls in half precision on CUDA, and something to do."""
    half = hidden.dtype.itemsize == 2 or torch.is_autocast_enabled(hidden.device.type)
    if hidden.is_cuda and half and len(hidden):
        from sail.policy.triton_head import TritonTiles

        return TritonTiles
    return TorchTiles
