"""The update stage: rows of all routes and a starting checkpoint in, the next checkpoint out."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from sail.core.artifacts import Artifact, Keyed, Leaf
from sail.core.errors import UserError
from sail.core.run_settings import (
    ComponentSettings,
    ImportanceSettings,
    LoraSettings,
    UpdateSettings,
)
from sail.core.seeds import derive_seed
from sail.core.store import Builder, Recipe, Workspace
from sail.objectives import find_loss
from sail.objectives.baseline import RunningMean
from sail.policy.features import SaeSource, load_sae
from sail.policy.loading import Checkpoint, add_adapter, is_adapter, load_policy, load_tokenizer, save_policy
from sail.policy.tags import tag_for, tagged_template
from sail.policy.value import VALUE_FOLDER, ValueModel, value_model_of
from sail.update.batches import batch_indices, exact_shares, steps_for_epochs
from sail.update.items import Item, RouteInput, load_items
from sail.update.objective import RouteObjective
from sail.update.optimizer import learning_rate, make_optimizer, set_learning_rate
from sail.update.step import Batch, Learner, row_weights, train_step, updated_baselines
from sail.update.trainer_state import Position, Trained, load_last_step, load_optimizers, save_optimizers, save_step

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
    components: ComponentSettings = field(default_factory=ComponentSettings)
    sae: SaeSource | None = None  # what components.sae names
    tokenizer: Checkpoint | None = None  # whose tokenizer is saved; default: start's


def update(builder: Builder, inputs: UpdateInputs) -> Artifact:
    """Train one round; the artifact holds model/ (from_pretrained), metrics.jsonl, components/ where the method has
    some and, under carry, trainer/."""

    def run(workspace: Workspace) -> dict[str, Any]:
        items = {route.name: load_items(route) for route in inputs.routes if route.settings.share != 0}
        position = _train(workspace, inputs, items)
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
                "behavior": source.behavior_logps, "mismatched": source.mismatched_logps,
                "features": source.reference_features, "rollouts": source.rollouts,
            }  # fmt: skip
            sources |= {f"{route.name}/{index}/{part}": art for part, art in parts.items() if art is not None}
    if inputs.carry_from is not None:
        sources["carry_from"] = inputs.carry_from
    if inputs.chat_template is not None:
        sources["chat_template"] = inputs.chat_template
    if inputs.tokenizer is not None:
        sources["tokenizer"] = inputs.tokenizer
    components = inputs.components.recipe()
    del components["sae"]  # enters by content
    if inputs.sae is not None:
        sources["sae"] = inputs.sae.file
        components["sae"] = {"layer": inputs.sae.layer, "k": inputs.sae.k}
    settings = {
        "update": inputs.settings.recipe(), "importance": inputs.importance.recipe(), "routes": routes,
        "seed": inputs.seed, "round": inputs.round_index, "keep_optimizer": inputs.keep_optimizer,
        "lora": None if inputs.lora is None else inputs.lora.recipe(), "components": components,
    }  # fmt: skip
    return Recipe("checkpoint", VERSION, settings, sources)


def _train(workspace: Workspace, inputs: UpdateInputs, items: Mapping[str, Sequence[Item]]) -> Position:
    settings, routes = inputs.settings, [route for route in inputs.routes if route.name in items]
    _some_rows(items)
    AcceleratorState._reset_state()  # one process trains many rounds, and phases may differ in precision
    accelerator = Accelerator(mixed_precision="bf16" if settings.bf16 else "no")
    learners = {name: _prepared(accelerator, learner) for name, learner in _learners(inputs).items()}
    trained = {name: (accelerator.unwrap_model(each.model), each.optimizer) for name, each in learners.items()}
    shares = exact_shares({route.name: route.settings.share for route in routes})
    sizes = {name: len(route_items) for name, route_items in items.items()}
    steps = settings.steps or steps_for_epochs(settings.epochs, sizes, shares, settings.train_batch_size)
    objectives = {route.name: _objective(route, inputs) for route in routes}
    position = _resume(workspace, inputs, trained, objectives)
    weights = row_weights(shares, {route.name: route.settings.weight for route in routes}, settings.train_batch_size)
    for step in range(position.step, steps):
        batch = Batch(_step_items(step, items, shares, inputs), weights)
        rates = _learning_rates(position.schedule_step, settings.horizon or steps, inputs)
        for name, learner in learners.items():
            set_learning_rate(learner.optimizer, rates[name])
        torch.manual_seed(derive_seed(inputs.seed, "dropout", inputs.round_index, step))
        baselines = _baseline_values(position.baselines, objectives, settings)
        metrics, values = train_step(accelerator, learners, batch, objectives, baselines, settings)
        position = _advanced(position, metrics | {"learning_rate": rates["policy"]}, baselines, values)
        workspace.say(f"step {step + 1} of {steps}, loss {metrics['loss']:.4f}")
        if (step + 1) % settings.save_steps == 0 and step + 1 < steps:
            save_step(workspace.scratch, trained, position)
    _save(workspace, inputs, trained, items, position)
    return position


def _save(
    workspace: Workspace,
    inputs: UpdateInputs,
    trained: Trained,
    items: Mapping[str, Sequence[Item]],
    position: Position,
) -> None:
    """The checkpoint: policy and tokenizer, the value network, and the optimizers where a later round carries them."""
    tokenizer = load_tokenizer(inputs.tokenizer or inputs.start, inputs.chat_template)
    if inputs.components.prompt_tag is not None:
        tag = tag_for(inputs.components.prompt_tag, inputs.components.prompt_tag.target, _targets(items))
        tokenizer.chat_template = tagged_template(str(tokenizer.chat_template), tag)
    save_policy(trained["policy"][0], tokenizer, workspace.path)  # type: ignore[arg-type]
    if "value" in trained:
        value: ValueModel = trained["value"][0]  # type: ignore[assignment]
        (workspace.path / VALUE_FOLDER).mkdir(parents=True, exist_ok=True)
        value.save(workspace.path / VALUE_FOLDER)
    if inputs.keep_optimizer:
        carried = Position(schedule_step=position.schedule_step, baselines=position.baselines)
        save_optimizers(workspace.path / _TRAINER, trained, carried)


def _targets(items: Mapping[str, Sequence[Item]]) -> list[float]:
    sides = [side for route_items in items.values() for item in route_items for side in item.sides]
    return [side.target for side in sides if not math.isnan(side.target)]


def _learners(inputs: UpdateInputs) -> dict[str, Learner]:
    """The policy and, where the method has one, its value network, each with its own optimizer."""
    settings, policy = inputs.settings, _trainable_policy(inputs)
    learners = {"policy": Learner(policy, make_optimizer(policy, settings), settings.max_grad_norm)}
    if inputs.components.value is not None:
        value = value_model_of(inputs.start, inputs.components.value.per).train()
        own = settings.replace(learning_rate=inputs.components.value.learning_rate, optimizer="adamw")
        learners["value"] = Learner(value, make_optimizer(value, own), inputs.components.value.max_grad_norm)
    return learners


def _prepared(accelerator: Accelerator, learner: Learner) -> Learner:
    model, optimizer = accelerator.prepare(learner.model, learner.optimizer)
    return Learner(model, optimizer, learner.max_grad_norm)


def _learning_rates(schedule_step: int, horizon: int, inputs: UpdateInputs) -> dict[str, float]:
    """The rate of each network at a step: one schedule, each with its own peak."""
    rate = learning_rate(schedule_step, horizon, inputs.settings)
    value = inputs.components.value
    peak = 0.0 if value is None else value.learning_rate
    return {"policy": rate, "value": rate / inputs.settings.learning_rate * peak}


def _trainable_policy(inputs: UpdateInputs) -> Any:
    """fp32 master weights; with LoRA, the starting adapter or a fresh one."""
    model = load_policy(inputs.start, trainable=True)
    if inputs.lora is not None and not is_adapter(inputs.start):
        model = add_adapter(model, inputs.lora, derive_seed(inputs.seed, "lora"))  # type: ignore[arg-type]
    if inputs.settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    return model.train()


def _objective(route: RouteInput, inputs: UpdateInputs) -> RouteObjective:
    row = find_loss(route.loss.type)
    params = {**row.params, **route.loss.params}
    sae = load_sae(inputs.sae) if inputs.sae is not None and "features" in row.needs else None
    return RouteObjective(row, params, route.settings, inputs.importance, route.sampling_temperature, sae)


def _resume(
    workspace: Workspace, inputs: UpdateInputs, trained: Trained, objectives: Mapping[str, RouteObjective]
) -> Position:
    position = load_last_step(workspace.scratch, trained)
    if position is not None:
        workspace.say(f"resuming at step {position.step}")
        return position
    start = Position(baselines={name: RunningMean() for name in objectives})
    if inputs.carry_from is None:
        return start
    carried = load_optimizers(inputs.carry_from.path / _TRAINER, trained)
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
