"""`sail ablate`: every arm under every seed, one after another, each an ordinary run that resumes by itself.

All runs share one store, so equal recipes are computed once, and one set of engines, so one server serves all. What is
done is skipped; an arm that fails is told of, and the others go on.
"""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loops.ablation import Ablation, ArmRun
from loops.ablation_folder import AblationFolder, Listed
from loops.checks import check_run
from loops.context import Engines
from loops.plan import PlanBuilder
from loops.run import alarmed, carry_out, check_engines, is_complete, make_plan, one_process
from loops.run_folder import RunFolder
from sail.core.errors import UserError
from sail.evaluation.comparison_page import ComparisonPage, write_comparison
from sail.evaluation.comparison_table import terminal_tables
from sail.generation import ENGINES
from sail.serving.errors import ServerError

_NOTES = (
    "Differences are paired by seed; intervals are Student's t over seeds, not corrected for many comparisons.",
    "What seeds share does not vary between them, so no interval covers it.",
)
_FAILURES = (UserError, RuntimeError)  # RuntimeError: a server that failed, out of memory, what else torch stops at


def ablate(ablation: Ablation, folder: AblationFolder, console: Console) -> bool:
    """Run or resume all runs, then compare them; False where one failed. UserError before anything is computed."""
    one_process("sail ablate")
    for warning in warnings(ablation):
        console.print(f"[yellow]warning[/] {escape(warning)}", highlight=False)
    plans = make_plans(ablation, folder)
    for run in ablation.runs:
        check_engines(plans[run.name], run.settings)
    console.print(sharing(list(plans.values())), highlight=False)
    with RunFolder(folder.path).locked():
        return _carry_out(ablation, folder, plans, console)


def _carry_out(ablation: Ablation, folder: AblationFolder, plans: Mapping[str, PlanBuilder], console: Console) -> bool:
    runs = [Listed(run.name, run.arm, run.seed, list(plans[run.name].stages)[-1]) for run in ablation.runs]
    folder.write(ablation, runs)
    to_do = any(plan.new for plan in plans.values())
    engines = Engines(RunFolder(folder.path).new_attempt() if to_do else folder.path / "logs")
    try:
        runs = _run_all(ablation, folder, runs, engines, console)
    finally:
        engines.close()
    compare(folder, console)
    return all(run.failure is None for run in runs)


def _run_all(
    ablation: Ablation, folder: AblationFolder, runs: Sequence[Listed], engines: Engines, console: Console
) -> list[Listed]:
    """The runs again, with what failed of them."""
    told = list(runs)
    for index, run in enumerate(ablation.runs):
        console.print(f"[bold]{run.arm}[/], seed {run.seed} ({index + 1} of {len(told)})", highlight=False)
        told[index] = replace(told[index], failure=_run_one(run, folder.run(run.name), engines, console))
        folder.write(ablation, told)
    return told


def _run_one(run: ArmRun, folder: RunFolder, engines: Engines, console: Console) -> str | None:
    """Why it failed, or None."""
    try:
        plan = make_plan(run.settings, folder)
        with folder.locked():
            if is_complete(plan, folder):
                console.print("done already")
                return None
            records, _ = carry_out(run.config, run.settings, folder, plan, console, engines)
        if alarmed(records, run.settings):
            return "stopped by an alarm (evaluation.stop_on_alarm); its report says which"
    except _FAILURES as error:
        engines.close()  # whatever state they are in, the next run gets fresh ones
        reason = f"{type(error).__name__}: {error}".removeprefix("UserError: ")
        if not isinstance(error, (UserError, ServerError)):
            traceback.print_exc()
        console.print(f"[red]failed[/] {escape(reason)}", soft_wrap=True, highlight=False)
        return reason
    return None


def make_plans(ablation: Ablation, folder: AblationFolder, *, download: bool = True) -> dict[str, PlanBuilder]:
    """The plan of every run, by its name."""
    return {run.name: make_plan(run.settings, folder.run(run.name), download=download) for run in ablation.runs}


def warnings(ablation: Ablation) -> list[str]:
    """What check_run has to say of the arms, each sentence once. Raises its UserError with the arm's name."""
    said: dict[str, None] = {}
    for run in ablation.runs:
        try:
            said |= dict.fromkeys(f"{run.arm}: {warning}" for warning in check_run(run.settings, ENGINES))
        except UserError as error:
            where = f"arm {run.arm}: {error.where}".removesuffix(": ")
            raise UserError(error.problem, where=where, cure=error.cure) from None
    return list(said)


def sharing(plans: Sequence[PlanBuilder]) -> str:
    """How many artifacts the runs ask for, and how many of them there will be."""
    stages = {id: stage for plan in plans for id, stage in plan.stages.items()}
    new = sum(not stage.reused for stage in stages.values())
    asked = sum(len(plan.stages) for plan in plans)
    return (
        f"{len(plans)} runs ask for {asked:,} artifacts, {len(stages):,} of them different: "
        f"{len(stages) - new:,} reused, {new:,} new"
    )


def compare(folder: AblationFolder, console: Console) -> None:
    """Print and write the comparison of what is done."""
    told, comparison, saved = folder.read(), folder.comparison(), folder.savings()
    failures = [f"{run.name}: {run.failure}" for run in folder.listed() if run.failure is not None]
    missing = [run.name for run in folder.listed() if run.failure is None and not folder.is_done(run)]
    alarms = [f"Failed and left out: {failure}" for failure in failures]
    alarms += [f"Not done yet, left out: {', '.join(missing)}"] if missing else []
    page = ComparisonPage(
        comparison,
        runs=[run.name for run in folder.listed() if folder.is_done(run)],
        asked=yaml.safe_dump(told["asked"], sort_keys=False),
        alarms=alarms,
        notes=[*folder.notes(), *_NOTES, saved.sentence() + "."],
    )
    for table in terminal_tables(comparison):
        console.print(table)
        console.print()
    console.print(saved.sentence(), highlight=False)
    for sentence in alarms:
        console.print(f"[red]{escape(sentence)}[/]", soft_wrap=True, highlight=False)
    console.print(f"report: {write_comparison(folder.path, page)}", soft_wrap=True, highlight=False)


def print_ablation_status(folder: AblationFolder, console: Console) -> None:
    """Arms down, seeds across: how far every run is."""
    told, runs = folder.read(), folder.listed()
    table = Table("arm", *[f"seed {seed}" for seed in told["seeds"]])
    for arm in told["arms"]:
        table.add_row(arm, *[folder.state(run) for run in runs if run.arm == arm])
    console.print(table)
    for run in runs:
        if run.failure is not None:
            console.print(f"{run.name}: {escape(run.failure)}", soft_wrap=True, highlight=False)
    complete = bool(runs) and all(folder.is_done(run) for run in runs)
    console.print("complete" if complete else "not complete: the same `sail ablate` goes on")
