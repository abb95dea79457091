"""The client of one vLLM server: seeded completions, log-probs, and the development endpoints."""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from threading import Event
from typing import Any

from sail.core.errors import UserError
from sail.core.run_settings import VllmSettings
from sail.serving.completions import (
    COMPLETIONS,
    Completion,
    CompletionRequest,
    Numbered,
    StopKind,
    ask_completions,
    request_body,
)
from sail.serving.dispatch import Dispatcher, Lane, Weights, other_weights, weights_of
from sail.serving.errors import ServerError
from sail.serving.exchange import Exchange
from sail.serving.scoring import ask_score
from sail.serving.streaming import stream

__all__ = ["Completion", "CompletionRequest", "ServerClient", "StopKind"]

_RESET_ATTEMPTS, _RESET_WAIT_S = 20, 0.1
_STATE = "sail_state"  # the one method of the workers that loads nothing


class ServerClient:
    """Talks to one server.

    model: the name it serves, the base model or an adapter on it (None: ask it). eos_ids: every id that ends a
    response, sent along with each request. holds: the weights every answer must come from, where others than us can
    change them.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None,
        settings: VllmSettings,
        eos_ids: frozenset[int] = frozenset(),
        holds: Weights | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.eos_ids = eos_ids
        self.holds = holds
        self._model = model
        self._settings = settings
        self._exchange = Exchange(
            base_url, timeout_s=settings.request_timeout_s, timeout_setting="vllm.request_timeout_s"
        )
        # loading weights takes what a start takes, whatever a request may
        self._loading = Exchange(base_url, timeout_s=settings.start_timeout_s, timeout_setting="vllm.start_timeout_s")

    def asking_for(self, model: str | None, eos_ids: frozenset[int], holds: Weights | None = None) -> "ServerClient":
        """A client of the same server that asks for another of its models."""
        return ServerClient(self.base_url, model=model, settings=self._settings, eos_ids=eos_ids, holds=holds)

    def complete(self, request: CompletionRequest) -> list[Completion]:
        """The request's n samples, in order of index."""
        [(_, completions)] = self.complete_many([request])
        return completions

    def complete_many(self, requests: Iterable[CompletionRequest]) -> Iterator[Numbered]:
        """(position, samples) of every request as it finishes; see `complete_over`, with this server alone."""
        return complete_over([self], list(requests), self._settings)

    def lane(self) -> Lane[CompletionRequest, list[Completion]]:
        """This server, for a dispatcher of completions."""
        return Lane(self._exchange, partial(ask_completions, model=self.model, eos_ids=self.eos_ids), self.holds)

    def scoring_lane(self, pad_id: int) -> Lane[Sequence[int], float]:
        """This server, for a dispatcher of scores."""
        return Lane(self._exchange, partial(ask_score, model=self.model, pad_id=pad_id))

    def token_logprobs(self, prompt_ids: Sequence[int], *, cache_salt: str = "") -> list[float]:
        """log pi(token t | tokens before t) for t = 1 .. len - 1, nats, at temperature 1."""
        self.refuse_too_long(len(prompt_ids), 1)
        request = CompletionRequest(tuple(prompt_ids), n=1, seed=0, max_tokens=1, cache_salt=cache_salt)
        body = request_body(request, self.model, self.eos_ids) | {"prompt_logprobs": 0}
        entries = self._exchange.once("POST", COMPLETIONS, body)["choices"][0]["prompt_logprobs"][1:]
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

    def load_adapter(self, name: str, folder: str) -> None:
        """Serve the LoRA adapter of a folder under a new name."""
        self._loading.done("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})

    def unload_adapter(self, name: str) -> None:
        self._exchange.done("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def adapters(self) -> list[str]:
        """Names of the adapters being served."""
        return [str(card["id"]) for card in self._cards() if card["parent"] is not None]

    def sleep(self) -> None:
        """Move the weights out of the GPU and forget the keys and values."""
        self._loading.done("POST", "/sleep?level=1")

    def wake_up(self) -> None:
        self._loading.done("POST", "/wake_up")

    def collective_rpc(self, method: str, **kwargs: Any) -> list[Any]:
        """Call a method on every worker, once (an update that failed must not be repeated); their results."""
        exchange = self._exchange if method == _STATE else self._loading
        reply = exchange.once("POST", "/collective_rpc", {"method": method, "kwargs": kwargs})
        results: list[Any] = reply["results"]
        return results

    def weights(self) -> Weights:
        """Which weights the whole model has now, and how often it has been given any."""
        return weights_of(self.collective_rpc(_STATE))

    def refuse_other_weights(self) -> None:
        """UserError where somebody has given the server other weights than it `holds`, or the same again."""
        if self.holds is not None and self.weights() != self.holds:
            raise other_weights(self.base_url)

    @cached_property
    def model(self) -> str:
        """The name the server answers to."""
        return self._model or next(str(card["id"]) for card in self._cards() if card["parent"] is None)

    @cached_property
    def max_model_len(self) -> int:
        """Tokens of prompt and response the server takes."""
        cards = {card["id"]: card for card in self._cards()}
        if self.model not in cards:
            raise ServerError(f"{self.base_url} serves {sorted(cards)}, not {self.model}")
        card = cards[self.model]
        return int((card if card["parent"] is None else cards[card["parent"]])["max_model_len"])

    def refuse_too_long(self, prompt_tokens: int, max_tokens: int) -> None:
        """UserError for a request that the server would answer with fewer tokens than asked for."""
        limit = self.max_model_len
        if prompt_tokens + max_tokens > limit:
            raise UserError(
                f"a prompt of {prompt_tokens} tokens and {max_tokens} new ones exceed the server's {limit}",
                where="generation.max_completion_length",
                cure="Lower it, shorten or drop long prompts, or raise vllm.max_model_len",
            )

    def _cards(self) -> list[dict[str, Any]]:
        cards: list[dict[str, Any]] = self._exchange.once("GET", "/v1/models")["data"]
        return [{"parent": None} | card for card in cards]


def complete_over(
    clients: Sequence[ServerClient],
    requests: Sequence[CompletionRequest],
    settings: VllmSettings,
    stop: Event | None = None,
) -> Iterator[Numbered]:
    """(position, samples) of every request as it finishes, vllm.concurrency of them in flight on each server.

    What may pass is tried again (sail.serving.dispatch); ServerLostError when nobody is left to ask, and the rest is
    cancelled, as it is when the reader stops early, or when another thread sets `stop` (AbandonedError). A request over
    a server's length is a UserError before anything is sent. All servers must hold the same weights.
    """
    if not requests:
        return iter(())
    for client in clients:
        for request in requests:
            client.refuse_too_long(len(request.prompt_ids), request.max_tokens)
    lanes = [client.lane() for client in clients]
    ahead = 2 * settings.concurrency * len(lanes)
    return stream(lambda emit: Dispatcher(lanes, requests, settings, emit, stop).run(), ahead=ahead)
