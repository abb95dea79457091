"""Rows that share a prompt run as one tree [P, y1, ..., yn]: the prompt once, no padding, all trees in one row.

Position ids restart after the prompt at every response (a branch), and a branch attends to its prompt and itself:
the same hidden states as n separate rows, exactly (prefix sharing for pairs: arXiv 2410.20305; groups: 2506.05433).
The last token of a response is predicted but predicts nothing, so it is not run at all.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sail.policy.decoding import SharedPrompts
from sail.policy.rows import Row, ScoredBatch
from sail.policy.tree_attention import Tree, TreeLayout, attend

TREE_ATTENTION = "sail_tree"


def tree_rows(rows: Sequence[Row], device: torch.device) -> ScoredBatch:
    """Rows grouped by equal prompts and packed to one row [1, T]; scored tokens stay in the order of `rows`."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(tuple(row.prompt_ids), []).append(index)
    ids: list[int] = []
    positions: list[int] = []
    scored: list[list[int]] = [[] for _ in rows]
    trees = []
    for prompt, members in groups.items():
        assert prompt, "the first token of a response is predicted by the last one of its prompt"
        ids += prompt
        positions += range(len(prompt))
        prompt_end = len(ids) - 1
        for member in members:
            branch = rows[member].response_ids[:-1]
            if rows[member].response_ids:
                scored[member] = [prompt_end, *range(len(ids), len(ids) + len(branch))]
            ids += branch
            positions += range(len(prompt), len(prompt) + len(branch))
        lengths = (len(rows[member].response_ids) - 1 for member in members)
        trees.append(Tree(len(prompt), tuple(length for length in lengths if length > 0)))
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": torch.tensor([positions], device=device),
        **attending(TreeLayout(trees, device), device),
    }
    return ScoredBatch.of(inputs, scored, rows, device)


def attending(trees: TreeLayout | SharedPrompts, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of a model whose attention is tree_attention."""
    # four dimensions tell transformers that masking is taken care of
    return {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device), "trees": trees}


@torch.compiler.disable  # pieces differ in every batch; blocks round it may be compiled
def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    trees: TreeLayout | SharedPrompts | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each tree, or of samples behind shared prompts, [1, heads, T, D] -> [1, T, heads, D];
    without `trees`, transformers' SDPA."""
    if trees is None:
        if attention_mask is not None and attention_mask.shape[-1] != key.shape[2]:
            raise RuntimeError(f"{type(module).__name__} does not hand `trees` on to its attention")
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if isinstance(trees, SharedPrompts):
        return trees.attend(module, query, key, value, **kwargs), None
    return attend(module, query, key, value, trees, **kwargs), None


AttentionInterface.register(TREE_ATTENTION, tree_attention)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)  # for calls without trees
