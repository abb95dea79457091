"""The client of a vLLM server: seeded completions, log-probs, and the development endpoints."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from sail.core.errors import UserError
from sail.core.run_settings import VllmSettings
from sail.serving.completions import Completion, CompletionRequest, StopKind, read_completions, request_body
from sail.serving.errors import ServerError
from sail.serving.exchange import Exchange
from sail.serving.streaming import Emit, stream

__all__ = ["Completion", "CompletionRequest", "ServerClient", "StopKind"]

_COMPLETIONS = "/v1/completions"
_RESET_ATTEMPTS, _RESET_WAIT_S = 20, 0.1
_Numbered = tuple[int, list[Completion]]


class ServerClient:
    """Talks to one server.

    model: the name it serves (None: ask it). eos_ids: the model's EOS ids, to tell EOS from other stop tokens
    where a model has several.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None,
        settings: VllmSettings,
        eos_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._model = model
        self._concurrency = settings.concurrency
        self._eos_ids = eos_ids
        self._exchange = Exchange(base_url, timeout_s=settings.request_timeout_s, max_retries=settings.max_retries)

    def complete(self, request: CompletionRequest) -> list[Completion]:
        """The request's n samples, in order of index."""
        [(_, completions)] = self.complete_many([request])
        return completions

    def complete_many(self, requests: Iterable[CompletionRequest]) -> Iterator[_Numbered]:
        """(position, samples) of every request as it finishes, vllm.concurrency of them in flight.

        A disconnect, a timeout or a 5xx is tried again vllm.max_retries times: the seed makes a second try
        give the same bits. Then ServerError, and the rest is cancelled, as it is when the reader stops early.
        A request over the model's length is a UserError before anything is sent.
        """
        checked = list(requests)
        for request in checked:
            self._refuse_too_long(len(request.prompt_ids), request.max_tokens)
        if not checked:
            return iter(())
        return stream(lambda emit: self._complete_all(checked, emit))

    def token_logprobs(self, prompt_ids: Sequence[int], *, cache_salt: str = "") -> list[float]:
        """log pi(token t | tokens before t) for t = 1 .. len - 1, nats, at temperature 1."""
        self._refuse_too_long(len(prompt_ids), 1)
        request = CompletionRequest(tuple(prompt_ids), n=1, seed=0, max_tokens=1, cache_salt=cache_salt)
        body = request_body(request, self.model) | {"prompt_logprobs": 0}
        entries = self._exchange.once("POST", _COMPLETIONS, body)["choices"][0]["prompt_logprobs"][1:]
        return [entry[str(token)]["logprob"] for entry, token in zip(entries, prompt_ids[1:], strict=True)]

    def health(self) -> bool:
        """Whether /health answers 200. It does so on some servers the next request will kill."""
        return self._exchange.answers("/health")

    def reset_prefix_cache(self) -> None:
        """Forget all cached keys and values; waits a little for blocks that finished requests still hold."""
        for _ in range(_RESET_ATTEMPTS):
            if self._exchange.once("POST", "/reset_prefix_cache")["success"]:
                return
            time.sleep(_RESET_WAIT_S)
        raise ServerError("the prefix cache was not reset: requests still run on the server")

    def collective_rpc(self, method: str, **kwargs: Any) -> list[Any]:
        """Call a method on every worker, once (an update that failed must not be repeated); their results."""
        reply = self._exchange.once("POST", "/collective_rpc", {"method": method, "kwargs": kwargs})
        results: list[Any] = reply["results"]
        return results

    @property
    def model(self) -> str:
        """The name the server answers to."""
        return self._model or str(self._card["id"])

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and response the server takes."""
        return int(self._card["max_model_len"])

    @cached_property
    def _card(self) -> dict[str, Any]:
        cards: list[dict[str, Any]] = self._exchange.once("GET", "/v1/models")["data"]
        matching = [card for card in cards if self._model in (None, card["id"])]
        if not matching:
            raise ServerError(f"{self.base_url} serves {[card['id'] for card in cards]}, not {self._model}")
        return matching[0]

    def _refuse_too_long(self, prompt_tokens: int, max_tokens: int) -> None:
        limit = self.max_model_len
        if prompt_tokens + max_tokens > limit:
            raise UserError(
                f"a prompt of {prompt_tokens} tokens and {max_tokens} new ones exceed the server's {limit}",
                where="generation.max_completion_length",
                cure="Lower it, shorten or drop long prompts, or raise vllm.max_model_len",
            )

    async def _complete_all(self, requests: list[CompletionRequest], emit: Emit[_Numbered]) -> None:
        todo = iter(enumerate(requests))
        model = self.model

        async with self._exchange.open() as http:

            async def work() -> None:
                for position, request in todo:
                    reply = await self._exchange.post_seeded(http, _COMPLETIONS, request_body(request, model))
                    emit((position, read_completions(reply, request, self._eos_ids)))

            workers = [asyncio.create_task(work()) for _ in range(min(self._concurrency, len(requests)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
