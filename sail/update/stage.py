"""The update stage: rows of all routes and a starting checkpoint in, the next checkpoint out.

`train` is the same code in one process (the driver's) and in each of several (sail/update/launch.py starts them).
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from accelerate import Accelerator

from sail.core.artifacts import Artifact
from sail.core.run_settings import UpdateSettings
from sail.core.seeds import derive_seed
from sail.core.store import Builder, Workspace
from sail.objectives import find_loss
from sail.objectives.baseline import RunningMean
from sail.policy.autoencoder import load_sae
from sail.policy.devices import free_memory
from sail.policy.loading import base_below
from sail.policy.memory import room_for_a_model
from sail.update.batches import batch_indices, exact_shares, steps_for_epochs
from sail.update.distributed import make_accelerator, prepared, refuse_this
from sail.update.feed import Feed, Refresh, feed
from sail.update.inputs import UpdateInputs, update_recipe
from sail.update.items import Item, RouteInput
from sail.update.launch import Launch, run_in_processes
from sail.update.learners import Learner, learning_rates, make_learners, restore, save_checkpoint
from sail.update.memory import naming_the_levers
from sail.update.objective import RouteObjective
from sail.update.optimizer import set_learning_rate
from sail.update.step import Batch, drop_gradients, row_weights, train_step, updated_baselines
from sail.update.trainer_state import Position, save_step


def update(
    builder: Builder, inputs: UpdateInputs, launch: Launch | None = None, refresh: Refresh | None = None
) -> Artifact:
    """Train one round; the artifact holds model/ (from_pretrained), metrics.jsonl, components/ where the method has
    some, under carry trainer/, and the segments of a `refresh`. Without `launch` it trains in this process."""
    assert launch is None or refresh is None, "refused before the run"

    def run(workspace: Workspace) -> dict[str, Any]:
        if launch is not None:
            return run_in_processes(workspace, inputs, launch)
        figures = train(workspace, inputs, refresh)
        free_memory()  # here, where nothing of the training is left
        return figures

    checkpoint = builder.build(update_recipe(inputs), run)
    return checkpoint if inputs.lora is None else replace(checkpoint, base=base_below(inputs.start))


def train(workspace: Workspace, inputs: UpdateInputs, refresh: Refresh | None = None) -> dict[str, Any]:
    """Fill the workspace; returns the figures for the manifest. Of several processes the first one writes."""
    accelerator = make_accelerator(inputs.settings.bf16)
    learners = {name: _prepared(accelerator, learner) for name, learner in _learners(accelerator, inputs).items()}
    with feed(workspace, inputs, accelerator.unwrap_model(learners["policy"].model), refresh) as rows:
        position = _train(accelerator, learners, workspace, inputs, rows)
        counts = rows.counts()
    if accelerator.is_main_process:
        lines = "".join(json.dumps(metrics) + "\n" for metrics in position.metrics)
        (workspace.path / "metrics.jsonl").write_text(lines)
    last = position.metrics[-1] if position.metrics else {}
    return {"steps": position.step, **counts, **{f"last/{name}": value for name, value in last.items()}}


def _train(
    accelerator: Accelerator,
    learners: Mapping[str, Learner],
    workspace: Workspace,
    inputs: UpdateInputs,
    rows: Feed,
) -> Position:
    settings, routes = inputs.settings, [route for route in inputs.routes if route.settings.share != 0]
    writes, rank = accelerator.is_main_process, accelerator.process_index
    trained = {name: (accelerator.unwrap_model(each.model), each.optimizer) for name, each in learners.items()}
    shares = exact_shares({route.name: route.settings.share for route in routes})
    steps = settings.steps or steps_for_epochs(settings.epochs, rows.sizes(), shares, settings.train_batch_size)
    objectives = {route.name: _objective(route, inputs) for route in routes}
    position = _position(restore(workspace, inputs, trained), objectives)
    weights = row_weights(shares, {route.name: route.settings.weight for route in routes}, settings.train_batch_size)
    for step in range(position.step, steps):
        rows.reach(step, steps)
        batch = Batch(_step_items(step, rows, shares, inputs), weights)
        rates = learning_rates(position.schedule_step, settings.horizon or steps, inputs)
        for name, learner in learners.items():
            set_learning_rate(learner.optimizer, rates[name])
        torch.manual_seed(derive_seed(inputs.seed, "dropout", inputs.round_index, step) + rank)
        baselines = _baseline_values(position.baselines, objectives, settings)
        entropy = settings.entropy_every > 0 and step % settings.entropy_every == 0
        with naming_the_levers(settings):
            metrics, values = train_step(accelerator, learners, batch, objectives, baselines, settings, entropy=entropy)
        drop_gradients(learners)
        position = _advanced(position, metrics | {"learning_rate": rates["policy"]}, baselines, values)
        workspace.say(f"step {step + 1} of {steps}, loss {metrics['loss']:.4f}")
        if (step + 1) % settings.save_steps == 0 and step + 1 < steps:
            save_step(workspace.scratch, trained, position, writes=writes)
    save_checkpoint(workspace, inputs, trained, rows.items, position, writes=writes)
    return position


def _learners(accelerator: Accelerator, inputs: UpdateInputs) -> dict[str, Learner]:
    learners = make_learners(inputs)
    refuse_this(accelerator, learners)
    return learners


def _prepared(accelerator: Accelerator, learner: Learner) -> Learner:
    limit, optimizer = learner.max_grad_norm, learner.optimizer
    assert isinstance(optimizer, torch.optim.Optimizer)
    with room_for_a_model(accelerator.device):
        return Learner(*prepared(accelerator, learner.model, optimizer, limit), limit)


def _position(restored: Position | None, objectives: Mapping[str, RouteObjective]) -> Position:
    """Where training stands, with a baseline for every route."""
    fresh = {name: RunningMean() for name in objectives}
    if restored is None:
        return Position(baselines=fresh)
    return replace(restored, baselines={**fresh, **restored.baselines})


def _objective(route: RouteInput, inputs: UpdateInputs) -> RouteObjective:
    row = find_loss(route.loss.type)
    params = {**row.params, **route.loss.params}
    sae = load_sae(inputs.sae) if inputs.sae is not None and "features" in row.needs else None
    return RouteObjective(row, params, route.settings, inputs.importance, route.sampling_temperature, sae)


def _step_items(step: int, rows: Feed, shares: Mapping[str, Fraction], inputs: UpdateInputs) -> dict[str, list[Item]]:
    batch_size, seed = inputs.settings.train_batch_size, inputs.seed
    indices = batch_indices(step, shares, rows.sizes(), batch_size, seed, inputs.round_index, rows.since)
    return {name: [rows.items[name][index] for index in chosen] for name, chosen in indices.items()}


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
