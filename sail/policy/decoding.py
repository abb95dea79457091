"""Decoding behind shared prompts: the samples of a prompt read its keys and values once, held once.

The counterpart of trees for sampling. Prompts are read as one packed row without padding; then one token of every
sample is a row, and attention keeps what it will need: the keys and values of each prompt, those of each sample behind
them in a buffer that grows by a few tokens. A sample attends to both under one softmax: the same as a cache of its own
that begins with a copy of the prompt.

Products go over whole buffers, with no weight on what is not filled yet: read from end to end, they come from memory
three times as fast as the filled part of each alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sail.policy.tree_attention import Tree, TreeLayout, attend

_ROOM = 16  # tokens by which a buffer grows


class SharedPrompts:
    """counts[i] samples of prompt i, after one another; what the attention of every layer keeps of them.

    Given to the model as `trees`. The first forward pass reads the prompts, each later one a token of every sample.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], counts: Sequence[int], device: torch.device) -> None:
        even = len(set(counts)) == 1
        self.lengths = [len(prompt) for prompt in prompts]
        self.counts = list(counts)
        self.num_groups = len(prompts) if even else sum(counts)  # uneven: every sample is a group, with its own copy
        self.prompts = TreeLayout([Tree(length, ()) for length in self.lengths], device)
        self.predicting: Tensor | None = self.prompts.predicting  # tokens that count for what comes next; None: all
        self.num_read = 0  # tokens of each sample
        self.layers: dict[int, _Layer] = {}
        self.unseen = self._unseen(device)

    @property
    def num_samples(self) -> int:
        return sum(self.counts)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        """[1, heads, T, D] -> [1, T, heads, D], keys and values perhaps of fewer heads."""
        index = module.layer_idx
        if index not in self.layers:
            self.layers[index] = _Layer(self._by_group(key), self._by_group(value))
            return attend(module, query, key, value, self.prompts, **kwargs)
        return self._step(self.layers[index], query, key, value, kwargs.get("scaling"))

    def _step(self, layer: "_Layer", query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """With groups g of n samples, s = g * n, and r query heads to each of h heads of keys."""
        groups, heads, width = self.num_groups, key.shape[1], query.shape[-1]
        q = query * (width**-0.5 if scaling is None else scaling)
        q = q.view(heads, -1, groups, self.num_samples // groups, width).permute(2, 0, 3, 1, 4)  # [g, h, n, r, D]
        own_keys, own_values = layer.append(self._of_step(key), self._of_step(value), self.num_read)
        in_prompt = q.flatten(2, 3) @ layer.keys.transpose(-1, -2)  # [g, h, n * r, prompt]
        if self.unseen is not None:
            in_prompt = in_prompt.masked_fill(self.unseen, -torch.inf)
        own = (q @ own_keys.transpose(-1, -2)).flatten(2, 3)  # [g, h, n * r, room]
        own[..., self.num_read + 1 :] = -torch.inf
        wide = torch.promote_types(q.dtype, torch.float32)
        weights = torch.cat([in_prompt, own], dim=-1).softmax(-1, dtype=wide).to(value.dtype)
        on_prompt, on_own = weights.split([in_prompt.shape[-1], own.shape[-1]], dim=-1)
        output = (on_prompt @ layer.values).view(q.shape) + on_own.reshape(*q.shape[:-1], -1) @ own_values
        return output.permute(0, 2, 1, 3, 4).reshape(1, self.num_samples, -1, width)

    def _of_step(self, states: Tensor) -> Tensor:
        """[1, h, s, D] -> [g, h, n, D]"""
        return states[0].unflatten(1, (self.num_groups, -1)).transpose(0, 1)

    def _by_group(self, states: Tensor) -> Tensor:
        """Of the packed prompts [1, h, T, D]: [g, h, longest prompt, D], zeros behind shorter ones."""
        prompts = pad_sequence(states[0].transpose(0, 1).split(self.lengths), batch_first=True)
        return self._per_group(prompts).transpose(1, 2).contiguous()

    def _per_group(self, of_prompts: Tensor) -> Tensor:
        if self.num_groups == len(self.lengths):
            return of_prompts
        return of_prompts.repeat_interleave(torch.tensor(self.counts, device=of_prompts.device), dim=0)

    def _unseen(self, device: torch.device) -> Tensor | None:
        """[g, 1, 1, longest prompt], true behind a group's prompt; None where all are of one length."""
        lengths = torch.tensor(self.lengths, device=device)
        if len(set(self.lengths)) == 1:
            return None
        return self._per_group(torch.arange(max(self.lengths), device=device) >= lengths[:, None])[:, None, None]


class _Layer:
    """Keys and values of one layer: the prompts' [g, h, prompt, D], the samples' [g, h, n, room, D]."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self._own: tuple[Tensor, Tensor] | None = None

    def append(self, key: Tensor, value: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Put one token's [g, h, n, D] at `position`; the whole buffers, zero behind it."""
        if position % _ROOM == 0:
            room = key.new_zeros(*key.shape[:-1], _ROOM, key.shape[-1])
            keys, values = self._own or (room[..., :0, :], room[..., :0, :])
            self._own = torch.cat([keys, room], dim=-2), torch.cat([values, room], dim=-2)
        assert self._own is not None, "positions come one after another, from 0"
        for buffer, states in zip(self._own, (key, value), strict=True):
            buffer[..., position, :] = states
        return self._own
