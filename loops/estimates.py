"""The figures of `sail plan`: sizes from the model's files or its config, upper bounds for tokens."""

import json
import shutil
import struct
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loops.context import Context
from loops.label_checks import asked_labelers
from loops.plan import PlanBuilder, lineage
from sail.core.labeler_settings import JudgeLabeler
from sail.core.route_settings import SAMPLED
from sail.core.run_settings import PhaseSettings, RunSettings
from sail.policy.loading import weights_by_config

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
BYTES_PER_WEIGHT = {  # fp32 master, gradient, moments
    "adamw": 16, "adamw_8bit": 10, "paged_adamw_8bit": 10, "rmsprop": 12, "sgd": 8
}  # fmt: skip


def print_plan(plan: PlanBuilder, settings: RunSettings, console: Console) -> None:
    """Lineage, stages (reused and new), then memory, tokens and disk."""
    for sentence in lineage(settings):
        console.print(sentence, highlight=False)
    table = Table("stage", "reused", "new")
    for name, reused, new in plan.counts():
        table.add_row(name, str(reused), str(new))
    console.print(table)
    weights = count_weights(Context(settings, plan, Path("logs"), download=False).model.path)
    update = max(BYTES_PER_WEIGHT[phase.update.optimizer] for phase in settings.phases) * weights
    checkpoints = sum(stage.artifact.stage == "checkpoint" for stage in plan.new)
    free = shutil.disk_usage(existing(plan.store.root)).free
    sampled = sum(map(_sampled_tokens, settings.phases))
    figures = Table("figure", "size", "of what", show_header=False)
    figures.add_row("weights", f"{weights:,}", "of the starting policy")
    figures.add_row("update", size(update), f"plus activations{'; LoRA needs less' if settings.lora else ''}")
    figures.add_row("scoring, sampling", size(4 * weights), "plus activations, or the server's own")
    figures.add_row("sampled tokens", f"{sampled:,}", "at most, where per_round is set")
    questions = sum(judge_questions(phase, settings) for phase in settings.phases)
    if questions:
        figures.add_row("questions to judges", f"{questions:,}", "about samples, at most")
    figures.add_row("disk", size(4 * weights * checkpoints), f"for {checkpoints} new checkpoints; {size(free)} free")
    figures.add_row("scratch", size(update), "step checkpoints while a round trains")
    console.print(figures)


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


def _sampled_tokens(phase: PhaseSettings) -> int:
    """Upper bound of tokens drawn; rounds over all prompts are counted once per held-out set only."""
    length = phase.generation.max_completion_length
    per_round = phase.prompts.per_round if phase.prompts and phase.prompts.per_round else 0
    routes = phase.routes.values()
    drawn = per_round * sum(r.generations(source) for r in routes for source in r.sources if source in SAMPLED)
    held_out = phase.evaluation.num_prompts * phase.evaluation.num_generations
    return length * (phase.num_rounds * drawn + (max(1, phase.num_rounds) + 1) * held_out)


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
