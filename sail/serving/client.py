"""The client of a vLLM server: seeded completions, log-probs, and the development endpoints. Retries live
here."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import httpx

from sail.core.errors import UserError
from sail.core.run_settings import VllmSettings
from sail.serving.completions import Completion, CompletionRequest, StopKind, read_completions, request_body
from sail.serving.errors import ServerError
from sail.serving.streaming import Emit, stream

__all__ = ["Completion", "CompletionRequest", "ServerClient", "StopKind"]

_CONNECT_S = 5.0
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.25, 8.0
_RESET_ATTEMPTS, _RESET_WAIT_S = 20, 0.1
_Numbered = tuple[int, list[Completion]]


class ServerClient:
    """Talks to one server. `model` is the name it serves (None: ask it); `eos_ids` tell EOS from other stop
    tokens."""

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
        self._settings = settings
        self._eos_ids = eos_ids
        self._http_options: dict[str, Any] = {
            "timeout": httpx.Timeout(settings.request_timeout_s, connect=_CONNECT_S),
            "trust_env": False,  # no proxy between us and the server
            "verify": base_url.startswith("https:"),  # loading certificates costs more than a request
            # uvicorn drops idle connections, and the one it answered a 500 on: reusing those is a race
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=0),
        }
        self._http = httpx.Client(**self._http_options)

    def complete(self, request: CompletionRequest) -> list[Completion]:
        """The request's n samples, in order of index."""
        [(_, completions)] = self.complete_many([request])
        return completions

    def complete_many(self, requests: Iterable[CompletionRequest]) -> Iterator[_Numbered]:
        """(position, samples) of every request as it finishes, settings.concurrency of them in flight.

        A disconnect, a timeout or a 5xx is tried again settings.max_retries times: the seed makes a second
        try give the same bits. Then ServerError. A request over the model's length is refused before anything
        is sent.
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
        entries = self._post("/v1/completions", body)["choices"][0]["prompt_logprobs"][1:]
        return [entry[str(token)]["logprob"] for entry, token in zip(entries, prompt_ids[1:], strict=True)]

    def health(self) -> bool:
        """Whether /health answers 200. It does so on some servers the next request will kill."""
        try:
            return self._http.get(f"{self.base_url}/health", timeout=_CONNECT_S).is_success
        except httpx.TransportError:
            return False

    def reset_prefix_cache(self) -> None:
        """Forget all cached keys and values; waits a little for blocks that finished requests still hold."""
        for _ in range(_RESET_ATTEMPTS):
            if self._post("/reset_prefix_cache", None)["success"]:
                return
            time.sleep(_RESET_WAIT_S)
        raise ServerError("the prefix cache was not reset: requests still run on the server")

    def collective_rpc(self, method: str, **kwargs: Any) -> list[Any]:
        """Call a method on every worker, once (an update that failed must not be repeated); their results."""
        results: list[Any] = self._post("/collective_rpc", {"method": method, "kwargs": kwargs})["results"]
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
        cards: list[dict[str, Any]] = self._exchange("GET", "/v1/models", None)["data"]
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

        async def work(http: httpx.AsyncClient) -> None:
            for position, request in todo:
                reply = await self._post_seeded(http, request_body(request, self.model))
                emit((position, read_completions(reply, request, self._eos_ids)))

        async with httpx.AsyncClient(**self._http_options) as http:
            workers = [
                asyncio.create_task(work(http)) for _ in range(min(self._settings.concurrency, len(requests)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _post_seeded(self, http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        url, problem = f"{self.base_url}/v1/completions", ""
        for attempt in range(self._settings.max_retries + 1):
            if attempt:
                await asyncio.sleep(min(_FIRST_BACKOFF_S * 2 ** (attempt - 1), _LONGEST_BACKOFF_S))
            try:
                reply = await http.post(url, json=body)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__} {error}".strip()
                continue
            if not reply.is_server_error:
                return _content(reply)
            problem = _told(reply)
        raise ServerError(f"{url} failed {self._settings.max_retries + 1} times, at last with {problem}")

    def _post(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        return self._exchange("POST", path, body)

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        url = f"{self.base_url}{path}"
        try:
            reply = self._http.request(method, url, json=body)
        except httpx.TransportError as error:
            raise ServerError(f"{url}: {type(error).__name__} {error}") from None
        return _content(reply)


def _content(reply: httpx.Response) -> dict[str, Any]:
    if not reply.is_success:
        raise ServerError(_told(reply))
    content: dict[str, Any] = reply.json()
    return content


def _told(reply: httpx.Response) -> str:
    return f"{reply.url}: HTTP {reply.status_code}: {reply.text[:500]}"
