"""The networks an update trains, each with its own optimizer: the policy and, where a loss has a critic, a value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sail.core.seeds import derive_seed
from sail.core.store import Workspace
from sail.policy.compiling import compile_blocks
from sail.policy.loading import add_adapter, is_adapter, load_policy, load_tokenizer, save_policy
from sail.policy.tags import tag_for, tagged_template
from sail.policy.value import VALUE_FOLDER, ValueModel, value_model_of
from sail.update.distributed import whole_state
from sail.update.inputs import UpdateInputs
from sail.update.items import Item
from sail.update.optimizer import learning_rate, make_optimizer
from sail.update.trainer_state import Position, Trained, load_last_step, load_optimizers, save_optimizers
from sail.update.zero import AnyOptimizer

_TRAINER = "trainer"


@dataclass(frozen=True)
class Learner:
    """A network with its optimizer."""

    model: torch.nn.Module
    optimizer: AnyOptimizer
    max_grad_norm: float  # 0: no clipping


def make_learners(inputs: UpdateInputs) -> dict[str, Learner]:
    """The policy under "policy" and, where the method has one, its value network under "value"."""
    settings, policy = inputs.settings, _trainable_policy(inputs)
    learners = {"policy": Learner(policy, make_optimizer(policy, settings), settings.max_grad_norm)}
    if inputs.components.value is not None:
        value = value_model_of(inputs.start, inputs.components.value.per).train()
        if settings.gradient_checkpointing:
            value.backbone.gradient_checkpointing_enable()
        own = settings.replace(learning_rate=inputs.components.value.learning_rate, optimizer="adamw")
        learners["value"] = Learner(value, make_optimizer(value, own), inputs.components.value.max_grad_norm)
    return learners


def _trainable_policy(inputs: UpdateInputs) -> Any:
    """fp32 master weights; with LoRA, the starting adapter or a fresh one."""
    model = load_policy(inputs.start, trainable=True)
    if inputs.lora is not None and not is_adapter(inputs.start):
        model = add_adapter(model, inputs.lora, derive_seed(inputs.seed, "lora"))  # type: ignore[arg-type]
    if inputs.settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    if inputs.settings.compile:
        compile_blocks(model)
    return model.train()


def learning_rates(schedule_step: int, horizon: int, inputs: UpdateInputs) -> dict[str, float]:
    """The rate of each network at a step: one schedule, each with its own peak."""
    rate = learning_rate(schedule_step, horizon, inputs.settings)
    value = inputs.components.value
    peak = 0.0 if value is None else value.learning_rate
    return {"policy": rate, "value": rate / inputs.settings.learning_rate * peak}


def restore(workspace: Workspace, inputs: UpdateInputs, trained: Trained) -> Position | None:
    """Where a killed attempt, or under carry the round before, left off; None for a fresh start."""
    position = load_last_step(workspace.scratch, trained)
    if position is not None:
        workspace.say(f"resuming at step {position.step}")
        return position
    return None if inputs.carry_from is None else load_optimizers(inputs.carry_from.path / _TRAINER, trained)


def save_checkpoint(
    workspace: Workspace,
    inputs: UpdateInputs,
    trained: Trained,
    items: Mapping[str, Sequence[Item]],
    position: Position,
    *,
    writes: bool = True,
) -> None:
    """The checkpoint: policy and tokenizer, the value network, and the optimizers where a later round carries them.

    All processes call it, one writes.
    """
    state = whole_state(trained["policy"][0], keep=writes)
    if inputs.keep_optimizer:
        carried = Position(schedule_step=position.schedule_step, baselines=position.baselines)
        save_optimizers(workspace.path / _TRAINER, trained, carried, writes=writes)
    if writes:
        _write_models(workspace, inputs, trained, items, state)


def _write_models(
    workspace: Workspace,
    inputs: UpdateInputs,
    trained: Trained,
    items: Mapping[str, Sequence[Item]],
    state: dict[str, torch.Tensor] | None,
) -> None:
    tokenizer = load_tokenizer(inputs.tokenizer or inputs.start, inputs.chat_template)
    if inputs.components.prompt_tag is not None:
        tag = tag_for(inputs.components.prompt_tag, inputs.components.prompt_tag.target, _targets(items))
        tokenizer.chat_template = tagged_template(str(tokenizer.chat_template), tag)
    save_policy(trained["policy"][0], tokenizer, workspace.path, state)  # type: ignore[arg-type]
    if "value" in trained:
        value: ValueModel = trained["value"][0]  # type: ignore[assignment]
        (workspace.path / VALUE_FOLDER).mkdir(parents=True, exist_ok=True)
        value.save(workspace.path / VALUE_FOLDER)


def _targets(items: Mapping[str, Sequence[Item]]) -> list[float]:
    sides = [side for route_items in items.values() for item in route_items for side in item.sides]
    return [side.target for side in sides if not math.isnan(side.target)]
