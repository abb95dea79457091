"""The update stage: rows of all routes and a starting checkpoint in, the next checkpoint out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from sail.core.artifacts import Artifact, Keyed, Leaf
from sail.core.errors import UserError
from sail.core.run_settings import ImportanceSettings, LoraSettings, UpdateSettings
from sail.core.seeds import derive_seed
from sail.core.store import Builder, Recipe, Workspace
from sail.objectives import find_loss
from sail.objectives.baseline import RunningMean
from sail.policy.compiling import compile_blocks
from sail.policy.devices import free_memory
from sail.policy.loading import Checkpoint, add_adapter, is_adapter, load_policy, load_tokenizer, save_policy
from sail.update.batches import batch_indices, exact_shares, steps_for_epochs
from sail.update.items import Item, RouteInput, load_items
from sail.update.memory import naming_the_levers
from sail.update.objective import RouteObjective
from sail.update.optimizer import learning_rate, make_optimizer, set_learning_rate
from sail.update.step import Batch, row_weights, train_step, updated_baselines
from sail.update.trainer_state import Position, load_last_step, load_optimizer, save_optimizer, save_step

VERSION = 3
_TRAINER = "trainer"


@dataclass(frozen=True)
class UpdateInputs:
    """Everything a round's update is made from."""

    start: Checkpoint
    routes: tuple[RouteInput, ...]
    settings: UpdateSettings
    importance: ImportanceSettings
    seed: int
    round_index: int
    lora: LoraSettings | None = None
    carry_from: Artifact | None = None  # the checkpoint whose optimizer goes on
    keep_optimizer: bool = False  # a later round will carry it
    chat_template: Leaf | None = None


def update(builder: Builder, inputs: UpdateInputs) -> Artifact:
    """Train one round; the artifact holds model/ (from_pretrained), metrics.jsonl and, under carry, trainer/."""

    def run(workspace: Workspace) -> dict[str, Any]:
        items = {route.name: load_items(route) for route in inputs.routes if route.settings.share != 0}
        position = _train(workspace, inputs, items)
        free_memory()
        lines = "".join(json.dumps(metrics) + "\n" for metrics in position.metrics)
        (workspace.path / "metrics.jsonl").write_text(lines)
        last = position.metrics[-1] if position.metrics else {}
        rows = {f"rows/{name}": len(route_items) for name, route_items in items.items()}
        return {"steps": position.step, **rows, **{f"last/{name}": value for name, value in last.items()}}

    return builder.build(_recipe(inputs), run)


def _recipe(inputs: UpdateInputs) -> Recipe:
    sources: dict[str, Keyed] = {"start": inputs.start}
    routes: dict[str, Any] = {}
    for route in inputs.routes:
        routes[route.name] = {
            "settings": route.settings.recipe(), "loss": route.loss.recipe(),
            "temperature": route.sampling_temperature, "sources": len(route.sources),
        }  # fmt: skip
        for index, source in enumerate(route.sources):
            parts = {
                "responses": source.responses, "rows": source.rows, "reference": source.reference_logps,
                "behavior": source.behavior_logps,
            }  # fmt: skip
            sources |= {f"{route.name}/{index}/{part}": art for part, art in parts.items() if art is not None}
    if inputs.carry_from is not None:
        sources["carry_from"] = inputs.carry_from
    if inputs.chat_template is not None:
        sources["chat_template"] = inputs.chat_template
    settings = {
        "update": inputs.settings.recipe(), "importance": inputs.importance.recipe(), "routes": routes,
        "seed": inputs.seed, "round": inputs.round_index, "keep_optimizer": inputs.keep_optimizer,
        "lora": None if inputs.lora is None else inputs.lora.recipe(),
    }  # fmt: skip
    return Recipe("checkpoint", VERSION, settings, sources)


def _train(workspace: Workspace, inputs: UpdateInputs, items: Mapping[str, Sequence[Item]]) -> Position:
    settings, routes = inputs.settings, [route for route in inputs.routes if route.name in items]
    _some_rows(items)
    AcceleratorState._reset_state()  # one process trains many rounds, and phases may differ in precision
    accelerator = Accelerator(mixed_precision="bf16" if settings.bf16 else "no")
    model = _trainable_policy(inputs)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if settings.compile:
        compile_blocks(model)
    model, optimizer = accelerator.prepare(model, make_optimizer(model, settings))
    shares = exact_shares({route.name: route.settings.share for route in routes})
    sizes = {name: len(route_items) for name, route_items in items.items()}
    steps = settings.steps or steps_for_epochs(settings.epochs, sizes, shares, settings.train_batch_size)
    objectives = {route.name: _objective(route, inputs.importance) for route in routes}
    position = _resume(workspace, inputs, accelerator.unwrap_model(model), optimizer, objectives)
    weights = row_weights(shares, {route.name: route.settings.weight for route in routes}, settings.train_batch_size)
    for step in range(position.step, steps):
        batch = Batch(_step_items(step, items, shares, inputs), weights)
        rate = learning_rate(position.schedule_step, settings.horizon or steps, settings)
        set_learning_rate(optimizer, rate)
        torch.manual_seed(derive_seed(inputs.seed, "dropout", inputs.round_index, step))
        baselines = _baseline_values(position.baselines, objectives, settings)
        with naming_the_levers(settings):
            metrics, values = train_step(accelerator, model, optimizer, batch, objectives, baselines, settings)
        position = _advanced(position, metrics | {"learning_rate": rate}, baselines, values)
        workspace.say(f"step {step + 1} of {steps}, loss {metrics['loss']:.4f}")
        if (step + 1) % settings.save_steps == 0 and step + 1 < steps:
            save_step(workspace.scratch, accelerator.unwrap_model(model), optimizer, position)
    tokenizer = load_tokenizer(inputs.start, inputs.chat_template)
    save_policy(accelerator.unwrap_model(model), tokenizer, workspace.path)
    if inputs.keep_optimizer:
        carried = Position(schedule_step=position.schedule_step, baselines=position.baselines)
        save_optimizer(workspace.path / _TRAINER, optimizer, carried)
    return position


def _trainable_policy(inputs: UpdateInputs) -> Any:
    """fp32 master weights; with LoRA, the starting adapter or a fresh one."""
    model = load_policy(inputs.start, trainable=True)
    if inputs.lora is not None and not is_adapter(inputs.start):
        model = add_adapter(model, inputs.lora, derive_seed(inputs.seed, "lora"))  # type: ignore[arg-type]
    return model.train()


def _objective(route: RouteInput, importance: ImportanceSettings) -> RouteObjective:
    row = find_loss(route.loss.type)
    params = {**row.params, **route.loss.params}
    return RouteObjective(row, params, route.settings, importance, route.sampling_temperature)


def _resume(
    workspace: Workspace,
    inputs: UpdateInputs,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    objectives: Mapping[str, RouteObjective],
) -> Position:
    position = load_last_step(workspace.scratch, model, optimizer)
    if position is not None:
        workspace.say(f"resuming at step {position.step}")
        return position
    start = Position(baselines={name: RunningMean() for name in objectives})
    if inputs.carry_from is None:
        return start
    carried = load_optimizer(inputs.carry_from.path / _TRAINER, optimizer)
    return Position(schedule_step=carried.schedule_step, baselines={**start.baselines, **carried.baselines})


def _step_items(
    step: int, items: Mapping[str, Sequence[Item]], shares: Mapping[str, Fraction], inputs: UpdateInputs
) -> dict[str, list[Item]]:
    sizes = {name: len(route_items) for name, route_items in items.items()}
    indices = batch_indices(step, shares, sizes, inputs.settings.train_batch_size, inputs.seed, inputs.round_index)
    return {name: [items[name][index] for index in chosen] for name, chosen in indices.items()}


def _baseline_values(
    baselines: Mapping[str, RunningMean], objectives: Mapping[str, RouteObjective], settings: UpdateSettings
) -> dict[str, float]:
    """b of this step for every route with a score term."""
    if settings.baseline == "none":
        return {}
    scored = {name: objective for name, objective in objectives.items() if objective.settings.sail_coef > 0}
    return {
        name: baselines[name].value(objective.loss.baseline_start(**objective.params))
        for name, objective in scored.items()
    }


def _advanced(
    position: Position,
    metrics: dict[str, float],
    baselines: Mapping[str, float],
    values: Mapping[str, tuple[float, int]],
) -> Position:
    step = position.step + 1
    if baselines:
        metrics["sail/baseline"] = sum(baselines.values()) / len(baselines)
    logged = {"step": step, **metrics}
    return Position(
        step=step,
        schedule_step=position.schedule_step + 1,
        baselines=updated_baselines(position.baselines, values),
        metrics=(*position.metrics, logged),
    )


def _some_rows(items: Mapping[str, Sequence[Item]]) -> None:
    for name, route_items in items.items():
        if not route_items:
            raise UserError("no rows to learn from", where=f"routes.{name}", cure="Look at the counts of its labels")
