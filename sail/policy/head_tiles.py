"""One tile of the head's logits after another, in torch: what the fused head asks for, on any device and dtype."""

from typing import NamedTuple, Protocol

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


class Head(NamedTuple):
    """Hidden states and the head; matmuls in the precision of `hidden`, everything after them in `wide`."""

    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H], perhaps of more precision
    bias: Tensor | None  # [V]
    targets: Tensor  # [N]
    transform: LogitTransform
    wide: torch.dtype

    def weight_tile(self, start: int, size: int) -> Tensor:
        return self.weight[start : start + size].to(self.hidden.dtype)

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """left @ right, accumulated and given in `wide`."""
        if left.dtype == self.wide:
            return left @ right
        return torch.mm(left, right, out_dtype=self.wide) if left.is_cuda else (left @ right).to(self.wide)


class SoftmaxTile(NamedTuple):
    """A tile's share of the softmax, relative to its own largest logit."""

    picked: Tensor  # [N] z of the target where it lies in the tile, else 0
    weights: Tensor  # [N, tile] exp(z - top) dz/draw, in the precision of the matmuls
    top: Tensor  # [N] max of z
    total: Tensor  # [N] sum of exp(z - top)


class HeadTiles(Protocol):
    """The head over the tile of the vocabulary that begins at `start`."""

    size: int

    def __init__(self, head: Head) -> None: ...

    def scores(self, start: int) -> tuple[Tensor, Tensor]:
        """[N] z of the targets that lie in the tile (0 for others), [N] logsumexp of the tile."""

    def gradient(self, start: int, lse: Tensor, scale: Tensor) -> Tensor:
        """[N, tile] dL/draw = scale_n (onehot - exp(z - lse_n)) dz/draw, in the precision of the matmuls."""

    def softmax(self, start: int) -> SoftmaxTile:
        """What the mean of the head's rows under the softmax is made of."""


class TorchTiles:
    """Tiles by torch's own operations."""

    size = TILE

    def __init__(self, head: Head) -> None:
        self.head = head

    def scores(self, start: int) -> tuple[Tensor, Tensor]:
        logits = self._logits(start)
        return self._picked(logits, start), torch.logsumexp(logits, dim=-1)

    def gradient(self, start: int, lse: Tensor, scale: Tensor) -> Tensor:
        logits = self._logits(start)
        grad = (logits - lse[:, None]).exp_().mul_(-scale[:, None])
        rows, columns = self._targets_in(start)
        grad[rows, columns] += scale[rows]
        return self.head.transform.backward(grad, logits).to(self.head.hidden.dtype)

    def softmax(self, start: int) -> SoftmaxTile:
        logits = self._logits(start)
        top = logits.amax(dim=-1)
        weights = (logits - top[:, None]).exp_()
        total = weights.sum(-1)
        weights = self.head.transform.backward(weights, logits).to(self.head.hidden.dtype)
        return SoftmaxTile(self._picked(logits, start), weights, top, total)

    def _logits(self, start: int) -> Tensor:
        """[N, tile] z."""
        head = self.head
        raw = (head.hidden @ head.weight_tile(start, self.size).T).to(head.wide)
        if head.bias is not None:
            raw += head.bias[start : start + self.size].to(head.wide)  # wide: the sum is not rounded again
        return head.transform(raw)

    def _picked(self, logits: Tensor, start: int) -> Tensor:
        rows, columns = self._targets_in(start)
        picked = logits.new_zeros(len(logits))
        picked[rows] = logits[rows, columns]
        return picked

    def _targets_in(self, start: int) -> tuple[Tensor, Tensor]:
        """The tokens whose target lies in the tile, and its column."""
        targets = self.head.targets
        rows = ((targets >= start) & (targets < start + self.size)).nonzero().squeeze(-1)
        return rows, targets[rows] - start
