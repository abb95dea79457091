"""vLLM's engine in this process, asked from other threads: what `colocated` serves. Imports vLLM."""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from typing import Any

from vllm.exceptions import VLLMClientError
from vllm.inputs import TokensPrompt
from vllm.logprobs import Logprob
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine

Json = dict[str, Any]
_PASSED_ON = (
    "n", "seed", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "stop", "stop_token_ids", "logprobs", "prompt_logprobs",
)  # fmt: skip


class Desk:
    """Takes requests from any thread; `work`, in the main thread, alone touches the engine."""

    def __init__(self, engine: LLMEngine, model_name: str) -> None:
        self.engine, self.model_name = engine, model_name
        self.adapters: dict[str, LoRARequest] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: dict[str, Future[RequestOutput]] = {}
        self._numbers = count(1)

    def work(self) -> None:
        """Step while anything is unfinished, wait otherwise. An error of the engine ends the process: what is left of
        it cannot be trusted, and whoever asked sees a disconnect."""
        while True:
            while not self._inbox.empty() or not self.engine.has_unfinished_requests():
                self._inbox.get()()
            for output in self.engine.step():
                asked = self._waiting.pop(output.request_id, None) if output.finished else None
                if asked is not None:
                    assert isinstance(output, RequestOutput), "nothing is pooled here"
                    asked.set_result(output)

    def do(self, job: Callable[[], Any]) -> "Future[Any]":
        """Run `job` between two steps."""
        done = _promise()
        self._inbox.put(lambda: done.set_result(job()))
        return done

    def complete(self, body: Json) -> "tuple[str, Future[RequestOutput]]":
        """Sample; the string is for `forget`."""
        number, answer = str(next(self._numbers)), _promise()
        prompt = TokensPrompt(prompt_token_ids=body["prompt"])
        if "cache_salt" in body:
            prompt["cache_salt"] = body["cache_salt"]

        def add() -> None:
            adapter = self.adapters.get(body["model"])
            try:
                self.engine.add_request(number, prompt, sampling_params(body), lora_request=adapter)
            except (VLLMClientError, ValueError) as error:  # the request's fault
                answer.set_exception(error)
            else:
                self._waiting[number] = answer

        self._inbox.put(add)
        return number, answer

    def forget(self, number: str) -> None:
        """Whoever asked has left."""
        self._inbox.put(lambda: self._abort(number))

    def load_adapter(self, name: str, folder: str) -> None:
        adapter = LoRARequest(name, next(self._numbers), folder)
        if not self.engine.add_lora(adapter):
            raise RuntimeError(f"vLLM did not take the adapter {folder}")
        self.adapters[name] = adapter

    def unload_adapter(self, name: str) -> None:
        self.engine.remove_lora(self.adapters.pop(name).lora_int_id)

    def _abort(self, number: str) -> None:
        if self._waiting.pop(number, None) is not None:
            self.engine.abort_request([number])


def sampling_params(body: Json) -> SamplingParams:
    """What /v1/completions makes of the same body; text is only made where a stop string has to be found in it."""
    given = {name: body[name] for name in _PASSED_ON if name in body}
    return SamplingParams(**given, output_kind=RequestOutputKind.FINAL_ONLY, detokenize=bool(body.get("stop")))


def reply_of(output: RequestOutput) -> Json:
    """The part of a reply of /v1/completions that sail reads."""
    of_prompt = [_by_token(entry) for entry in output.prompt_logprobs or []]
    shared = {"prompt_token_ids": output.prompt_token_ids, "prompt_logprobs": of_prompt}
    return {"choices": [shared | _choice(one) for one in output.outputs]}


def _choice(one: CompletionOutput) -> Json:
    entries = one.logprobs and zip(one.logprobs, one.token_ids, strict=True)
    return {
        "index": one.index,
        "token_ids": list(one.token_ids),
        "logprobs": entries and {"token_logprobs": [entry[token].logprob for entry, token in entries if entry]},
        "finish_reason": one.finish_reason,
        "stop_reason": one.stop_reason,
    }


def _by_token(entry: dict[int, Logprob] | None) -> Json | None:
    return None if entry is None else {str(token): {"logprob": known.logprob} for token, known in entry.items()}


def _promise() -> "Future[Any]":
    """One that nobody can cancel: an asker who leaves must not disturb the engine's thread."""
    promise: Future[Any] = Future()
    promise.set_running_or_notify_cancel()
    return promise
