"""The figures of `sail plan`: sizes from the model's files or its config, upper bounds for tokens."""

import json
import shutil
import struct
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loops.budgets import sampled_per_prompt
from loops.context import Context
from loops.label_checks import asked_labelers
from loops.memory_plan import OPTIMIZER_BYTES, Shape, shape_of, stages, trained_weights
from loops.plan import PlanBuilder, lineage
from sail.core.labeler_settings import JudgeLabeler
from sail.core.run_settings import PhaseSettings, RunSettings
from sail.policy.loading import model_config, weights_by_config

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_WEIGHT = 4  # bytes: checkpoints are float32


def print_plan(plan: PlanBuilder, settings: RunSettings, console: Console) -> None:
    """Lineage, stages (reused and new), then memory, tokens and disk."""
    for sentence in lineage(settings):
        console.print(sentence, highlight=False)
    table = Table("stage", "reused", "new")
    for name, reused, new in plan.counts():
        table.add_row(name, str(reused), str(new))
    console.print(table)
    model = Context(settings, plan, Path("logs"), download=False).model
    shape = shape_of(model_config(model))
    console.print(memory_table(settings, shape))
    checkpoints = sum(stage.artifact.stage == "checkpoint" for stage in plan.new)
    free = shutil.disk_usage(existing(plan.store.root)).free
    sampled = sum(map(sampled_tokens, settings.phases))
    figures = Table("figure", "size", "of what", show_header=False)
    figures.add_row("weights", f"{count_weights(model.path):,}", "of the starting policy")
    figures.add_row("sampled tokens", f"{sampled:,}", "at most, where per_round is set")
    questions = sum(judge_questions(phase, settings) for phase in settings.phases)
    if questions:
        figures.add_row("questions to judges", f"{questions:,}", "about samples, at most")
    disk = size(checkpoint_bytes(settings, shape) * checkpoints)
    figures.add_row("disk", disk, f"for {checkpoints} new checkpoints; {size(free)} free")
    figures.add_row(
        "scratch", size(scratch_bytes(settings, shape)), "while a round trains: its last two step checkpoints"
    )
    console.print(figures)


def memory_table(settings: RunSettings, shape: Shape) -> Table:
    """What one process of each stage holds at its peak (loops/memory_plan.py)."""
    table = Table("memory", "weights", "grads", "optim.", "activ.", "cache", "at most")
    for stage in stages(settings, shape):
        parts = (stage.weights, stage.gradients, stage.optimizer, stage.activations, stage.cache, stage.total)
        name = f"{stage.stage}: {stage.note}" if stage.note else stage.stage
        table.add_row(name, *(size(part) if part else "" for part in parts))
    return table


def size(count: float) -> str:
    """Bytes in the unit that fits: 494000 is '482.4 KiB'."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.1f} {_UNITS[unit]}"


def count_weights(folder: Path) -> int:
    """Weights of a model folder, from the headers of its safetensors files, or by its config where there are none."""
    return sum(_file_weights(path) for path in folder.glob("*.safetensors")) or weights_by_config(folder)


def _file_weights(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            size = 1
            for extent in entry["shape"]:
                size *= extent
            total += size
    return total


def checkpoint_bytes(settings: RunSettings, shape: Shape) -> int:
    """The largest checkpoint of a round: what is trained, and the optimizer's state where the next round carries it."""
    return max(_networks(phase, settings, shape, phase.round.optimizer == "carry") for phase in settings.phases)


def scratch_bytes(settings: RunSettings, shape: Shape) -> int:
    """Of a round that trains: a step checkpoint is whole before the one before it is removed."""
    return 2 * max(_networks(phase, settings, shape, True) for phase in settings.phases)


def _networks(phase: PhaseSettings, settings: RunSettings, shape: Shape, with_optimizer: bool) -> int:
    """Bytes of the policy's trained weights and those of a value network."""
    policy = trained_weights(settings, shape) * (_WEIGHT + with_optimizer * OPTIMIZER_BYTES[phase.update.optimizer])
    value = 0 if phase.components.value is None else shape.weights
    return policy + value * (_WEIGHT + with_optimizer * OPTIMIZER_BYTES["adamw"])


def sampled_tokens(phase: PhaseSettings) -> int:
    """Upper bound of tokens drawn; without per_round those of the held-out prompts alone."""
    per_round = phase.prompts.per_round if phase.prompts and phase.prompts.per_round else 0
    drawn = phase.num_rounds * per_round * sampled_per_prompt(phase)
    held_out = phase.evaluation.num_prompts * phase.evaluation.num_generations
    return phase.generation.max_completion_length * (drawn + (max(1, phase.num_rounds) + 1) * held_out)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return path if path.exists() else existing(path.parent)


def judge_questions(phase: PhaseSettings, settings: RunSettings) -> int:
    """Upper bound of what judges are asked about samples, where per_round is set; retries left out."""
    prompts = phase.num_rounds * ((phase.prompts and phase.prompts.per_round) or 0)
    asked = 0
    for route in phase.routes.values():
        n = route.num_generations
        pairs = 1 if route.keep == "random" else n * (n - 1) // 2
        for name in asked_labelers(route, settings) if route.samples and route.share != 0 else []:
            judge = settings.labelers[name]
            if isinstance(judge, JudgeLabeler):
                each = n if judge.question == "rubric" else pairs * (2 if judge.both_orders else 1)
                asked += prompts * each * judge.num_answers
    return asked
