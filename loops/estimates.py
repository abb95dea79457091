"""The figures of `sail plan`: sizes from the model's files, upper bounds for tokens."""

import json
import shutil
import struct
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loops.context import Context
from loops.plan import PlanBuilder, lineage
from sail.core.run_settings import PhaseSettings, RunSettings

_GIB = 1 << 30
_BYTES_PER_WEIGHT = {"adamw": 16, "rmsprop": 12, "sgd": 8}  # fp32 master, gradient, moments


def print_plan(plan: PlanBuilder, settings: RunSettings, console: Console) -> None:
    """Lineage, stages (reused and new), then memory, tokens and disk."""
    for sentence in lineage(settings):
        console.print(sentence, highlight=False)
    table = Table("stage", "reused", "new")
    for name, reused, new in plan.counts():
        table.add_row(name, str(reused), str(new))
    console.print(table)
    weights = count_weights(Context(settings, plan, Path("logs")).model.path)
    update = max(_BYTES_PER_WEIGHT[phase.update.optimizer] for phase in settings.phases) * weights
    checkpoints = sum(stage.artifact.stage == "checkpoint" for stage in plan.new)
    free = shutil.disk_usage(_existing(plan.store.root)).free
    console.print(
        f"weights {weights:,}; update memory about {update / _GIB:.2f} GiB plus activations"
        f"{' (LoRA: less)' if settings.lora else ''}; "
        f"log-prob and sampling memory about {4 * weights / _GIB:.2f} GiB plus activations",
        highlight=False,
    )
    console.print(
        f"at most {sum(map(_sampled_tokens, settings.phases)):,} tokens sampled; "
        f"disk about {checkpoints * 4 * weights / _GIB:.2f} GiB for {checkpoints} new checkpoints "
        f"(step checkpoints: {update / _GIB:.2f} GiB while a round trains), {free / _GIB:.0f} GiB free",
        highlight=False,
    )


def count_weights(folder: Path) -> int:
    """Weights of a model folder, from the headers of its safetensors files."""
    return sum(_file_weights(path) for path in folder.glob("*.safetensors"))


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


def _sampled_tokens(phase: PhaseSettings) -> int:
    """Upper bound of tokens drawn; rounds over all prompts are counted once per held-out set only."""
    length = phase.generation.max_completion_length
    per_round = phase.prompts.per_round if phase.prompts and phase.prompts.per_round else 0
    drawn = sum(route.num_generations * per_round for route in phase.routes.values() if route.responses == "policy")
    held_out = phase.evaluation.num_prompts * phase.evaluation.num_generations
    return length * (phase.num_rounds * drawn + (max(1, phase.num_rounds) + 1) * held_out)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
