"""Rows of tokens: a prompt with one response, padded together and split by token budget."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Row(NamedTuple):
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


class PaddedRows(NamedTuple):
    """R rows of at most T tokens with N response tokens in all, padded on the right."""

    input_ids: Tensor  # [R, T]
    attention_mask: Tensor  # [R, T]
    row_index: Tensor  # [N] the row of each response token
    position: Tensor  # [N] its position in the row, >= 1
    target: Tensor  # [N] the token


def pad_rows(rows: Sequence[Row], device: torch.device) -> PaddedRows:
    width = max(row.num_tokens for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    row_index: list[int] = []
    position: list[int] = []
    for index, row in enumerate(rows):
        input_ids[index, : row.num_tokens] = torch.tensor([*row.prompt_ids, *row.response_ids])
        mask[index, : row.num_tokens] = 1
        row_index += [index] * len(row.response_ids)
        position += range(len(row.prompt_ids), row.num_tokens)
    rows_N, position_N = torch.tensor(row_index), torch.tensor(position)
    tensors = (input_ids, mask, rows_N, position_N, input_ids[rows_N, position_N])
    return PaddedRows(*(tensor.to(device) for tensor in tensors))


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
