"""Small real things the evaluation tests run on: two-layer Llamas, sample groups, scores, rows of a report."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sail.core.artifacts import Artifact, leaf
from sail.core.records import DatasetVerdict, Message, Prompt, Sample, SampleGroup, ScoredGroup, StopKind
from sail.core.store import Recipe, Store, Workspace
from sail.evaluation.rounds import RoundRow
from sail.policy.loading import Checkpoint

VOCABULARY = 7
EOS = 2


def tiny_llama(seed: int, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    """Random and far from uniform: initial weights of size .3."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.3,
        bos_token_id=1, eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def model_leaf(folder: Path, seed: int) -> Checkpoint:
    """A user's model folder."""
    tiny_llama(seed).save_pretrained(folder)
    return leaf(folder)


def group(
    name: str, responses: Sequence[tuple[int, ...]], stops: Sequence[StopKind] = (), text: str | None = None
) -> SampleGroup:
    """Prompt p-<name> with responses p-<name>-0, p-<name>-1, ..."""
    kinds: Sequence[StopKind] = stops or ["eos"] * len(responses)
    samples = tuple(
        Sample(f"p-{name}-{index}", "policy", text or f"words {ids}", ids, (), kind, "v", 0)
        for index, (ids, kind) in enumerate(zip(responses, kinds, strict=True))
    )
    message = Message(role="user", content=f"say {name}")
    return SampleGroup(Prompt(f"p-{name}", (message,), (1, 3)), samples)


def scores(name: str, *values: float) -> ScoredGroup:
    """Scores of group(name, ...)."""
    return ScoredGroup(f"p-{name}", tuple(f"p-{name}-{index}" for index in range(len(values))), values)


def random_groups(num_prompts: int, num_samples: int, seed: int) -> list[SampleGroup]:
    draw = random.Random(seed)
    return [
        group(str(index), [
            (*(draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 4))), EOS) for _ in range(num_samples)
        ])
        for index in range(num_prompts)
    ]  # fmt: skip


def stored(store: Store, stage: str, name: str, tables: Mapping[str, tuple[Sequence[Any], type]]) -> Artifact:
    """An artifact with these tables, built as every stage builds."""

    def run(workspace: Workspace) -> dict[str, Any]:
        for table, (records, kind) in tables.items():
            workspace.write(table, records, kind)
        return {}

    return store.build(Recipe(stage, 1, {"name": name}, {}), run)


def stored_groups(store: Store, name: str, groups: Sequence[SampleGroup]) -> Artifact:
    return stored(store, "samples", name, {"groups": (groups, SampleGroup)})


def stored_scores(store: Store, name: str, scored: Sequence[ScoredGroup]) -> Artifact:
    return stored(store, "scores", name, {"scores": (scored, ScoredGroup)})


def stored_pairs(
    store: Store, name: str, groups: Sequence[SampleGroup], verdicts: Sequence[DatasetVerdict]
) -> Artifact:
    tables = {"groups": (groups, SampleGroup), "verdicts": (verdicts, DatasetVerdict)}
    return stored(store, "data", name, tables)


def full_row(round_index: int, phase: str = "main", **changes: float) -> RoundRow:
    """A round with every number of the table."""
    metrics = {
        "eval/reward": 0.5, "eval/reward_se": 0.03, "eval/win_rate": 0.78, "eval/win_rate_low": 0.7,
        "eval/win_rate_high": 0.85, "objective/kl": 12.34, "rewards/accuracies_offline": 0.61,
        "rewards/accuracies_online": 0.66, "completions/mean_length": 103.25, "completions/eos_rate": 0.98,
        "completions/distinct_share": 0.9, "labels/pairs": 20000.0, "labels/dropped_ties": 3.0,
        "sail/score_to_plain_ratio": 0.0123,
    }  # fmt: skip
    named = {name.replace("__", "/"): value for name, value in changes.items()}
    return RoundRow(round_index, phase, metrics | named, {"checkpoint": f"update-{round_index}"})
