"""Tiles of the head by Triton kernels: a matmul whose logits stay on the chip, with a reduction or a gradient behind.

    scores:    logsumexp and target logit of a block of columns; no logits written
    gradient:  c_n (onehot - softmax) dz/draw, written in half precision for two plain matmuls (dH and dW)
    softmax:   exp(z - top of the block) dz/draw, for the mean of a frozen head's rows

A program computes one block [BLOCK_N, BLOCK_V] over all of H, in float32; partial results of the blocks of a row are
joined by torch, in a fixed order, so repeats are bit-equal. No kernel is specialised on the number of tokens, which
differs in every microbatch. Importing this module needs Triton; with TRITON_INTERPRET=1 it runs on the CPU.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sail.policy.head_tiles import Head, SoftmaxTile


class Blocks(NamedTuple):
    """Block sizes and how many warps work on one."""

    n: int
    v: int
    h: int
    warps: int
    stages: int


_HOPPER = Blocks(128, 256, 64, 8, 3)
_OTHERS = Blocks(128, 128, 64, 8, 3)  # 64 KiB of shared memory on Ampere; and where a soft cap takes registers
_WIDER = Blocks(32, 64, 32, 4, 2)  # float32, where a block takes twice the room


@triton.jit
def _logits(
    hidden, weight, bias, first_n, first_v, num_n, num_v, size_h, stride_n, stride_v, scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """z of a block [BLOCK_N, BLOCK_V] float32, -inf beyond the last column."""
    rows = first_n + tl.arange(0, BLOCK_N)
    columns = first_v + tl.arange(0, BLOCK_V)
    steps = tl.arange(0, BLOCK_H)
    hidden_at = hidden + rows.to(tl.int64)[:, None] * stride_n + steps[None, :]
    weight_at = weight + columns.to(tl.int64)[None, :] * stride_v + steps[:, None]
    raw = tl.zeros((BLOCK_N, BLOCK_V), dtype=tl.float32)
    for start in range(0, size_h, BLOCK_H):
        inside = steps < size_h - start
        h = tl.load(hidden_at, mask=(rows < num_n)[:, None] & inside[None, :], other=0.0)
        w = tl.load(weight_at, mask=inside[:, None] & (columns < num_v)[None, :], other=0.0)
        raw = tl.dot(h, w, raw, input_precision="ieee")
        hidden_at += BLOCK_H
        weight_at += BLOCK_H
    if HAS_BIAS:
        raw += tl.load(bias + columns, mask=columns < num_v, other=0.0).to(tl.float32)[None, :]
    z = raw * scale
    if HAS_CAP:
        decay = tl.exp(-2 * tl.abs(z / softcap))
        z = tl.where(z < 0, -softcap, softcap) * (1 - decay) / (1 + decay)
    return tl.where((columns < num_v)[None, :], z, float("-inf"))


@triton.jit
def _through_transform(grad, z, scale, softcap, HAS_CAP: tl.constexpr):
    """dL/draw from dL/dz."""
    if HAS_CAP:
        grad = grad * (1 - (z / softcap) * (z / softcap))
    return grad * scale


@triton.jit
def _block_of(program, num_n, num_v, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, GROUP: tl.constexpr):
    """First row and first column of a program's block; neighbours share rows and columns in the cache."""
    blocks_n, blocks_v = tl.cdiv(num_n, BLOCK_N), tl.cdiv(num_v, BLOCK_V)
    in_group = GROUP * blocks_v
    first = program // in_group * GROUP
    group = min(blocks_n - first, GROUP)
    return (first + program % in_group % group) * BLOCK_N, program % in_group // group * BLOCK_V


@triton.jit(do_not_specialize=["num_n"])
def _scores_kernel(
    hidden, weight, bias, targets, picked, lse, num_n, num_v, size_h, stride_n, stride_v, scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_H: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    first_n, first_v = _block_of(tl.program_id(0), num_n, num_v, BLOCK_N, BLOCK_V, GROUP)
    z = _logits(
        hidden, weight, bias, first_n, first_v, num_n, num_v, size_h, stride_n, stride_v, scale, softcap,
        HAS_BIAS, HAS_CAP, BLOCK_N, BLOCK_V, BLOCK_H,
    )  # fmt: skip
    rows, columns = first_n + tl.arange(0, BLOCK_N), first_v + tl.arange(0, BLOCK_V)
    target = tl.load(targets + rows, mask=rows < num_n, other=-1)
    top = tl.max(z, 1)
    block_lse = top + tl.log(tl.sum(tl.exp(z - top[:, None]), 1))
    tl.store(lse + (first_v // BLOCK_V).to(tl.int64) * num_n + rows, block_lse, mask=rows < num_n)
    hit = columns[None, :] == target[:, None]
    found = (target >= first_v) & (target < min(first_v + BLOCK_V, num_v))
    tl.store(picked + rows, tl.sum(tl.where(hit, z, 0.0), 1), mask=found & (rows < num_n))


@triton.jit(do_not_specialize=["num_n"])
def _gradient_kernel(
    hidden, weight, bias, targets, lse, coefficient, out, num_n, num_v, size_h, stride_n, stride_v, stride_out,
    scale, softcap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_H: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    first_n, first_v = _block_of(tl.program_id(0), num_n, num_v, BLOCK_N, BLOCK_V, GROUP)
    z = _logits(
        hidden, weight, bias, first_n, first_v, num_n, num_v, size_h, stride_n, stride_v, scale, softcap,
        HAS_BIAS, HAS_CAP, BLOCK_N, BLOCK_V, BLOCK_H,
    )  # fmt: skip
    rows, columns = first_n + tl.arange(0, BLOCK_N), first_v + tl.arange(0, BLOCK_V)
    target = tl.load(targets + rows, mask=rows < num_n, other=-1)
    row_lse = tl.load(lse + rows, mask=rows < num_n, other=0.0)
    row_scale = tl.load(coefficient + rows, mask=rows < num_n, other=0.0)
    onehot = tl.where(columns[None, :] == target[:, None], 1.0, 0.0)
    grad = row_scale[:, None] * (onehot - tl.exp(z - row_lse[:, None]))
    grad = _through_transform(grad, z, scale, softcap, HAS_CAP)
    out_at = out + rows.to(tl.int64)[:, None] * stride_out + columns[None, :]
    inside = (rows < num_n)[:, None] & (columns < num_v)[None, :]
    tl.store(out_at, grad.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_n"])
def _softmax_kernel(
    hidden, weight, bias, targets, picked, tops, totals, out, num_n, num_v, size_h, stride_n, stride_v, stride_out,
    scale, softcap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_H: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    first_n, first_v = _block_of(tl.program_id(0), num_n, num_v, BLOCK_N, BLOCK_V, GROUP)
    z = _logits(
        hidden, weight, bias, first_n, first_v, num_n, num_v, size_h, stride_n, stride_v, scale, softcap,
        HAS_BIAS, HAS_CAP, BLOCK_N, BLOCK_V, BLOCK_H,
    )  # fmt: skip
    rows, columns = first_n + tl.arange(0, BLOCK_N), first_v + tl.arange(0, BLOCK_V)
    target = tl.load(targets + rows, mask=rows < num_n, other=-1)
    top = tl.max(z, 1)
    weights = tl.exp(z - top[:, None])
    partial_at = (first_v // BLOCK_V).to(tl.int64) * num_n + rows
    tl.store(tops + partial_at, top, mask=rows < num_n)
    tl.store(totals + partial_at, tl.sum(weights, 1), mask=rows < num_n)
    hit = columns[None, :] == target[:, None]
    found = (target >= first_v) & (target < min(first_v + BLOCK_V, num_v))
    tl.store(picked + rows, tl.sum(tl.where(hit, z, 0.0), 1), mask=found & (rows < num_n))
    weights = _through_transform(weights, z, scale, softcap, HAS_CAP)
    weights = tl.where((columns < num_v)[None, :], weights, 0.0)
    out_at = out + rows.to(tl.int64)[:, None] * stride_out + columns[None, :]
    tl.store(out_at, weights.to(out.dtype.element_ty), mask=(rows < num_n)[:, None])


class TritonTiles:
    """HeadTiles for CUDA: float32 accumulators whatever the precision of the matmuls."""

    size = 8192

    kept: Sequence[Tensor] = ()  # making a tile again costs little here

    def __init__(self, head: Head, kept: Sequence[Tensor] = (), *, keep: bool = False) -> None:
        self.head = head._replace(hidden=head.hidden.contiguous(), targets=head.targets.contiguous())
        self.blocks = _blocks(head)

    def scores(self, start: int) -> tuple[Tensor, Tensor]:
        weight = self._weight(start)
        picked, lse = self._row_zeros(), self._partials(len(weight))
        self._launch(_scores_kernel, start, weight, picked, lse)
        return picked, torch.logsumexp(lse, dim=0)

    def gradient(self, start: int, lse: Tensor, scale: Tensor) -> Tensor:
        weight = self._weight(start)
        out = self.head.hidden.new_empty(len(self.head.hidden), len(weight))
        self._launch(_gradient_kernel, start, weight, lse.contiguous(), scale.contiguous(), out, stride_out=len(weight))
        return out

    def softmax(self, start: int) -> SoftmaxTile:
        weight = self._weight(start)
        rows, width = len(self.head.hidden), triton.cdiv(len(weight), self.blocks.v) * self.blocks.v
        picked, tops, totals = self._row_zeros(), self._partials(len(weight)), self._partials(len(weight))
        out = self.head.hidden.new_empty(rows, width)
        self._launch(_softmax_kernel, start, weight, picked, tops, totals, out, stride_out=width)
        top = tops.amax(dim=0)
        factors = (tops - top).exp_()  # [blocks, N]: from each block's own top to that of the tile
        out.view(rows, -1, self.blocks.v).mul_(factors.T[:, :, None])
        return SoftmaxTile(picked, out[:, : len(weight)], top, (totals * factors).sum(0))

    def _weight(self, start: int) -> Tensor:
        return self.head.weight_tile(start, self.size).contiguous()

    def _row_zeros(self) -> Tensor:
        return torch.zeros(len(self.head.hidden), dtype=torch.float32, device=self.head.hidden.device)

    def _partials(self, columns: int) -> Tensor:
        """[blocks of columns, N] float32."""
        blocks = triton.cdiv(columns, self.blocks.v)
        return torch.empty(blocks, len(self.head.hidden), dtype=torch.float32, device=self.head.hidden.device)

    def _launch(self, kernel: Any, start: int, weight: Tensor, *results: Tensor, **strides: int) -> None:
        (hidden, _, bias, targets, transform, _), blocks = self.head, self.blocks
        bias_tile = weight if bias is None else bias[start : start + len(weight)].contiguous()
        grid = (triton.cdiv(len(hidden), blocks.n) * triton.cdiv(len(weight), blocks.v),)
        with torch.cuda.device_of(hidden):
            kernel[grid](
                hidden, weight, bias_tile, targets - start, *results,
                num_n=len(hidden), num_v=len(weight), size_h=hidden.shape[1], stride_n=hidden.stride(0),
                stride_v=weight.stride(0), **strides, scale=float(transform.scale),
                softcap=float(transform.softcap or 1.0), HAS_BIAS=bias is not None,
                HAS_CAP=transform.softcap is not None, BLOCK_N=blocks.n, BLOCK_V=blocks.v, BLOCK_H=blocks.h, GROUP=8,
                num_warps=blocks.warps, num_stages=blocks.stages,
            )  # fmt: skip


def _blocks(head: Head) -> Blocks:
    if head.hidden.dtype.itemsize > 2:
        return _WIDER
    hopper = head.hidden.is_cuda and torch.cuda.get_device_capability(head.hidden.device)[0] >= 9
    return _HOPPER if hopper and head.transform.softcap is None else _OTHERS
