"""Responses on their way in process: what comes next, for all samples of some prompts together.

A prompt is run once. Where the model takes shared prompts, its samples read the keys it left; elsewhere the cache is
repeated for each of them.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from sail.policy.architectures import bare_model, takes_trees
from sail.policy.decoding import SharedPrompts
from sail.policy.encoder_decoder import right_padded, start_id
from sail.policy.trees import attending

ALL = 0  # of transformers' logits_to_keep


class Continuation(Protocol):
    """The samples of a prompt stand after one another."""

    def next_logits(self, banned: Sequence[int] = ()) -> Tensor:
        """[S, V] of every sample's next token; -inf for the banned ones."""

    def advance(self, tokens: Tensor) -> None:
        """Append a token [S] to every sample."""


def continuation(model: Any, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> Continuation:
    """Start counts[i] samples of prompts[i], by what the model is."""
    if model.config.is_encoder_decoder:
        return _EncoderDecoder(model, prompts, counts)
    kind = _SharedPrompts if takes_trees(bare_model(model)) else _Causal
    return kind(model, prompts, counts)


class _SharedPrompts:
    """Prompts read once, packed and without padding, their keys held once for all their samples."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        self.model, device = model, model.device
        self.shared = SharedPrompts(prompts, counts, device)
        self.inputs = attending(self.shared, device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=device)
        positions = torch.cat([torch.arange(len(prompt), device=device) for prompt in prompts])
        samples = _samples(counts).to(device)
        self.logits = self._forward(ids, positions[None], self.shared.prompts.predicting)[samples]
        self.shared.predicting = None
        self.positions = lengths[samples][None]

    def next_logits(self, banned: Sequence[int] = ()) -> Tensor:
        return _without(self.logits, banned)

    def advance(self, tokens: Tensor) -> None:
        self.logits = self._forward(tokens[None], self.positions, ALL)
        self.positions = self.positions + 1
        self.shared.num_read += 1

    def _forward(self, ids: Tensor, positions: Tensor, kept: Tensor | int) -> Tensor:
        """Logits [kept, V] of a packed row."""
        output = self.model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=kept, **self.inputs)
        return output.logits[0]


class _Causal:
    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        self.model, device = model, model.device
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # padded on the left, so that all prompts end together
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        self.cache, self.mask = DynamicCache(), mask.to(device)
        logits = self._forward(ids.to(device), (self.mask.cumsum(-1) - 1).clamp(min=0))
        samples = _samples(counts).to(device)
        self.logits, self.mask = logits[samples], self.mask[samples]
        self.cache.batch_select_indices(samples)

    def next_logits(self, banned: Sequence[int] = ()) -> Tensor:
        return _without(self.logits, banned)

    def advance(self, tokens: Tensor) -> None:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.logits = self._forward(tokens[:, None], self.mask.sum(-1, keepdim=True) - 1)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        return output.logits[:, -1]


class _EncoderDecoder:
    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> None:
        self.model, device = model, model.device
        ids, mask = right_padded(prompts)
        self.mask = mask.to(device)
        self.read = model.get_encoder()(input_ids=ids.to(device), attention_mask=self.mask).last_hidden_state
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        start = torch.full((len(prompts),), start_id(model.config), device=device)
        logits = self._forward(start)  # fills the cross-attention's cache, once for each prompt
        samples = _samples(counts).to(device)
        self.logits, self.mask, self.read = logits[samples], self.mask[samples], self.read[samples]
        self.cache.batch_select_indices(samples)

    def next_logits(self, banned: Sequence[int] = ()) -> Tensor:
        return _without(self.logits, banned)

    def advance(self, tokens: Tensor) -> None:
        self.logits = self._forward(tokens)

    def _forward(self, tokens: Tensor) -> Tensor:
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.read), attention_mask=self.mask,
            decoder_input_ids=tokens[:, None], past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        return output.logits[:, -1]


def _samples(counts: Sequence[int]) -> Tensor:
    """[S] the prompt of each sample."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def _without(logits: Tensor, banned: Sequence[int]) -> Tensor:
    if not banned:
        return logits
    return logits.index_fill(-1, torch.tensor(list(banned), device=logits.device), -torch.inf)
