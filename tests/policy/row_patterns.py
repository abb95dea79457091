"""Patterns of rows: prompts with one to four responses, ragged, and the edges."""

from collections.abc import Sequence

import torch

from sail.policy.rows import Row
from tests.policy.oracle import VOCAB


def _rows(*groups: tuple[int, Sequence[int]]) -> list[Row]:
    """Rows of random tokens from (prompt length, response lengths) per prompt."""
    generator = torch.Generator().manual_seed(7)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCAB, (length,), generator=generator).tolist())

    return [
        Row(prompt, draw(length)) for prompt, lengths in ((draw(size), each) for size, each in groups)
        for length in lengths
    ]  # fmt: skip


PATTERNS = {
    "one row": _rows((5, [4])),
    "a pair": _rows((6, [3, 9])),
    "four samples": _rows((4, [7, 2, 5, 1])),
    "ragged groups": _rows((9, [3, 8]), (2, [6]), (5, [1, 2, 12]), (17, [4, 4, 4, 4])),
    "one token each": _rows((1, [1, 1]), (1, [1])),
    "prompt of one token": _rows((1, [5, 3])),
    "an empty response": _rows((4, [3, 0, 2]), (3, [0])),
    "sides apart": _rows((5, [2, 6, 4]), (3, [4, 3, 1]))[::-2] + _rows((5, [2, 6, 4]), (3, [4, 3, 1]))[::2],
}  # fmt: skip
