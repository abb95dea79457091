"""`sail plan` of an ablation: what its runs share, what each adds, and what the whole costs."""

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loops.ablate import make_plans, sharing, warnings
from loops.ablation import Ablation
from loops.ablation_folder import AblationFolder
from loops.context import Context
from loops.estimates import BYTES_PER_WEIGHT, count_weights, existing, size
from loops.plan import PlanBuilder, PlannedStage


def print_ablation_plan(ablation: Ablation, folder: AblationFolder, console: Console) -> None:
    """Sharing in one sentence, stages, runs, then tokens and disk."""
    for warning in warnings(ablation):
        console.print(f"[yellow]warning[/] {escape(warning)}", highlight=False)
    plans = make_plans(ablation, folder, download=False)
    console.print(sharing(list(plans.values())), highlight=False)
    console.print(f"equal over seeds: {', '.join(ablation.settings.share) or 'nothing'}", highlight=False)
    console.print(_stages(plans))
    console.print(_runs(ablation, plans))
    console.print(_figures(ablation, plans))


def _stages(plans: Mapping[str, PlanBuilder]) -> Table:
    """Per stage: asked for by all runs, different ones among them, to be made."""
    asked = Counter(stage.artifact.stage for plan in plans.values() for stage in plan.stages.values())
    different = _different(plans)
    table = Table("stage", "asked for", "different", "new")
    for name in asked:
        own = [stage for stage in different.values() if stage.artifact.stage == name]
        table.add_row(name, f"{asked[name]:,}", f"{len(own):,}", f"{sum(not stage.reused for stage in own):,}")
    return table


def _runs(ablation: Ablation, plans: Mapping[str, PlanBuilder]) -> Table:
    """Per run, in their order: reused, shared with a run before it, of its own."""
    table = Table("run", "reused", "shared", "own")
    before: set[str] = set()
    for run in ablation.runs:
        new = [stage.artifact.id for stage in plans[run.name].new]
        shared = sum(id in before for id in new)
        reused = len(plans[run.name].stages) - len(new)
        table.add_row(run.name, str(reused), str(shared), str(len(new) - shared))
        before |= set(new)
    return table


def _figures(ablation: Ablation, plans: Mapping[str, PlanBuilder]) -> Table:
    new = [stage for stage in _different(plans).values() if not stage.reused]
    first = plans[ablation.runs[0].name]
    weights = count_weights(Context(ablation.runs[0].settings, first, Path("logs"), download=False).model.path)
    checkpoints = sum(stage.artifact.stage == "checkpoint" for stage in new)
    phases = [phase for run in ablation.runs for phase in run.settings.phases]
    held_out = max(phase.evaluation.num_prompts for phase in phases)
    sampled = sum(_sampled_tokens(stage, held_out) for stage in new)
    optimizer = max(BYTES_PER_WEIGHT[phase.update.optimizer] for phase in phases)
    free = shutil.disk_usage(existing(first.store.root)).free
    table = Table("figure", "size", "of what", show_header=False)
    table.add_row("weights", f"{weights:,}", "of the first run's starting policy")
    table.add_row("update", size(optimizer * weights), "plus activations, one run at a time")
    table.add_row("sampled tokens", f"{sampled:,}", "at most, where per_round is set")
    table.add_row("disk", size(4 * weights * checkpoints), f"for {checkpoints} new checkpoints; {size(free)} free")
    return table


def _different(plans: Mapping[str, PlanBuilder]) -> dict[str, PlannedStage]:
    return {id: stage for plan in plans.values() for id, stage in plan.stages.items()}


def _sampled_tokens(stage: PlannedStage, num_held_out: int) -> int:
    if stage.artifact.stage != "samples":
        return 0
    recipe = stage.settings
    prompts = num_held_out if recipe["table"] == "held_out" else recipe["per_round"] or 0
    return int(prompts * recipe["num_samples"] * recipe["max_completion_length"])
