"""Attention over packed trees on this device against float64 under a mask written out; and how fast."""

from collections.abc import Callable
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


def ways(here: Surroundings, groups: int) -> dict[str, Callable[..., Tensor]]:
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

    return {"chosen": chosen, "pieces": pieces} | ({"varlen": varlen, "flex": flex} if here.on_gpu else {})


def gradients(way: Callable[..., Tensor], inputs: list[Tensor], layout: TreeLayout) -> list[Tensor]:
    output = way(*inputs, layout)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.device)
    return [output.detach(), *torch.autograd.grad((output.double() * upstream).sum(), inputs)]


def check_against_float64(here: Surroundings) -> None:
    """Output and gradients of queries, keys and values, heads shared in groups or not."""
    layout = TreeLayout(TREES if here.on_gpu else SMALL_TREES, here.device)
    for heads, key_heads, dim in ((8, 2, 64), (4, 4, 128)) if here.on_gpu else ((4, 2, 8),):
        for dtype, limit in LIMITS.items():
            inputs = states(layout, heads, key_heads, dim, dtype)
            exact = gradients(exactly, [tensor.detach().double().requires_grad_() for tensor in inputs], layout)
            for name, way in ways(here, heads // key_heads).items():
                label = f"trees, {name}, {str(dtype).removeprefix('torch.')}, {heads}/{key_heads} heads of {dim}"
                if name == "varlen" and dtype == torch.float32:
                    continue  # flash attention knows half precision alone
                found = gradients(way, inputs, layout)
                error = max(relative_error(f, e) for f, e in zip(found, exact, strict=True))
                at_most(label, error, limit, "relative error, worst of output and gradients")
    if not here.on_gpu:
        missing("trees, varlen and flex, backward", "no CUDA device")


def time_ways(here: Surroundings) -> None:
    """Forward and backward over a microbatch of pairs, in bfloat16."""
    pair, count = (Tree(128, (160, 160)), 36) if here.on_gpu else (Tree(8, (10, 10)), 3)
    long, few = (Tree(1500, (300,) * 4), 6) if here.on_gpu else (Tree(20, (4,) * 4), 2)
    for shape, trees in {"pairs": (pair,) * count, "long prompts, four samples": (long,) * few}.items():
        layout = TreeLayout(trees, here.device)
        inputs = states(layout, 16, 4, 64 if here.on_gpu else 8, torch.bfloat16)
        for name, way in ways(here, 4).items():
            if name == "chosen":
                continue

            def step(way: Any = way, inputs: Any = inputs, layout: Any = layout) -> None:
                torch.autograd.grad(way(*inputs, layout).sum(), inputs)

            figure(f"trees, {name}, {shape}, {layout.num_tokens:,} tokens", milliseconds(step, here.device), "ms")


if __name__ == "__main__":
    HERE = surroundings()
    check_against_float64(HERE)
    time_ways(HERE)
