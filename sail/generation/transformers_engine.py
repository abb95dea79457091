"""The in-process engine: samples with transformers where vLLM is absent."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoTokenizer

from sail.core.errors import UserError
from sail.core.records import StopKind
from sail.core.run_settings import GenerationSettings
from sail.generation.continuations import Continuation, continuation
from sail.generation.engine import Drawn, SampleRequest
from sail.generation.linear_alignment import Aligned
from sail.policy.devices import compute_device, free_memory, to_device
from sail.policy.loading import Checkpoint, Resident, eos_ids, load_policy, model_folder

_BLOCK = 64  # tokens of the vocabulary that are summed together


class TransformersEngine:
    """Draws by inverse CDF from one uniform per (sample, position), so a draw depends on its own seed alone."""

    def __init__(self) -> None:
        self._device = compute_device()
        self._policy: Checkpoint | None = None

    def use(self, policy: Checkpoint) -> None:
        if self._policy == policy:
            return
        self.__dict__.pop("_model", None)
        self._model = load_policy(policy)
        if not isinstance(policy, Resident):  # a policy that trains keeps its fp32 weights
            to_device(self._model, torch.bfloat16 if self._device.type == "cuda" else torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(model_folder(policy))  # it decodes, and needs no template
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
        counts = [request.num_samples for request in requests]
        responses = self._continuation(requests, counts, settings)
        streams = [_Stream(request.seed + i) for request in requests for i in range(request.num_samples)]
        uniforms = np.stack([stream.uniforms(settings.max_completion_length) for stream in streams])
        for step in range(settings.max_completion_length):
            banned = (*self._eos, *settings.stop_token_ids) if step < settings.min_tokens else ()
            probs = sampling_probabilities(responses.next_logits(banned), settings)
            tokens = inverse_cdf(probs, uniforms[:, step])
            chosen = probs.gather(-1, tokens[:, None]).squeeze(-1).log()
            for stream, token, logp in zip(streams, tokens.tolist(), chosen.tolist(), strict=True):
                if stream.stop_kind is None:
                    stream.append(token, logp)
                    stream.stop_kind = self._stop_kind(stream.token_ids, settings)
            if all(stream.stop_kind for stream in streams):
                break
            responses.advance(tokens)
        return _grouped([stream.drawn() for stream in streams], counts)

    def _continuation(
        self, requests: Sequence[SampleRequest], counts: Sequence[int], settings: GenerationSettings
    ) -> Continuation:
        plain = continuation(self._model, [request.prompt.token_ids for request in requests], counts)
        if settings.linear_alignment is None:
            return plain
        principled = continuation(self._model, [request.principled_ids for request in requests], counts)
        return Aligned(principled, plain, settings.linear_alignment, settings.temperature)

    def _stop_kind(self, drawn: Sequence[int], settings: GenerationSettings) -> StopKind | None:
        """What the last token of a response ended, if anything."""
        if drawn[-1] in self._eos:
            return "eos"
        if drawn[-1] in settings.stop_token_ids:
            return "stop_token"
        if settings.stop and len(drawn) > settings.min_tokens:
            text = str(self._tokenizer.decode(list(drawn), skip_special_tokens=True))
            if any(stop in text for stop in settings.stop):
                return "stop_string"
        return "length" if len(drawn) == settings.max_completion_length else None


class _Stream:
    """One response on its way."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.stop_kind: StopKind | None = None

    def uniforms(self, count: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(self.seed)).random(count)

    def append(self, token: int, logp: float) -> None:
        self.token_ids.append(token)
        self.logprobs.append(logp)

    def drawn(self) -> Drawn:
        return Drawn(tuple(self.token_ids), tuple(self.logprobs), self.stop_kind or "length")


def sampling_probabilities(logits: Tensor, settings: GenerationSettings) -> Tensor:
    """The distribution really sampled, [B, V] float32: temperature, top-k, top-p, min-p, renormalised."""
    warmed = logits if settings.temperature == 1 else logits.float() / settings.temperature
    probs = torch.softmax(warmed, dim=-1, dtype=torch.float32)
    if settings.top_k:
        kth = probs.topk(min(settings.top_k, probs.shape[-1]), dim=-1).values[:, -1:]
        probs = probs.masked_fill(probs < kth, 0)
    if settings.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= settings.top_p)
        probs = probs.masked_fill(cut, 0)
    if settings.min_p:
        probs = probs.masked_fill(probs < settings.min_p * probs.amax(-1, keepdim=True), 0)
    if settings.top_k or settings.top_p < 1 or settings.min_p:
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def inverse_cdf(probs: Tensor, uniforms: np.ndarray) -> Tensor:
    """[B] the token at which the distribution reaches u: which block of the vocabulary, then where in it. The sums are
    float64, but those of whole rows are never written."""
    blocks = pad(probs, (0, -probs.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    if not torch.isfinite(ends[:, -1]).all():
        raise UserError(
            "the policy's probabilities are not finite", where="generation",
            cure="Its weights have diverged: lower update.learning_rate, and go on from a round before",
        )  # fmt: skip
    draws = _below(torch.from_numpy(uniforms).to(ends.device)[:, None] * ends[:, -1:], ends[:, -1:])
    chosen = torch.searchsorted(ends, draws, right=True)
    block = blocks[torch.arange(len(blocks), device=blocks.device), chosen.squeeze(-1)]
    within = block.cumsum(-1, dtype=torch.float64)
    rest = _below(draws - (ends.gather(-1, chosen) - within[:, -1:]), within[:, -1:])
    return (chosen * _BLOCK + torch.searchsorted(within, rest, right=True)).squeeze(-1)


def _below(draws: Tensor, end: Tensor) -> Tensor:
    """In [0, end): rounding shall draw no token of probability 0."""
    return torch.minimum(draws.clamp(min=0), torch.nextafter(end, torch.zeros_like(end)))


def _grouped(drawn: list[Drawn], counts: Sequence[int]) -> list[list[Drawn]]:
    groups, start = [], 0
    for count in counts:
        groups.append(drawn[start : start + count])
        start += count
    return groups
