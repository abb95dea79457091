"""What is asked of the server and what comes back, as records; and the checks between the two."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from sail.serving.errors import ServerError, TransientError

StopKind = Literal["eos", "stop_token", "stop_string", "length", "abort"]
COMPLETIONS = "/v1/completions"
_SEED_LIMIT = 1 << 63


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """n samples of one prompt; sample i is drawn with seed + i, alone or together with the others, bit for
    bit.

    CompletionRequest((1, 17, 4), n=2, seed=derive_seed(7, "samples", 0, "p-3fa9"), max_tokens=64,
    cache_salt="r0")
    """

    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    cache_salt: str = ""  # the policy's version: keys and values of older weights are never reused

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("a completion needs a prompt of at least one token")
        if self.n < 1 or self.max_tokens < 1:
            raise ValueError(f"n = {self.n} and max_tokens = {self.max_tokens} must be positive")
        if not 0 <= self.seed <= _SEED_LIMIT - self.n:
            raise ValueError(f"seeds {self.seed} .. seed + {self.n - 1} must lie in [0, 2**63)")


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample. token_ids hold the EOS or stop token that ended it; logprobs (nats) are of the distribution
    it was really drawn from (after temperature, top_k, ...)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_kind: StopKind
    stop_reason: str | int | None


Numbered = tuple[int, list[Completion]]
"""The position of a request among those asked, and its samples"""


async def ask_completions(
    post: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]],
    request: CompletionRequest,
    *,
    model: str,
    eos_ids: frozenset[int],
) -> list[Completion]:
    """The samples of one request, asked once (sail.serving.dispatch.Ask)."""
    completions = read_completions(await post(COMPLETIONS, request_body(request, model, eos_ids)), request, eos_ids)
    if any(completion.stop_kind == "abort" for completion in completions):
        raise TransientError("the server aborted a sample")  # it is being stopped, or was paused
    return completions


def request_body(request: CompletionRequest, model: str, eos_ids: frozenset[int]) -> dict[str, Any]:
    """JSON for /v1/completions. Everything is explicit: a model's generation_config would set what is left
    out, and the server knows the EOS ids of the weights it was started on, not of those it serves now."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.prompt_ids),
        "n": request.n,
        "seed": request.seed,
        "max_tokens": request.max_tokens,
        "min_tokens": request.min_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(request.stop),
        "stop_token_ids": sorted(eos_ids | set(request.stop_token_ids)),
        "logprobs": 0,
        "return_token_ids": True,
    }
    return body | ({"cache_salt": request.cache_salt} if request.cache_salt else {})


def read_completions(reply: dict[str, Any], request: CompletionRequest, eos_ids: frozenset[int]) -> list[Completion]:
    """The n samples in order, or ServerError if the reply is not what was asked."""
    choices = sorted(reply["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(request.n)):
        raise ServerError(f"asked for {request.n} samples, got indices {[c['index'] for c in choices]}")
    return [_read_choice(choice, request, eos_ids) for choice in choices]


def _read_choice(choice: dict[str, Any], request: CompletionRequest, eos_ids: frozenset[int]) -> Completion:
    prompt_ids, token_ids = choice["prompt_token_ids"], choice["token_ids"]
    if tuple(prompt_ids) != request.prompt_ids:
        raise ServerError(f"sent prompt {request.prompt_ids[:8]}..., the server answered {prompt_ids[:8]}...")
    logprobs = choice["logprobs"]["token_logprobs"]
    if len(logprobs) != len(token_ids):
        raise ServerError(f"{len(token_ids)} token ids but {len(logprobs)} log-probs in one sample")
    if any(value is None or not math.isfinite(value) for value in logprobs):
        raise ServerError("a log-prob is missing or not finite")
    kind = _stop_kind(choice["finish_reason"], choice["stop_reason"], eos_ids)
    if kind == "eos" and eos_ids and token_ids[-1] not in eos_ids:
        raise ServerError(f"a sample ended with token {token_ids[-1]}, the policy's EOS ids are {sorted(eos_ids)}")
    if kind == "length" and len(token_ids) != request.max_tokens:
        raise ServerError(f"a sample was cut at {len(token_ids)} of {request.max_tokens} tokens")
    return Completion(tuple(token_ids), tuple(logprobs), kind, choice["stop_reason"])


def _stop_kind(finish_reason: str, stop_reason: str | int | None, eos_ids: frozenset[int]) -> StopKind:
    if finish_reason == "length":
        return "length"
    if finish_reason == "abort":
        return "abort"
    if finish_reason != "stop":
        raise ServerError(f"unknown finish reason {finish_reason!r}")
    if isinstance(stop_reason, str):
        return "stop_string"
    return "eos" if stop_reason is None or stop_reason in eos_ids else "stop_token"
