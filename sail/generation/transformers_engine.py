"""The in-process engine: samples with transformers where vLLM is absent."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from sail.core.records import StopKind
from sail.core.run_settings import GenerationSettings
from sail.generation.engine import Drawn, SampleRequest
from sail.policy.chat import response_text
from sail.policy.devices import compute_device, free_memory, to_device
from sail.policy.loading import Checkpoint, eos_ids, load_policy, load_tokenizer


class TransformersEngine:
    """Draws by inverse CDF from one uniform per (sample, position), so a draw depends on its own seed alone."""

    def __init__(self) -> None:
        self._device = compute_device()
        self._policy: Checkpoint | None = None

    def use(self, policy: Checkpoint) -> None:
        if self._policy == policy:
            return
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._model = load_policy(policy)
        to_device(self._model, dtype)
        self._tokenizer = load_tokenizer(policy)
        self._eos = eos_ids(policy, self._tokenizer)
        self._policy = policy

    def sample(self, requests: Sequence[SampleRequest], settings: GenerationSettings) -> list[list[Drawn]]:
        drawn: list[list[Drawn]] = []
        per_batch = max(1, settings.batch_size // max(request.num_samples for request in requests))
        for start in range(0, len(requests), per_batch):
            drawn += self._sample_batch(requests[start : start + per_batch], settings)
        return drawn

    def close(self) -> None:
        self._policy = None
        self.__dict__.pop("_model", None)
        free_memory()

    @torch.no_grad()
    def _sample_batch(self, requests: Sequence[SampleRequest], settings: GenerationSettings) -> list[list[Drawn]]:
        """One forward over each prompt, then one step per token for all its samples together."""
        counts = torch.tensor([request.num_samples for request in requests])
        mask, cache, logits = self._prefill(requests)
        repeats = counts.to(self._device)
        mask, logits = mask.repeat_interleave(repeats, 0), logits.repeat_interleave(repeats, 0)
        cache.batch_select_indices(torch.arange(len(requests)).repeat_interleave(counts).to(self._device))
        streams = [_Stream(request.seed + i) for request in requests for i in range(request.num_samples)]
        uniforms = np.stack([stream.uniforms(settings.max_completion_length) for stream in streams])
        for step in range(settings.max_completion_length):
            logps = processed_logps(logits, settings, self._eos if step < settings.min_tokens else ())
            tokens = _inverse_cdf(logps, uniforms[:, step])
            chosen = logps.gather(-1, tokens[:, None]).squeeze(-1)
            for stream, token, logp in zip(streams, tokens.tolist(), chosen.tolist(), strict=True):
                stream.append(token, logp, self._stop_kind(stream, token, settings))
            if all(stream.stop_kind for stream in streams):
                break
            mask = torch.cat([mask, mask.new_ones(len(streams), 1)], dim=1)
            logits = self._forward(tokens[:, None], mask, (mask.sum(-1, keepdim=True) - 1), cache)
        return _grouped([stream.drawn() for stream in streams], counts.tolist())

    def _prefill(self, requests: Sequence[SampleRequest]) -> tuple[Tensor, DynamicCache, Tensor]:
        width = max(len(request.prompt.token_ids) for request in requests)
        ids = torch.zeros(len(requests), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):  # padded on the left, so that all prompts end together
            ids[row, width - len(request.prompt.token_ids) :] = torch.tensor(request.prompt.token_ids)
            mask[row, width - len(request.prompt.token_ids) :] = 1
        cache = DynamicCache()
        mask = mask.to(self._device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return mask, cache, self._forward(ids.to(self._device), mask, positions, cache)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        return output.logits[:, -1]

    def _stop_kind(self, stream: "_Stream", token: int, settings: GenerationSettings) -> StopKind | None:
        if token in self._eos:
            return "eos"
        if token in settings.stop_token_ids:
            return "stop_token"
        if settings.stop:
            text = response_text(self._tokenizer, [*stream.token_ids, token])
            if any(stop in text for stop in settings.stop):
                return "stop_string"
        return "length" if len(stream.token_ids) + 1 == settings.max_completion_length else None


class _Stream:
    """One response on its way."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.stop_kind: StopKind | None = None

    def uniforms(self, count: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(self.seed)).random(count)

    def append(self, token: int, logp: float, stop_kind: StopKind | None) -> None:
        if self.stop_kind is None:
            self.token_ids.append(token)
            self.logprobs.append(logp)
            self.stop_kind = stop_kind

    def drawn(self) -> Drawn:
        return Drawn(tuple(self.token_ids), tuple(self.logprobs), self.stop_kind or "length")


def processed_logps(logits: Tensor, settings: GenerationSettings, banned: Sequence[int] = ()) -> Tensor:
    """log of the distribution really sampled, [B, V] float64: temperature, top-k, top-p, min-p, renormalised."""
    logps = torch.log_softmax(logits.double() / settings.temperature, dim=-1)
    if banned:
        logps[:, list(banned)] = -torch.inf
    if settings.top_k:
        kth = logps.topk(min(settings.top_k, logps.shape[-1]), dim=-1).values[:, -1:]
        logps = logps.masked_fill(logps < kth, -torch.inf)
    if settings.top_p < 1:
        ordered, order = logps.sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= settings.top_p)
        logps = logps.masked_fill(cut, -torch.inf)
    if settings.min_p:
        floor = logps.max(-1, keepdim=True).values + np.log(settings.min_p)
        logps = logps.masked_fill(logps < floor, -torch.inf)
    return torch.log_softmax(logps, dim=-1)


def _inverse_cdf(logps: Tensor, uniforms: np.ndarray) -> Tensor:
    cdf = logps.exp().cumsum(-1)
    draws = torch.from_numpy(uniforms).to(cdf.device)[:, None] * cdf[:, -1:]
    tokens = torch.searchsorted(cdf, draws, right=True).squeeze(-1)
    return tokens.clamp(max=logps.shape[-1] - 1)


def _grouped(drawn: list[Drawn], counts: Sequence[int]) -> list[list[Drawn]]:
    groups, start = [], 0
    for count in counts:
        groups.append(drawn[start : start + count])
        start += count
    return groups
