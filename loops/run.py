"""Running a config: plan it, say what is reused, turn the loop, and leave a table and a report."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from loops.checks import check_run, engine_of
from loops.config import Config
from loops.context import Context, Engines
from loops.diary import Diary
from loops.iterate import RoundRecord, run_phases
from loops.model_checks import check_model
from loops.plan import PlanBuilder
from loops.run_folder import (
    RECORD,
    STAGES,
    RunFolder,
    label_counts,
    settings_yaml,
    step_means,
    step_metrics,
    swept_targets,
)
from sail.core.errors import UserError
from sail.core.run_settings import RewardModelLabeler, RunSettings
from sail.core.store import StageEvent, Store
from sail.evaluation.alarms import over_optimisation
from sail.evaluation.report import ReportData, RoundRow, write_report
from sail.evaluation.table import tables
from sail.generation import ENGINES
from sail.labeling.audit import AUDIT_FILE
from sail.serving.reward_server import check_can_serve


def make_plan(settings: RunSettings, folder: RunFolder, *, download: bool = True) -> PlanBuilder:
    """Every stage of the run with its key, and whether it is there already. Nothing is computed or written.

    download: Hub models too, as a run needs them; else their configs alone.
    """
    builder = PlanBuilder(Store(folder.store_root))
    context = Context(settings, builder, folder.path / "logs", download=download)
    check_model(settings, context.model)
    for _ in run_phases(context):
        pass
    return builder


def run(config: Config, settings: RunSettings, folder: RunFolder, console: Console) -> bool:
    """Run or resume; False where an alarm ended it. Raises UserError before anything is computed where it can."""
    one_process("sail run")
    for warning in check_run(settings, ENGINES):
        console.print(f"[yellow]warning[/] {escape(warning)}", highlight=False)
    plan = make_plan(settings, folder)
    check_engines(plan, settings)
    with folder.locked():
        complete = is_complete(plan, folder)
        records, report = carry_out(config, settings, folder, plan, console)
    console.print(tables(rows(records)))
    stopped = alarmed(records, settings)
    if not stopped:
        console.print("nothing to do, the run is complete" if complete else "done")
    console.print(f"report: {report}", soft_wrap=True)
    return not stopped


def carry_out(
    config: Config, settings: RunSettings, folder: RunFolder, plan: PlanBuilder, console: Console,
    engines: Engines | None = None,
) -> tuple[list[RoundRecord], Path]:  # fmt: skip
    """Make what the plan lacks; the rounds and the path of the report. engines: those of an ablation's runs."""
    _say_plan(plan, console)
    log_folder = folder.path / "logs" if is_complete(plan, folder) else folder.new_attempt()
    folder.write_settings(config, settings, plan.stages)
    if settings.cpu_threads is not None:
        torch.set_num_threads(settings.cpu_threads)
    diary = Diary(console, settings.log_interval_s, log_folder / STAGES)
    store = Store(folder.store_root)
    context = Context(settings, store, log_folder, engines)

    def watch(event: StageEvent) -> None:
        diary(event)
        if event.kind == "started" and event.artifact.stage == "checkpoint":
            context.rest_engines()

    store.on_event = watch
    records: list[RoundRecord] = []
    try:
        for record in run_phases(context):
            records.append(record)
            diary.round_ended(record.title, _row_metrics(record))
            folder.write_records(records, settings, finished=False)
            if alarmed(records, settings):
                console.print("[yellow]stopped[/] by an alarm (evaluation.stop_on_alarm); the report says which")
                break
    finally:
        context.close()
    folder.write_records(records, settings, finished=True)
    return records, write_report(folder.path, report_data(config.name, settings, records))


def alarmed(records: Sequence[RoundRecord], settings: RunSettings) -> bool:
    """Whether the phase of the last round is to end the run where its proxy parts from what it stands for."""
    last = records[-1].phase
    stops = next(phase.evaluation.stop_on_alarm for phase in settings.phases if phase.name == last)
    return stops and bool(over_optimisation(rows([record for record in records if record.phase == last])))


def one_process(where: str) -> None:
    """Refuse a torchrun: every process would do the whole."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise UserError(
            f"WORLD_SIZE is {processes}: {where} is one process, which starts those of the update", where=where,
            cure="Start it without torchrun and accelerate launch, and set launch",
        )  # fmt: skip


def check_engines(plan: PlanBuilder, settings: RunSettings) -> None:
    """Refuse what could not sample or score, where samples are to be drawn or scored."""
    if any(stage.artifact.stage == "samples" for stage in plan.new):  # gathered ones too: the update draws them
        for phase in settings.phases:
            ENGINES[engine_of(phase)].check(settings.vllm)
    if any(stage.artifact.stage == "scores" for stage in plan.new):
        for name, labeler in settings.labelers.items():
            if isinstance(labeler, RewardModelLabeler) and labeler.vllm is not None:
                check_can_serve(labeler.vllm, f"labelers.{name}.vllm")


def _say_plan(plan: PlanBuilder, console: Console) -> None:
    reused = len(plan.stages) - len(plan.new)
    parts = ", ".join(f"{name} {new}" for name, _, new in plan.counts() if new)
    console.print(f"{reused} artifacts reused, {len(plan.new)} new" + (f" ({parts})" if parts else ""), highlight=False)


def is_complete(plan: PlanBuilder, folder: RunFolder) -> bool:
    """Nothing is left to compute, and the folder shows this very run to its end."""
    record = folder.path / RECORD
    if plan.new or not record.exists() or folder.planned() != list(plan.stages):
        return False
    return bool(json.loads(record.read_text())["finished"])


def rows(records: Sequence[RoundRecord]) -> list[RoundRow]:
    """One row a round for table and report: evaluation, label counts and the last step's metrics."""
    return [_row(record) for record in records]


def _row(record: RoundRecord) -> RoundRow:
    swept, asked = swept_targets(record), record.artifacts.get("evaluation")
    return RoundRow(
        round_index=record.round_index,
        phase=record.phase,
        metrics=_row_metrics(record),
        artifacts={name: artifact.id for name, artifact in record.artifacts.items()},
        targets={target: artifact.result() for target, artifact in swept.items()},
        target=next((target for target, artifact in swept.items() if artifact == asked), ""),
    )


def _row_metrics(record: RoundRecord) -> dict[str, float]:
    evaluation = record.artifacts["evaluation"].result() if "evaluation" in record.artifacts else {}
    return {**label_counts(record), **step_means(record), **evaluation}


def report_data(title: str, settings: RunSettings, records: Sequence[RoundRecord]) -> ReportData:
    """Everything the report shows; it reads no artifact itself."""
    steps = [
        {"round": record.round_index, "phase": record.phase, **step}
        for record in records
        for step in step_metrics(record)
    ]
    return ReportData(
        title=title,
        rounds=rows(records),
        steps=steps,
        settings_yaml=settings_yaml(settings),
        examples=_examples(records),
        audits=_audits(records),
        notes=notes_of(settings),
    )


def _audits(records: Sequence[RoundRecord]) -> dict[str, dict[str, Any]]:
    """The last audit of each route."""
    last = {
        name: artifact for record in records for name, artifact in record.artifacts.items() if artifact.stage == "audit"
    }
    return {name.partition("/")[2]: json.loads((one.path / AUDIT_FILE).read_text()) for name, one in last.items()}


def _examples(records: Sequence[RoundRecord]) -> list[dict[str, Any]]:
    """The same held-out prompts at the start and at the end."""
    evaluated = [record for record in records if "evaluation" in record.artifacts]
    shown = dict.fromkeys([0, len(evaluated) - 1]) if evaluated else {}
    return [
        {**entry, "round": evaluated[index].title}
        for index in shown
        for entry in json.loads((evaluated[index].artifacts["evaluation"].path / "examples.json").read_text())
    ]


def notes_of(settings: RunSettings) -> list[str]:
    """What a reader must know before believing the curves."""
    labellers = {route.labels.by for phase in settings.phases for route in phase.routes.values()}
    headlines = {phase.evaluation.scorers[0] for phase in settings.phases if phase.evaluation.scorers}
    return [
        f"The headline scorer '{name}' also labelled training pairs: its reward says nothing about over-optimisation."
        for name in sorted(headlines & labellers)
    ] + [
        f"{phase.name}: the samples of a round are drawn by the policy of the round before it (round.staleness 1)."
        for phase in settings.phases
        if phase.round.staleness
    ]
