"""The generation stage through a live server, and the same requests sent to that server by a client of a few lines."""

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from sail.core.artifacts import Artifact, Leaf, leaf
from sail.core.records import Prompt, SampleGroup
from sail.core.run_settings import GenerationSettings, LoraSettings, VllmSettings
from sail.core.seeds import derive_seed
from sail.core.store import Recipe, Store
from sail.generation.engine import Engine
from sail.generation.stage import generate
from sail.generation.transformers_engine import TransformersEngine
from sail.generation.vllm_engine import VllmEngine
from sail.serving.client import ServerClient
from sail.serving.completions import CompletionRequest, request_body
from sail.serving.processes import descendants
from scripts.bench.online import VOCAB, write_model
from scripts.bench.timing import cpu_seconds

SEED = 7
ENDS = frozenset({1})  # EOS of the model
Ids = list[tuple[int, ...]]


@dataclass(frozen=True)
class Load:
    """One round: each prompt once, num_samples responses of at most new_tokens to each."""

    prompt_tokens: int
    num_prompts: int = 64
    num_samples: int = 4
    new_tokens: int = 64


class Took(NamedTuple):
    """One round by one way."""

    wall: float  # seconds
    client_cpu: float  # CPU seconds of this process
    server_cpu: float  # of the server's
    tokens: int

    @property
    def pace(self) -> float:
        return self.tokens / self.wall


@dataclass
class Bench:
    """A random policy of 2.9M parameters, its server and a store."""

    folder: Path
    settings: VllmSettings
    stores: int = 0
    rank: int = 16
    policy: Leaf = field(init=False)

    def __post_init__(self) -> None:
        self.policy = leaf(write_model(self.folder / "model"))
        self.vllm = VllmEngine(self.settings, self.folder / "logs", LoraSettings(r=self.rank))
        self.transformers = TransformersEngine()

    def close(self) -> None:
        self.vllm.close()

    def compare(self, load: Load, num_rounds: int, say: Callable[[str], None]) -> dict[str, list[Took]]:
        """Raw and stage once a round, the order reversed every other round, after a round that does not count; then
        the other engine, whose samples are others."""
        took: dict[str, list[Took]] = {"raw": [], "stage": [], "transformers": []}
        ways = {"raw": self._raw, "stage": self._stage}
        for index in range(num_rounds + 1):
            drawn: dict[str, Ids] = {}
            for name in list(ways)[:: 1 if index % 2 == 0 else -1]:
                drawn[name], cost = ways[name](load, index)
                if index:
                    took[name].append(cost)
            if drawn["raw"] != drawn["stage"]:
                raise RuntimeError("the stage and the raw client drew other samples: they sent other requests")
            if index:
                say(f"{index} of {num_rounds}: raw {took['raw'][-1].wall:.2f} s, stage {took['stage'][-1].wall:.2f} s")
        took["transformers"] = [self._in_process(load, index)[1] for index in range(3)][1:]
        return took

    def syncs(self, num_syncs: int) -> dict[str, list[Took]]:
        """From a checkpoint on disk to a verified server, by way, after a turn that does not count."""
        whole = leaf(_moved(self.policy.path, self.folder / "moved"))
        adapters = [leaf(_adapter(self.policy.path, self.folder / f"lora-{seed}", self.rank, seed)) for seed in (1, 2)]
        self.vllm.use(self.policy)
        return {
            "load adapter": self._in_turns(adapters, num_syncs),
            "reload from disk": self._in_turns([whole, self.policy], num_syncs),
        }

    def _in_turns(self, policies: Sequence[Leaf], num_syncs: int) -> list[Took]:
        took = []
        for index in range(num_syncs + 1):
            with _Costs(self._family()) as costs:
                self.vllm.use(policies[index % len(policies)])
            took.append(costs.of([]))
        return took[1:]

    def _stage(self, load: Load, index: int) -> tuple[Ids, Took]:
        return self._generated(self.vllm, load, index)

    def _in_process(self, load: Load, index: int) -> tuple[Ids, Took]:
        return self._generated(self.transformers, load, index)

    def _generated(self, engine: Engine, load: Load, index: int) -> tuple[Ids, Took]:
        """The whole stage: requests made, samples drawn and checked, shards written, the artifact committed."""
        self.stores += 1
        store = Store(self.folder / f"store-{self.stores}")
        made = _prompts(store, load)
        engine.use(self.policy)
        self._forget()
        with _Costs(self._family()) as costs:
            artifact = generate(
                store, engine, prompts=made, table="train", policy=self.policy,
                settings=GenerationSettings(max_completion_length=load.new_tokens, batch_size=64), engine_settings={},
                num_samples=load.num_samples, per_round=None, round_index=index, seed=SEED,
            )  # fmt: skip
        groups = sorted(artifact.read(SampleGroup, "groups"), key=lambda group: group.prompt.prompt_id)
        ids = [sample.token_ids for group in groups for sample in group.samples]
        return ids, costs.of(ids)

    def _raw(self, load: Load, index: int) -> tuple[Ids, Took]:
        """The stage's requests and nothing of the stage: no check, no record, no disk."""
        client = self._forget()
        bodies = [
            request_body(
                CompletionRequest(
                    prompt.token_ids, load.num_samples, derive_seed(SEED, "train", index, prompt.prompt_id),
                    load.new_tokens, cache_salt=self.policy.key,
                ), client.model, ENDS,
            ) for prompt in _made_up(load)
        ]  # fmt: skip
        with _Costs(self._family()) as costs:
            replies = asyncio.run(_send(client.base_url, bodies, self.settings.concurrency))
        choices = [choice for reply in replies for choice in sorted(reply["choices"], key=lambda one: one["index"])]
        ids = [tuple(choice["token_ids"]) for choice in choices]
        return ids, costs.of(ids)

    def _forget(self) -> ServerClient:
        """A client of the server, which knows no prompt any more: every way starts from an empty prefix cache."""
        url, model = self.vllm.endpoint(self.policy)
        client = ServerClient(url, model=model, settings=self.settings)
        client.reset_prefix_cache()
        return client

    def _family(self) -> list[int]:
        return descendants(os.getpid())


async def _send(url: str, bodies: Sequence[Mapping[str, Any]], concurrency: int) -> list[Any]:
    """What a user's first script looks like."""
    places = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=600.0, trust_env=False) as http:

        async def one(body: Mapping[str, Any]) -> Any:
            async with places:
                return (await http.post("/v1/completions", json=body)).json()

        return await asyncio.gather(*map(one, bodies))


class _Costs:
    """Wall and CPU seconds of a block, the latter also of the processes `family`."""

    def __init__(self, family: Sequence[int]) -> None:
        self.family = family

    def __enter__(self) -> "_Costs":
        self.at = (time.perf_counter(), time.process_time(), cpu_seconds(self.family))
        return self

    def __exit__(self, *_: object) -> None:
        wall, own, others = self.at
        self.took = (time.perf_counter() - wall, time.process_time() - own, cpu_seconds(self.family) - others)

    def of(self, ids: Ids) -> Took:
        return Took(*self.took, tokens=sum(map(len, ids)))


def _made_up(load: Load) -> list[Prompt]:
    draw = random.Random(SEED)
    return [
        Prompt(f"p-{index:04d}", (), tuple(draw.randrange(2, VOCAB) for _ in range(load.prompt_tokens)))
        for index in range(load.num_prompts)
    ]


def _prompts(store: Store, load: Load) -> Artifact:
    def write(workspace: Any) -> dict[str, Any]:
        workspace.write("train", _made_up(load), Prompt)
        return {}

    return store.build(Recipe("prompts", 1, {}, {}), write)


def _moved(model: Path, folder: Path) -> Path:
    """The same policy with other weights."""
    moved = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in moved.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return _saved(moved, model, folder)


def _adapter(model: Path, folder: Path, rank: int, seed: int) -> Path:
    """A random adapter on it."""
    config = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    draw = torch.Generator().manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05, generator=draw)
    return _saved(adapted, model, folder)


def _saved(changed: Any, model: Path, folder: Path) -> Path:
    changed.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder
