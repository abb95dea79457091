"""Attention over packed trees [P, y1, ..., yn]: a token sees, up to itself, its prompt and its own branch.

Three ways to compute the same, by what the device has:

    pieces   an SDPA call for prompt and first branch, one for every other branch: any device, the way of the CPU
    varlen   one flash-attention call over all of them, the prompt's keys gathered once a branch: half precision, CUDA
    flex     FlexAttention with a block mask, no key twice: what flash attention does not take, CUDA (compiled)

varlen needs no merge of partial softmaxes: where queries are fewer than keys, flash attention aligns the causal mask
to the lower right, which is what a branch behind its prompt needs.
"""

import inspect
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

BLOCK = 128  # of FlexAttention's block mask
_VARLEN_OPTIONS = inspect.signature(varlen.varlen_attn).parameters  # they differ between torch versions


class Tree(NamedTuple):
    """Lengths along the packed row: the prompt, then each branch (none is empty)."""

    prompt: int
    branches: tuple[int, ...]

    @property
    def pieces(self) -> tuple[int, ...]:
        """Queries of one call each: prompt with the first branch (plainly causal), other branches."""
        return (self.prompt + sum(self.branches[:1]), *self.branches[1:])

    @property
    def predicting(self) -> tuple[int, ...]:
        """Of each piece, how many tokens predict one of a response: all but those of the prompt before its last."""
        return (1 + sum(self.branches[:1]), *self.branches[1:])

    @property
    def num_tokens(self) -> int:
        return self.prompt + sum(self.branches)


class Varlen(NamedTuple):
    """Every piece as a sequence of its own, as flash attention takes them."""

    queries: Tensor  # [pieces + 1] int32, where each piece's queries begin
    keys: Tensor  # [pieces + 1] int32, the same of its keys
    longest_query: int
    longest_key: int
    gathered: Tensor | None  # positions of the row in the order of `keys`; None: as they stand


class TreeLayout:
    """The trees of a packed row and what kernels want to know of them, made once a forward pass."""

    def __init__(self, trees: Sequence[Tree], device: torch.device) -> None:
        self.trees, self.device = tuple(trees), device

    @property
    def num_tokens(self) -> int:
        return sum(tree.num_tokens for tree in self.trees)

    @cached_property
    def predicting(self) -> Tensor:
        """Positions of the row that predict a token of a response, ascending."""
        seen, start = list[int](), 0
        for tree in self.trees:
            seen += range(start + tree.prompt - 1, start + tree.num_tokens)
            start += tree.num_tokens
        return self._tensor(seen, torch.int64)

    @cached_property
    def varlen(self) -> Varlen:
        query_ends, key_ends, seen, start = [0], [0], list[int](), 0
        for tree in self.trees:
            prompt = range(start, start + tree.prompt)
            for index, length in enumerate(tree.pieces):
                seen += [*(prompt if index else ()), *range(start, start + length)]
                start += length
                query_ends.append(start)
                key_ends.append(len(seen))
        shared = len(seen) > start
        return Varlen(
            self._tensor(query_ends, torch.int32), self._tensor(key_ends, torch.int32), _longest(query_ends),
            _longest(key_ends), self._tensor(seen, torch.int64) if shared else None,
        )  # fmt: skip

    @cached_property
    def spans(self) -> tuple[Tensor, Tensor, Tensor]:
        """[T] int64 each: where a token's prompt begins, where it ends, where the token's own piece begins.

        A token sees [first, second) and [third, itself]; for a token of the prompt the first is empty.
        """
        rows: list[tuple[int, int, int]] = []
        for tree in self.trees:
            begin = len(rows)
            rows += [(begin, begin, begin)] * tree.prompt
            for length in tree.branches:
                rows += [(begin, begin + tree.prompt, len(rows))] * length
        first, second, third = (self._tensor(column, torch.int64) for column in zip(*rows, strict=True))
        return first, second, third

    @cached_property
    def block_mask(self) -> BlockMask:
        """Which blocks are seen in part and which in full: counted from spans, never from a [T, T] mask."""
        prompt_begin, prompt_end, own_begin = self.spans

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            in_prompt = (key >= prompt_begin[query]) & (key < prompt_end[query])
            return in_prompt | ((key >= own_begin[query]) & (key <= query))

        length = self.num_tokens
        blocks = -(-length // BLOCK)
        starts = torch.arange(blocks, device=self.device) * BLOCK
        tokens = torch.arange(length, device=self.device)
        seen = _overlap(prompt_begin, prompt_end, starts) + _overlap(own_begin, tokens + 1, starts)
        counts = torch.zeros(blocks, blocks, dtype=torch.int64, device=self.device)
        counts.index_add_(0, tokens // BLOCK, seen)
        full = counts == BLOCK * BLOCK
        return BlockMask.from_kv_blocks(
            *_block_list((counts > 0) & ~full), *_block_list(full), BLOCK_SIZE=BLOCK, mask_mod=sees,
            seq_lengths=(length, length),
        )  # fmt: skip

    def _tensor(self, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)


def _longest(ends: Sequence[int]) -> int:
    return max(end - start for start, end in pairwise(ends))


def _overlap(begin: Tensor, end: Tensor, starts: Tensor) -> Tensor:
    """[T, blocks] how many of the positions [begin, end) of each token lie in each block."""
    low, high = torch.maximum(begin[:, None], starts), torch.minimum(end[:, None], starts + BLOCK)
    return (high - low).clamp(min=0)


def _block_list(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[Q, K] bool -> how many blocks a row has [1, 1, Q], and which, those first [1, 1, Q, K]."""
    order = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return blocks.sum(-1)[None, None].int(), order[None, None].int()


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TreeLayout,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> Tensor:
    """[1, heads, T, D] -> [1, T, heads, D], keys and values perhaps of fewer heads."""
    if query.is_cuda and dropout == 0.0:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else value.dtype
        query, key, value = (states.to(dtype) for states in (query, key, value))
        attention = varlen_attention if _takes_flash(dtype, query.shape[-1]) else flex_tree_attention
        return attention(query, key, value, layout, scaling)
    return pieces_attention(module, query, key, value, layout, scaling=scaling, dropout=dropout, **kwargs)


def _takes_flash(dtype: torch.dtype, head_dim: int) -> bool:
    return dtype.itemsize == 2 and head_dim <= 256 and head_dim % 8 == 0 and "window_size" in _VARLEN_OPTIONS


def pieces_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, **kwargs: Any
) -> Tensor:
    """Prompt and first branch are causal among themselves; another branch sees the prompt's keys and, causally, its
    own. The queries are those of all tokens or of layout.predicting alone. Cut by split and joined by cat: the backward
    of a slice would make full-size zeros."""
    lengths = [length for tree in layout.trees for length in tree.pieces]
    asking = lengths
    if query.shape[2] < key.shape[2]:
        asking = [length for tree in layout.trees for length in tree.predicting]
    queries, keys, values = query.split(asking, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2)
    pieces = iter(zip(queries, keys, values, strict=True))
    outputs = []
    for tree in layout.trees:
        q, k, v = next(pieces)
        outputs.append(_causal(module, q, k, v, **kwargs))
        prompt_k, prompt_v = k[:, :, : tree.prompt], v[:, :, : tree.prompt]
        for _ in tree.branches[1:]:
            q, k, v = next(pieces)
            k, v = torch.cat([prompt_k, k], dim=2), torch.cat([prompt_v, v], dim=2)
            outputs.append(_causal(module, q, k, v, **kwargs))
    return torch.cat(outputs, dim=1)


def _causal(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
    """Fewer queries than keys are the last of them."""
    asking, length = query.shape[2], key.shape[2]
    sees = None
    if asking < length:
        sees = torch.ones(asking, length, dtype=torch.bool, device=key.device).tril(length - asking)
    return sdpa_attention_forward(module, query, key, value, sees, **kwargs)[0]


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scaling: float | None) -> Tensor:
    """Half precision on CUDA alone; heads of keys are repeated where this torch does not share them itself."""
    pieces, groups = layout.varlen, query.shape[1] // key.shape[1]
    options: dict[str, Any] = {"window_size": (-1, 0), "scale": scaling}  # causal
    if "enable_gqa" in _VARLEN_OPTIONS:
        options["enable_gqa"] = groups > 1
    else:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [T, heads, D]
    if pieces.gathered is not None:
        k, v = k.index_select(0, pieces.gathered), v.index_select(0, pieces.gathered)
    output: Any = varlen.varlen_attn(
        q.contiguous(), k.contiguous(), v.contiguous(), pieces.queries, pieces.keys, pieces.longest_query,
        pieces.longest_key, **options,
    )  # fmt: skip
    return output[None]


def flex_tree_attention(query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scaling: float | None) -> Tensor:
    """Compiled on CUDA, once for all lengths; elsewhere FlexAttention runs as it stands, forward only."""
    attention: Any = _compiled_flex if query.is_cuda else flex_attention
    shared = query.shape[1] != key.shape[1]
    output = attention(query, key, value, block_mask=layout.block_mask, scale=scaling, enable_gqa=shared)
    return output.transpose(1, 2)


_compiled_flex = torch.compile(flex_attention, dynamic=True)
