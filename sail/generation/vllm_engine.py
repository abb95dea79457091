"""The vLLM engine: a round's prompts, one seeded request each, to the server of the current policy."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from sail.core.run_settings import GenerationSettings, VllmSettings
from sail.generation.engine import Drawn, SampleRequest
from sail.policy.loading import Checkpoint, context_length, export_merged, is_adapter, load_policy, model_folder
from sail.policy.logprobs import token_logps
from sail.policy.rows import Row
from sail.serving.client import ServerClient
from sail.serving.completions import Completion, CompletionRequest
from sail.serving.policy_server import PolicyServer


class VllmEngine:
    """Samples token ids from token ids; every request carries the policy version as its cache salt."""

    def __init__(self, settings: VllmSettings, log_folder: Path) -> None:
        self._settings, self._log_folder = settings, log_folder
        self._server: PolicyServer | None = None
        self._client: ServerClient | None = None
        self._version = ""

    def use(self, policy: Checkpoint) -> None:
        """Serve these weights: start the server, or hand it the new weights, and compare log-probs with ours."""
        if self._version == policy.key:
            return
        if self._server is None:
            length = self._settings.max_model_len or context_length(policy)
            self._server = PolicyServer(self._settings, self._log_folder, max_model_len=length)
        folder = self._full_weights(policy)
        self._client = self._server.serve(folder, policy.key, _Scorer(policy))
        self._version = policy.key

    def sample(self, requests: Sequence[SampleRequest], settings: GenerationSettings) -> list[list[Drawn]]:
        assert self._client is not None, "use(policy) comes first"
        bodies = [_completion_request(request, settings, self._version) for request in requests]
        drawn: dict[int, list[Drawn]] = {}
        for position, completions in self._client.complete_many(bodies):
            drawn[position] = [_drawn(completion) for completion in completions]
        return [drawn[position] for position in range(len(requests))]

    def endpoint(self, policy: Checkpoint) -> tuple[str, str]:
        """Address and model name of the server of these weights, for those who ask it in its own words."""
        self.use(policy)
        assert self._client is not None, "use(policy) makes it"
        return self._client.base_url, self._client.model

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._server = self._client = None
        self._version = ""
        shutil.rmtree(self._merged_folder, ignore_errors=True)

    @property
    def _merged_folder(self) -> Path:
        return self._log_folder / "merged"

    def _full_weights(self, policy: Checkpoint) -> Path:
        """The folder the server loads: the checkpoint, or a merged copy of an adapter."""
        if not is_adapter(policy):
            return model_folder(policy)
        folder = self._merged_folder / policy.key
        shutil.rmtree(self._merged_folder, ignore_errors=True)
        return export_merged(policy, folder)


class _Scorer:
    """The trainer's log-probs of probe tokens; the policy is loaded when the first probe is scored."""

    def __init__(self, policy: Checkpoint) -> None:
        self._policy = policy
        self._model: torch.nn.Module | None = None

    def __call__(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[float]:
        if self._model is None:
            self._model = load_policy(self._policy)
        with torch.no_grad():
            logps: list[float] = token_logps(self._model, [Row(prompt_ids, response_ids)]).logps.tolist()
        return logps


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
