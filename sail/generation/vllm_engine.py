"""The vLLM engine: a round's prompts, one seeded request each, to the servers of the current policy."""

import shutil
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from threading import Event

import torch
from transformers import AutoTokenizer

from sail.core.artifacts import Leaf
from sail.core.run_settings import GenerationSettings, LoraSettings, VllmSettings
from sail.generation.engine import Drawn, SampleRequest
from sail.policy.devices import free_memory, to_device
from sail.policy.loading import (
    Checkpoint,
    base_folder,
    context_length,
    eos_ids,
    export_merged,
    is_adapter,
    load_policy,
    model_folder,
    resolve_model,
)
from sail.policy.logprobs import token_logps
from sail.policy.rows import Row
from sail.serving.completions import Completion, CompletionRequest
from sail.serving.flags import rests_by
from sail.serving.policy_server import PolicyServer
from sail.serving.served_policy import ServedPolicy
from sail.serving.versions import installed_vllm


class VllmEngine:
    """Samples token ids from token ids; every request carries the policy version as its cache salt."""

    def __init__(
        self,
        settings: VllmSettings,
        log_folder: Path,
        lora: LoraSettings | None = None,
        chat_template: Leaf | None = None,
    ) -> None:
        self._settings, self._log_folder, self._lora = settings, log_folder, lora
        self._chat_template = chat_template  # the run's file; samples are drawn by token ids, judges ask in words
        self._server: PolicyServer | None = None
        self._versions: dict[Path, str] = {}  # of the whole models seen
        self._policy: Checkpoint | None = None
        self._stop: Event | None = None

    @property
    def awake(self) -> bool:
        """Whether it can draw while the policy trains."""
        return self._settings.mode == "external" or rests_by(self._settings, installed_vllm().device) == "keep"

    def remember(self, model: Leaf) -> None:
        """A run's starting model: adapters that stand on its folder stand on this version, in a resumed run too."""
        self._versions[model.path] = model.key

    def until(self, stop: Event) -> "VllmEngine":
        """The same server for another thread, that lets go of it at `stop`; the policy stays the one in use."""
        other = copy(self)
        other._stop = stop
        return other

    def use(self, policy: Checkpoint) -> None:
        """Serve these weights: start the server, or hand it the new weights, and compare log-probs with ours."""
        if self._server is None:
            length = self._settings.max_model_len or context_length(policy)
            rank = self._lora.r if self._lora and self._settings.lora == "load" else None
            template = None if self._chat_template is None else self._chat_template.path
            self._server = PolicyServer(
                self._settings, self._log_folder, max_model_len=length, lora_rank=rank, chat_template=template
            )
        if self._policy != policy or self._server.policy is None or self._server.dead:
            self._policy = policy
            served, scorer = self._served(policy)
            self._server.serve(served)
            scorer.release()
            free_memory()  # of a policy that was handed over on the GPU

    def stream(self, requests: Sequence[SampleRequest], settings: GenerationSettings) -> Iterator[list[Drawn]]:
        """For each request its samples, in the order of the requests, while later ones are still being drawn."""
        assert self._server is not None and self._policy is not None, "use(policy) comes first"
        bodies = [_completion_request(request, settings, self._policy.key) for request in requests]
        waiting: dict[int, list[Drawn]] = {}
        following = 0
        for position, completions in self._server.complete_many(bodies, self._stop):
            waiting[position] = [_drawn(completion) for completion in completions]
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    def sample(self, requests: Sequence[SampleRequest], settings: GenerationSettings) -> list[list[Drawn]]:
        return list(self.stream(requests, settings))

    def rest(self) -> None:
        if self._server is not None:
            self._server.rest()

    def endpoint(self, policy: Checkpoint) -> tuple[str, str]:
        """Address and model name of the server of these weights, for those who ask it in its own words."""
        self.use(policy)
        assert self._server is not None, "use(policy) makes it"
        client = self._server.clients[0]
        return client.base_url, client.model

    def refuse_other_weights(self) -> None:
        """UserError where somebody else has given that server weights since `endpoint`."""
        assert self._server is not None, "endpoint(policy) comes first"
        self._server.clients[0].refuse_other_weights()

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._server = self._policy = None
        shutil.rmtree(self._merged_folder, ignore_errors=True)

    @property
    def _merged_folder(self) -> Path:
        return self._log_folder / "merged"

    def _served(self, policy: Checkpoint) -> "tuple[ServedPolicy, _Scorer]":
        folder, scorer = model_folder(policy), _Scorer(policy)
        base = base_folder(policy)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ends = frozenset(eos_ids(policy, tokenizer))
        if is_adapter(policy) and self._settings.lora == "load":
            if base not in self._versions:
                self._versions[base] = resolve_model(str(base)).key
            return ServedPolicy(base, self._versions[base], policy.key, ends, scorer, folder), scorer
        whole = self._merged(policy) if is_adapter(policy) else folder
        self._versions[whole] = policy.key
        whole_model = Leaf(whole, policy.key)
        return ServedPolicy(whole, policy.key, policy.key, ends, scorer, load=lambda: _on_gpu(whole_model)), scorer

    def _merged(self, policy: Checkpoint) -> Path:
        shutil.rmtree(self._merged_folder, ignore_errors=True)
        return export_merged(policy, self._merged_folder / policy.key)


def _on_gpu(whole: Leaf) -> torch.nn.Module:
    model = load_policy(whole)
    to_device(model)
    return model


class _Scorer:
    """The trainer's log-probs of probe tokens; the policy is loaded when the first probe is scored.

    Answers are kept: a server that is started again gives the same probe tokens, and the policy stays on disk.
    """

    def __init__(self, policy: Checkpoint) -> None:
        self._policy = policy
        self._model: torch.nn.Module | None = None
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}

    def __call__(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[float]:
        asked = (tuple(prompt_ids), tuple(response_ids))
        if asked not in self._known:
            if self._model is None:
                self._model = load_policy(self._policy)
            with torch.no_grad():
                self._known[asked] = token_logps(self._model, [Row(prompt_ids, response_ids)]).logps.tolist()
        return self._known[asked]

    def release(self) -> None:
        self._model = None


def _completion_request(request: SampleRequest, settings: GenerationSettings, version: str) -> CompletionRequest:
    return CompletionRequest(
        prompt_ids=request.prompt.token_ids,
        n=request.num_samples,
        seed=request.seed,
        max_tokens=settings.max_completion_length,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        min_tokens=settings.min_tokens,
        stop=settings.stop,
        stop_token_ids=settings.stop_token_ids,
        cache_salt=version,
    )


def _drawn(completion: Completion) -> Drawn:
    return Drawn(completion.token_ids, completion.logprobs, completion.stop_kind)
