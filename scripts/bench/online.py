"""Whole online-DPO rounds, generation, labels, update: sail's loop and TRL's OnlineDPOTrainer on the same work.

The same random Llama, prompts of one length, new tokens, temperature, reward, batch, optimizer steps and freshness:
each step trains on samples of the policy before it.
"""

import contextlib
import io
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from loops.config import resolve
from loops.context import Context
from loops.iterate import run_phases
from sail.core.records import Example
from sail.core.store import StageEvent, Store
from sail.serving.processes import descendants
from scripts.bench.floors import matmul_seconds
from scripts.bench.timing import cpu_seconds
from scripts.bench.trl_variants import word_tokenizer

VOCAB, BETA, LEARNING_RATE = 4096, 0.1, 5e-7
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # a prompt is its words, nothing more


@dataclass(frozen=True)
class Work:
    """num_prompts prompts, two samples each; one optimizer step a batch."""

    num_prompts: int = 128
    prompt_tokens: int = 30
    new_tokens: int = 64
    batch_size: int = 32

    @property
    def num_steps(self) -> int:
        return self.num_prompts // self.batch_size


@dataclass
class Spent:
    """Seconds by stage: CPU time of this process and a server's, and wall time."""

    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def on(self, stage: str) -> Iterator[None]:
        start = _now()
        yield
        self.add(stage, start)

    def add(self, stage: str, start: tuple[float, float]) -> None:
        cpu, wall = _now()
        self.cpu[stage] = self.cpu.get(stage, 0.0) + cpu - start[0]
        self.wall[stage] = self.wall.get(stage, 0.0) + wall - start[1]

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.on(stage):
                return function(*args, **kwargs)

        return timed


def _now() -> tuple[float, float]:
    """CPU seconds of this process and those it started, wall clock."""
    started = cpu_seconds(descendants(os.getpid()))
    return time.process_time() + started, time.perf_counter()


def write_model(folder: Path) -> Path:
    """2.9M parameters, heads of 64, tied; the tokenizer has one word a token."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=192, intermediate_size=640, num_hidden_layers=4, num_attention_heads=3,
        num_key_value_heads=3, max_position_embeddings=512, tie_word_embeddings=True, dtype="float32",
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer = word_tokenizer(VOCAB)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def prompts(work: Work, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(f"t{draw.randrange(2, VOCAB)}" for _ in range(work.prompt_tokens)) for _ in range(work.num_prompts)
    ]


def rewards(examples: Sequence[Example]) -> list[float]:
    """The mean of the words' numbers: cheap, and hardly ever a tie."""
    return [_reward(example.response) for example in examples]


def _reward(response: str) -> float:
    numbers = [int(word[1:]) for word in response.split() if word.startswith("t")]
    return sum(numbers) / max(1, len(numbers))


# ---- ours ------------------------------------------------------------------------------------------------------------

STAGES = {"samples": "generation", "scores": "labels", "pairs": "labels", "logps": "reference", "checkpoint": "update"}


def ours(model: Path, work: Work, folder: Path, engine: str, *, fresh: bool = True) -> Spent:
    """The product's loop; fresh: a round a step, as TRL samples; otherwise one round that samples everything first."""
    data = folder / "prompts.jsonl"
    folder.mkdir(parents=True)
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts(work)))
    settings = resolve(_settings(model, data, work, engine, fresh))
    spent, stage_starts = Spent(), {}

    def on_event(event: StageEvent) -> None:
        if event.kind == "started":
            stage_starts[event.artifact.key] = _now()
        elif event.kind == "built":
            spent.add(STAGES.get(event.artifact.stage, "data"), stage_starts[event.artifact.key])

    context = Context(settings, Store(folder / ".store", on_event), folder / "logs")
    (folder / "logs").mkdir()
    try:
        with spent.on("engine start"):
            context.engine(engine).use(context.model)
        with spent.on("whole"):
            for _ in run_phases(context):
                pass
    finally:
        context.close()
    return spent


def _settings(model: Path, data: Path, work: Work, engine: str, fresh: bool) -> Mapping[str, Any]:
    rounds = work.num_steps if fresh else 1
    samples = 2 * work.num_prompts // rounds  # a round's, all at once
    return {
        "model_name_or_path": str(model),
        "data": {"prompts": {"path": str(data)}},
        "labelers": {"rm": {"kind": "callable", "path": f"{__name__}:rewards"}},
        "prompts": {"from": "prompts", "per_round": work.num_prompts // rounds},
        "num_rounds": rounds,
        "routes": {"online": {"responses": "policy", "num_generations": 2, "labels": "rm"}},
        "loss": {"type": "dpo", "beta": BETA},
        "round": {"optimizer": "carry"},
        "update": {
            "steps": work.num_steps // rounds, "train_batch_size": work.batch_size, "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "entropy_every": 0,
        },
        "generation": {"engine": engine, "max_completion_length": work.new_tokens, "batch_size": samples},
        "hygiene": {"truncated": "keep"},
        "evaluation": {"num_prompts": 0},
    }  # fmt: skip


# ---- TRL -------------------------------------------------------------------------------------------------------------


def trl(model: Path, work: Work, folder: Path, *, checkpointing: bool = False) -> Spent:
    """OnlineDPOTrainer.train(), generation by transformers, nothing logged or saved; its default is checkpointing."""
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    config = OnlineDPOConfig(
        output_dir=str(folder), per_device_train_batch_size=work.batch_size, max_steps=work.num_steps, beta=BETA,
        max_new_tokens=work.new_tokens, temperature=1.0, top_k=0, learning_rate=LEARNING_RATE, report_to="none",
        lr_scheduler_type="constant", gradient_checkpointing=checkpointing, use_cpu=True, bf16=False,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, optim="adamw_torch_fused",
    )  # fmt: skip
    policy = LlamaForCausalLM.from_pretrained(model)
    with contextlib.redirect_stderr(io.StringIO()):
        trainer = OnlineDPOTrainer(
            policy, reward_funcs=lambda completions, **_: [_reward(text) for text in completions], args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts(work)}), processing_class=word_tokenizer(VOCAB),
        )  # fmt: skip
        spent = Spent()
        trainer._generate = spent.wrap("generation", trainer._generate)
        trainer._calculate_rewards_from_functions = spent.wrap("labels", trainer._calculate_rewards_from_functions)
        forward = trainer._forward
        trainer._forward = lambda model, *rest: (
            spent.wrap("reference", forward) if model is trainer.ref_model else forward
        )(model, *rest)
        with spent.on("whole"):
            trainer.train()
    for seconds in (spent.cpu, spent.wall):
        seconds["update"] = seconds["whole"] - sum(value for name, value in seconds.items() if name != "whole")
    return spent


# ---- the floor -------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Tokens of one forward pass: through the layers, through what of the last layer only a prediction needs (all but
    its keys and values), and through the head."""

    run: int
    predicting: int
    scored: int


def _passes(num_prompts: int, work: Work) -> tuple[Rows, Rows, Rows]:
    """Prompts before sampling, a token of every sample, and rows that are scored: prompts once, no last token."""
    samples, prompt = 2 * num_prompts, num_prompts * work.prompt_tokens
    branches = samples * (work.new_tokens - 1)
    return (
        Rows(prompt, num_prompts, num_prompts),
        Rows(samples, samples, samples),
        Rows(prompt + branches, num_prompts + branches, samples * work.new_tokens),
    )


_KEYS = ((192, 192),) * 2  # inner, columns: k v
_REST = ((192, 192),) * 2 + ((192, 640),) * 2 + ((640, 192),)  # q o, gate up, down
_LAYERS = 4


def floor_flops(work: Work) -> dict[str, float]:
    """The fewest FLOPs of each stage: 2 per weight and token that needs it, embedding aside, attention left out."""
    prompts, step, scored = (_flops(rows) for rows in _passes(work.num_prompts, work))
    return {"generation": prompts + (work.new_tokens - 1) * step, "reference": scored, "update": 3 * scored}


def _flops(rows: Rows) -> float:
    keys, rest = (sum(inner * columns for inner, columns in shapes) for shapes in (_KEYS, _REST))
    layers = ((_LAYERS - 1) * rows.run + rows.predicting) * rest + _LAYERS * rows.run * keys
    return 2.0 * (layers + rows.scored * 192 * VOCAB)


def floor_seconds(work: Work) -> dict[str, float]:
    """CPU s of the same products at the shapes they come in: all samples at once while sampling, then by batches."""
    prompts, step, _ = _passes(work.num_prompts, work)
    _, _, scored = _passes(work.batch_size, work)
    generation = _forward_seconds(prompts) + (work.new_tokens - 1) * _forward_seconds(step)
    forward, backward = (work.num_steps * seconds(scored) for seconds in (_forward_seconds, _backward_seconds))
    return {"generation": generation, "reference": forward, "update": forward + backward}


def _forward_seconds(rows: Rows) -> float:
    layers = sum(_seconds(count, *shape) for count, shape in _products(rows))
    return layers + _seconds(rows.scored, 192, VOCAB)


def _backward_seconds(rows: Rows) -> float:
    """Gradients of inputs and of weights."""
    layers = sum(
        _seconds(count, columns, inner) + _seconds(inner, count, columns) for count, (inner, columns) in _products(rows)
    )
    return layers + _seconds(rows.scored, VOCAB, 192) + _seconds(192, rows.scored, VOCAB)


def _products(rows: Rows) -> list[tuple[int, tuple[int, int]]]:
    whole = [(rows.run, shape) for shape in (_KEYS + _REST) * (_LAYERS - 1) + _KEYS]
    return whole + [(rows.predicting, shape) for shape in _REST]


@cache
def _seconds(rows: int, inner: int, columns: int) -> float:
    return matmul_seconds(rows, inner, columns, repeats=max(1, 20_000 // (rows + inner)))
