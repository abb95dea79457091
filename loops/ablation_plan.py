"""`sail plan` of an ablation: what its runs share, what each adds, and what the whole costs."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loops.ablate import make_plans, sharing, warnings
from loops.ablation import Ablation
from loops.ablation_folder import AblationFolder
from loops.context import Context
from loops.estimates import checkpoint_bytes, count_weights, existing, size
from loops.memory_plan import shape_of, stages
from loops.plan import PlanBuilder, PlannedStage
from sail.core.run_settings import PhaseSettings
from sail.policy.loading import model_config


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
    model = Context(ablation.runs[0].settings, first, Path("logs"), download=False).model
    shape, settings = shape_of(model_config(model)), [run.settings for run in ablation.runs]
    checkpoints = sum(stage.artifact.stage == "checkpoint" for stage in new)
    phases = [phase for each in settings for phase in each.phases]
    sampled = sum(_sampled_tokens(stage, phases) for stage in new)
    updates = [stage.total for each in settings for stage in stages(each, shape) if stage.stage == "update"]
    checkpoint = max(checkpoint_bytes(each, shape) for each in settings)
    free = shutil.disk_usage(existing(first.store.root)).free
    table = Table("figure", "size", "of what", show_header=False)
    table.add_row("weights", f"{count_weights(model.path):,}", "of the first run's starting policy")
    if updates:
        table.add_row("update", size(max(updates)), "of memory at most, one run at a time")
    table.add_row("sampled tokens", f"{sampled:,}", "at most, where per_round is set")
    table.add_row("disk", size(checkpoint * checkpoints), f"for {checkpoints} new checkpoints; {size(free)} free")
    return table


def _different(plans: Mapping[str, PlanBuilder]) -> dict[str, PlannedStage]:
    return {id: stage for plan in plans.values() for id, stage in plan.stages.items()}


def _sampled_tokens(stage: PlannedStage, phases: Sequence[PhaseSettings]) -> int:
    """Upper bound; of a round that refreshes its sampler (loops/gathering.py) the largest of any run."""
    if stage.artifact.stage != "samples":
        return 0
    recipe = stage.settings
    if "gathered" in recipe:
        return max(_of_a_round(phase, recipe["gathered"].partition("/")[2]) for phase in phases)
    held_out = recipe["table"] == "held_out"
    prompts = max(phase.evaluation.num_prompts for phase in phases) if held_out else recipe["per_round"] or 0
    return int(prompts * recipe["num_samples"] * recipe["max_completion_length"])


def _of_a_round(phase: PhaseSettings, route: str) -> int:
    per_round = phase.prompts.per_round if phase.prompts and phase.prompts.per_round else 0
    num_samples = phase.routes[route].num_generations if route in phase.routes else 0
    return per_round * num_samples * phase.generation.max_completion_length
