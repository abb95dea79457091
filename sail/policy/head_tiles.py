"""One tile of the head's logits after another, in torch: what the fused head asks for, on any device and dtype."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

TILE = 1024
KEPT_BYTES = 100_000_000


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

    def add_product(self, left: Tensor, right: Tensor, to: Tensor) -> None:
        """to += left @ right, in `wide`."""
        if left.dtype == self.wide:
            torch.addmm(to, left, right, out=to)
        else:
            to += self.product(left, right)


class SoftmaxTile(NamedTuple):
    """A tile's share of the softmax, relative to its own largest logit."""

    picked: Tensor  # [N] z of the target where it lies in the tile, else 0
    weights: Tensor  # [N, tile] exp(z - top) dz/draw, in the precision of the matmuls
    top: Tensor  # [N] max of z
    total: Tensor  # [N] sum of exp(z - top)


class HeadTiles(Protocol):
    """The head over the tile of the vocabulary that begins at `start`. What it gives lasts until the next tile."""

    size: int
    kept: Sequence[Tensor]  # for the backward, which makes its gradients of it: at most KEPT_BYTES

    def __init__(self, head: Head, kept: Sequence[Tensor] = (), *, keep: bool = False) -> None:
        """keep: there will be a backward; kept: in it, what the forward kept."""

    def scores(self, start: int) -> tuple[Tensor, Tensor]:
        """[N] z of the targets that lie in the tile (0 for others), [N] logsumexp of the tile."""

    def gradient(self, start: int, lse: Tensor, scale: Tensor) -> Tensor:
        """[N, tile] dL/draw = scale_n (onehot - exp(z - lse_n)) dz/draw, in the precision of the matmuls."""

    def softmax(self, start: int) -> SoftmaxTile:
        """What the mean of the head's rows under the softmax is made of."""


class TorchTiles:
    """Tiles by torch's own operations, one buffer for all of them: fresh memory for each would cost as much as a
    third of the matmuls. The first tiles are kept for the backward, as many as fit into KEPT_BYTES."""

    size = TILE

    def __init__(self, head: Head, kept: Sequence[Tensor] = (), *, keep: bool = False) -> None:
        self.head = head
        self.kept: Sequence[Tensor] = kept  # exp(z - top) [N, tile] and top [N] of one tile after another
        self._room = KEPT_BYTES if keep and head.transform == AS_IS and head.hidden.dtype == head.wide else 0
        self._buffer: Tensor | None = None

    def scores(self, start: int) -> tuple[Tensor, Tensor]:
        logits = self.logits(start)
        picked, top = self.at_targets(logits, start), logits.amax(dim=-1)
        total = logits.sub_(top[:, None]).exp_().sum(-1)
        self._room -= logits.nbytes
        if self._room >= 0:
            self.kept = [*self.kept, logits, top]
            self._buffer = None
        return picked, total.log_().add_(top)

    def gradient(self, start: int, lse: Tensor, scale: Tensor) -> Tensor:
        rows, columns = self._targets_in(start)
        index = start // self.size * 2
        if index < len(self.kept):
            weights, top = self.kept[index : index + 2]
            grad = torch.mul(weights, ((top - lse).exp_() * -scale)[:, None], out=self._tile_of(weights.shape[1]))
            grad[rows, columns] += scale[rows]
            return grad
        logits = self.logits(start)
        grad = self._to_change(logits).sub_(lse[:, None]).exp_().mul_(-scale[:, None])
        grad[rows, columns] += scale[rows]
        return self.head.transform.backward(grad, logits).to(self.head.hidden.dtype)

    def softmax(self, start: int) -> SoftmaxTile:
        logits = self.logits(start)
        top = logits.amax(dim=-1)
        picked, weights = self.at_targets(logits, start), self._to_change(logits).sub_(top[:, None]).exp_()
        total = weights.sum(-1)
        weights = self.head.transform.backward(weights, logits).to(self.head.hidden.dtype)
        return SoftmaxTile(picked, weights, top, total)

    def _to_change(self, logits: Tensor) -> Tensor:
        """The logits themselves where the gradient needs them no more."""
        return logits if self.head.transform == AS_IS else logits.clone()

    def logits(self, start: int) -> Tensor:
        """[N, tile] z, until the next tile."""
        head = self.head
        raw = self._raw(head.weight_tile(start, self.size))
        if head.bias is not None:
            raw += head.bias[start : start + self.size].to(head.wide)  # wide: the sum is not rounded again
        return head.transform(raw)

    def _raw(self, weight: Tensor) -> Tensor:
        """hidden W^T [N, tile], in the buffer where no other precision is asked for."""
        head = self.head
        if head.hidden.dtype != head.wide:
            return (head.hidden @ weight.T).to(head.wide)
        return torch.mm(head.hidden, weight.T, out=self._tile_of(len(weight)))

    def _tile_of(self, width: int) -> Tensor:
        """[N, width] of the buffer."""
        tokens = len(self.head.hidden)
        if self._buffer is None:
            self._buffer = self.head.hidden.new_empty(tokens * min(self.size, len(self.head.weight)))
        return self._buffer[: tokens * width].view(tokens, width)

    def at_targets(self, logits: Tensor, start: int) -> Tensor:
        """[N] z of the targets that lie in the tile, 0 for others."""
        rows, columns = self._targets_in(start)
        picked = logits.new_zeros(len(logits))
        picked[rows] = logits[rows, columns]
        return picked

    def _targets_in(self, start: int) -> tuple[Tensor, Tensor]:
        """The tokens whose target lies in the tile, and its column."""
        targets = self.head.targets
        rows = ((targets >= start) & (targets < start + self.size)).nonzero().squeeze(-1)
        return rows, targets[rows] - start
