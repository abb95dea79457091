"""Attention over packed trees on this device against float64 under a mask written out; and how fast."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sail.policy.tree_attention import (
    Tree,
    TreeLayout,
    attend,
    flex_tree_attention,
    pieces_attention,
    varlen_attention,
)
from scripts.gpu.findings import Surroundings, at_most, figure, milliseconds, missing, relative_error, surroundings

SCALING = 0.1
LIMITS = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
TREES = (Tree(200, (70, 130, 5)), Tree(129, ()), Tree(3, (250, 1)), Tree(60, (128,)), Tree(256, (256, 256)))
SMALL_TREES = (Tree(5, (3, 4)), Tree(2, ()), Tree(1, (6, 1, 2)))


def written_out(layout: TreeLayout) -> Tensor:
    """[T, T] bool: same tree, not later, and in the prompt or the same branch."""
    tree, branch = [], []
    for index, each in enumerate(layout.trees):
        for part, length in enumerate((each.prompt, *each.branches)):
            tree += [index] * length
            branch += [part] * length
    trees, branches = (torch.tensor(values, device=layout.device) for values in (tree, branch))
    same = trees[:, None] == trees
    return (same & ((branches == 0) | (branches[:, None] == branches))).tril()


def states(layout: TreeLayout, heads: int, key_heads: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(1, count, layout.num_tokens, dim, dtype=torch.float64).to(layout.device, dtype).requires_grad_()
        for count in (heads, key_heads, key_heads)
    ]


def exactly(query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(2, 3) * SCALING).masked_fill(~written_out(layout), -torch.inf)
    return (torch.softmax(scores, -1) @ value).transpose(1, 2)


def ways(groups: int) -> dict[str, Callable[..., Tensor]]:
    module: Any = torch.nn.Module()
    module.num_key_value_groups = groups

    def pieces(*arguments: Any) -> Tensor:
        return pieces_attention(module, *arguments, scaling=SCALING)

    def chosen(*arguments: Any) -> Tensor:
        return attend(module, *arguments, scaling=SCALING)

    def varlen(*arguments: Any) -> Tensor:
        return varlen_attention(*arguments, SCALING)

    def flex(*arguments: Any) -> Tensor:
        return flex_tree_attention(*arguments, SCALING)

    return {"chosen": chosen, "pieces": pieces, "varlen": varlen, "flex": flex}


def gradients(way: Callable[..., Tensor], inputs: list[Tensor], layout: TreeLayout) -> list[Tensor]:
    output = way(*inputs, layout)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.device)
    return [output.detach(), *torch.autograd.grad((output.double() * upstream).sum(), inputs)]


def check_against_float64(here: Surroundings, dtype: torch.dtype, names: Sequence[str]) -> None:
    """Output and gradients of queries, keys and values, heads shared in groups or not."""
    layout = TreeLayout(TREES if here.on_gpu else SMALL_TREES, here.device)
    for heads, key_heads, dim in ((8, 2, 64), (4, 4, 128)) if here.on_gpu else ((4, 2, 8),):
        inputs = states(layout, heads, key_heads, dim, dtype)
        exact = gradients(exactly, [tensor.detach().double().requires_grad_() for tensor in inputs], layout)
        for name in names:
            found = gradients(ways(heads // key_heads)[name], inputs, layout)
            error = max(relative_error(f, e) for f, e in zip(found, exact, strict=True))
            label = f"trees, {name}, {str(dtype).removeprefix('torch.')}, {heads}/{key_heads} heads of {dim}"
            at_most(label, error, LIMITS[dtype], "relative error, worst of output and gradients")


def time_ways(here: Surroundings, names: Sequence[str]) -> None:
    """Forward and backward over a microbatch, in bfloat16."""
    pair, count = (Tree(128, (160, 160)), 36) if here.on_gpu else (Tree(8, (10, 10)), 3)
    long, few = (Tree(1500, (300,) * 4), 6) if here.on_gpu else (Tree(20, (4,) * 4), 2)
    for shape, trees in {"pairs": (pair,) * count, "long prompts, four samples": (long,) * few}.items():
        layout = TreeLayout(trees, here.device)
        inputs = states(layout, 16, 4, 64 if here.on_gpu else 8, torch.bfloat16)
        for name in names:
            spent = milliseconds(partial(_both_passes, ways(4)[name], inputs, layout), here.device)
            figure(f"trees, {name}, {shape}, {layout.num_tokens:,} tokens", spent, "ms")


def _both_passes(way: Callable[..., Tensor], inputs: list[Tensor], layout: TreeLayout) -> None:
    torch.autograd.grad(way(*inputs, layout).sum(), inputs)


def main(here: Surroundings) -> None:
    """What needs no compilation first; "chosen" is what the product takes."""
    half, single = torch.bfloat16, torch.float32
    plain = ("chosen", "pieces", "varlen") if here.on_gpu else ("chosen", "pieces")
    check_against_float64(here, half, plain)
    check_against_float64(here, single, ("pieces",))
    time_ways(here, plain[1:])
    if not here.on_gpu:
        missing("trees, varlen and flex", "no CUDA device")
        return
    check_against_float64(here, half, ("flex",))
    check_against_float64(here, single, ("flex", "chosen"))
    time_ways(here, ("flex",))


if __name__ == "__main__":
    main(surroundings())
