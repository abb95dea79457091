"""Rows of tokens: a prompt with one response, padded together and split by token budget."""

from collections.abc import Sequence, Set
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class Row(NamedTuple):
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


class ScoredBatch(NamedTuple):
    """A forward pass over rows, and where in its [B, T] positions the N response tokens are predicted."""

    inputs: dict[str, Any]  # keyword arguments of the model
    scored: Tensor  # [N] index into the B * T positions; the tokens of a row after one another, rows in order
    target: Tensor  # [N] the token
    row_index: Tensor  # [N] its row
    first_alike: Tensor | None = None  # [B] of an encoder-decoder: the first row with the same prompt

    @classmethod
    def of(
        cls, inputs: dict[str, Any], scored: Sequence[Sequence[int]], rows: Sequence[Row], device: torch.device
    ) -> Self:
        """From the predicting positions of each row's response tokens."""
        flat = [position for positions in scored for position in positions]
        target = [token for row in rows for token in row.response_ids]
        row_index = [index for index, row in enumerate(rows) for _ in row.response_ids]
        return cls(
            inputs, *(torch.tensor(values, dtype=torch.int64, device=device) for values in (flat, target, row_index))
        )

    def at_scored(self, states: Tensor) -> Tensor:
        """[B, T, H] -> [N, H]"""
        return states.flatten(0, 1).index_select(0, self.scored)


def padded_rows(rows: Sequence[Row], device: torch.device) -> ScoredBatch:
    """One row of the batch each, padded on the right."""
    width = max(row.num_tokens for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        input_ids[index, : row.num_tokens] = torch.tensor([*row.prompt_ids, *row.response_ids])
        mask[index, : row.num_tokens] = 1
    first = [index * width + len(row.prompt_ids) - 1 for index, row in enumerate(rows)]
    scored = [range(start, start + len(row.response_ids)) for start, row in zip(first, rows, strict=True)]
    inputs = {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}
    return ScoredBatch.of(inputs, scored, rows, device)


def tree_microbatches(items: Sequence[Sequence[Row]], budget: int) -> list[list[int]]:
    """Positions of `items` (rows that stay together) in microbatches, each at most `budget` tokens as trees run them.

    A prompt counts once in a microbatch, a response without its last token (see trees). Items of one prompt stay side
    by side, largest prompts first. An item above the budget stands alone.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, rows in enumerate(items):
        by_prompt.setdefault(tuple(rows[0].prompt_ids), []).append(index)
    groups = sorted(by_prompt.values(), key=lambda group: -_added([items[index] for index in group], set()))
    batches: list[list[int]] = []
    used, prompts = budget, set[tuple[int, ...]]()
    for index in (index for group in groups for index in group):
        added = _added([items[index]], prompts)
        if used + added > budget or not batches:
            batches.append([])
            used, prompts = 0, set()
            added = _added([items[index]], prompts)
        batches[-1].append(index)
        used += added
        prompts |= {tuple(row.prompt_ids) for row in items[index]}
    return batches


def _added(items: Sequence[Sequence[Row]], prompts: Set[tuple[int, ...]]) -> int:
    """Tokens that items add to a microbatch which runs these prompts already."""
    new = {tuple(row.prompt_ids) for rows in items for row in rows} - prompts
    return sum(map(len, new)) + sum(max(len(row.response_ids) - 1, 0) for rows in items for row in rows)


def padded_microbatches(items: Sequence[Sequence[Row]], budget: int) -> list[list[int]]:
    """The same where every row is padded to the longest of its microbatch."""
    widths = [max(row.num_tokens for row in rows) for rows in items]
    return split_by_tokens(widths, budget, max(map(len, items), default=1))


def split_by_tokens(widths: Sequence[int], budget: int, members: int = 1) -> list[list[int]]:
    """Positions of `widths` in microbatches, longest first, each at most `budget` padded tokens.

    An item of width w counts members * w tokens (a pair has 2 members). An item wider than the budget stands alone.
    """
    order = sorted(range(len(widths)), key=lambda index: (-widths[index], index))
    batches: list[list[int]] = []
    for index in order:
        fits = batches and (len(batches[-1]) + 1) * members * widths[batches[-1][0]] <= budget
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
