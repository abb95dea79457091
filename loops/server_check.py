"""`sail doctor`, the live part: a server is started, sampled from, given new weights, verified and stopped.

Servers of mode external are only looked at: a run may be sampling from them.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from sail.core.artifacts import Leaf, leaf
from sail.core.records import Prompt
from sail.core.run_settings import GenerationSettings, LoraSettings, RunSettings, VllmSettings
from sail.generation.engine import Drawn, SampleRequest
from sail.generation.vllm_engine import VllmEngine
from sail.policy.loading import Checkpoint, add_adapter, load_policy, model_folder, resolve_model, save_policy
from sail.serving.client import ServerClient
from sail.serving.errors import ServerError
from sail.serving.probes import probes_for
from sail.serving.processes import descendants
from sail.serving.replica import SYNC_LOG
from sail.testbed.model import new_model
from sail.testbed.settings import MAX_POSITIONS, BuildSettings
from sail.testbed.tokenizer import build_tokenizer

_T = TypeVar("_T")
_CONTEXT, _MAX_TOKENS, _NUM_PROMPTS = 64, 16, 4
_ADAPTER_STD = 0.05  # far enough from the identity for wrong weights to show
_BUILT_IN = VllmSettings(kv_cache_gib=0.25, max_num_seqs=16)


def check_server(settings: RunSettings | None, console: Console) -> None:
    """Every step of a server's life, a row each, on the config's model (None: a tiny one of our own)."""
    if settings is not None and settings.vllm.mode == "external":
        for url in settings.vllm.server_urls:
            console.print(f"{url}  {_seen_at(url, settings.vllm)}", highlight=False)
        return
    with tempfile.TemporaryDirectory(prefix="sail-doctor-") as name:
        folder = Path(name)
        vllm = _BUILT_IN if settings is None else settings.vllm
        old = _tiny_model(folder / "old", 0) if settings is None else _model_of(settings)
        new = _adapted(old, folder / "new", settings.lora) if settings and settings.lora else _other(old, folder)
        engine = VllmEngine(vllm, folder / "logs", settings.lora if settings else None)
        try:
            _walk_through(engine, old, new, _Steps(console, folder / "logs" / SYNC_LOG))
        finally:
            engine.close()


def _seen_at(url: str, vllm: VllmSettings) -> str:
    """What a server elsewhere holds; nothing is changed there."""
    client = ServerClient(url, model=None, settings=vllm)
    if not client.health():
        return "does not answer"
    try:
        [state, *_] = client.collective_rpc("sail_state")
        length = client.max_model_len
    except ServerError as error:
        return f"answers, but not as a server of `sail serve` does: {error}"
    adapters = ", ".join(client.adapters()) or "none" if state["takes_adapters"] else "not taken"
    held, changes = f"{state['version'] or 'no known version'} in {state['dtype']}", state["num_changes"]
    return f"holds {held}, given weights {changes} times; adapters: {adapters}; {length} tokens"


class _Steps:
    """A line a step, with what was seen and how long it took."""

    def __init__(self, console: Console, sync_log: Path) -> None:
        self.console, self.sync_log = console, sync_log

    def take(self, name: str, step: Callable[[], _T], seen: Callable[[_T], str]) -> _T:
        started = time.monotonic()
        result = step()
        seconds = time.monotonic() - started
        self.console.print(f"{name:>8}  {seconds:6.1f} s  {seen(result)}", highlight=False)
        return result

    def verified(self, _: None) -> str:
        told = json.loads(self.sync_log.read_text().splitlines()[-1])
        return f"{told['way']}; server and trainer differ by {told['max_abs_nats']:.2g} nats at most"


def _walk_through(engine: VllmEngine, old: Checkpoint, new: Checkpoint, steps: _Steps) -> None:
    requests = _requests(old)
    settings = GenerationSettings(max_completion_length=_MAX_TOKENS)
    draw = lambda: engine.sample(requests, settings)  # noqa: E731
    others = set(descendants(os.getpid()))
    steps.take("start", lambda: engine.use(old), steps.verified)
    first = steps.take("sample", draw, lambda drawn: f"{_num_tokens(drawn)} tokens of {len(drawn)} prompts")
    steps.take("repeat", draw, lambda again: _equal(first, again))
    steps.take("sync", lambda: engine.use(new), steps.verified)
    steps.take("sample", draw, lambda drawn: f"{_num_tokens(drawn)} tokens of {len(drawn)} prompts")
    family = set(descendants(os.getpid())) - others
    steps.take("stop", engine.close, lambda _: f"{len(family & set(descendants(os.getpid())))} processes left")


def _requests(model: Checkpoint) -> list[SampleRequest]:
    probes = probes_for(model_folder(model), _CONTEXT)[:_NUM_PROMPTS]
    prompts = [Prompt(f"p-{index}", (), probe.prompt_ids[:_MAX_TOKENS]) for index, probe in enumerate(probes)]
    return [SampleRequest(prompt, 2, 1000 * index) for index, prompt in enumerate(prompts)]


def _num_tokens(drawn: list[list[Drawn]]) -> int:
    return sum(len(one.token_ids) for draws in drawn for one in draws)


def _equal(first: list[list[Drawn]], again: list[list[Drawn]]) -> str:
    same = sum(a == b for a, b in zip(first, again, strict=True))
    return f"{same} of {len(first)} prompts gave the same bits for the same seeds"


def _model_of(settings: RunSettings) -> Leaf:
    return resolve_model(settings.model_name_or_path, settings.revision)


def _tiny_model(folder: Path, seed: int) -> Leaf:
    tokenizer = build_tokenizer(MAX_POSITIONS)
    new_model(BuildSettings(seed=seed), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return leaf(folder)


def _other(old: Leaf, folder: Path) -> Leaf:
    """Other weights of the same shape; of the user's model the same ones, as another version."""
    ours = old.path.is_relative_to(folder)
    return _tiny_model(folder / "new", 1) if ours else Leaf(old.path, f"{old.key}-again")


def _adapted(old: Leaf, folder: Path, lora: LoraSettings) -> Leaf:
    """A random adapter of the config's shape on the config's model."""
    from transformers import AutoTokenizer

    model = add_adapter(load_policy(old), lora, seed=0)  # type: ignore[arg-type]
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=_ADAPTER_STD)
    save_policy(model, AutoTokenizer.from_pretrained(old.path), folder)
    return leaf(folder / "model")
