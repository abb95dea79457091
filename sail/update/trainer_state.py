"""What an update needs to go on: weights and optimizer of every network, position, baselines, the metrics so far."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sail.core import atomic
from sail.objectives.baseline import RunningMean
from sail.update.distributed import laid_like, whole
from sail.update.zero import AnyOptimizer, ZeroOptimizer, whole_weight

_WEIGHTS, _OPTIMIZER, _POSITION = "weights.safetensors", "optimizer.pt", "position.json"


@dataclass(frozen=True)
class Position:
    """Where training stands, beside tensors."""

    step: int = 0  # of this round
    schedule_step: int = 0  # of the schedule, which `optimizer: carry` lets run over rounds
    baselines: Mapping[str, RunningMean] = field(default_factory=dict)
    metrics: tuple[dict[str, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        baselines = {name: mean.to_dict() for name, mean in self.baselines.items()}
        return {
            "step": self.step, "schedule_step": self.schedule_step, "baselines": baselines,
            "metrics": list(self.metrics),
        }  # fmt: skip

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> "Position":
        baselines = {name: RunningMean.from_dict(mean, where) for name, mean in record["baselines"].items()}
        return cls(record["step"], record["schedule_step"], baselines, tuple(record["metrics"]))


Trained = Mapping[str, tuple[torch.nn.Module, AnyOptimizer]]
"""The networks of an update, unwrapped, with their optimizers: "policy", and "value" where a loss has a critic."""


def save_step(folder: Path, trained: Trained, position: Position, *, writes: bool = True) -> None:
    """Commit a step checkpoint, then drop the older ones. All processes call it, one writes."""
    temporary, final = folder / "tmp", folder / f"step-{position.step:08d}"
    if writes:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    save_optimizers(temporary, trained, position, writes=writes)
    for name, (model, _) in trained.items():
        weights = _trainable(model, keep=writes)
        if writes:
            save_file(weights, temporary / name / _WEIGHTS)
    if writes:
        _commit(temporary, final)


def _commit(temporary: Path, final: Path) -> None:
    atomic.sync_tree(temporary)
    os.rename(temporary, final)
    atomic.sync_folder(final.parent)
    for older in final.parent.glob("step-*"):
        if older != final:
            shutil.rmtree(older)


def load_last_step(folder: Path, trained: Trained) -> Position | None:
    """Restore the newest step checkpoint, if a killed attempt left one, whatever its number of processes was."""
    steps = sorted(folder.glob("step-*"))
    if not steps:
        return None
    with torch.no_grad():
        for name, (model, _) in trained.items():
            for weight_name, value in load_file(steps[-1] / name / _WEIGHTS).items():
                weight = model.get_parameter(weight_name)
                with whole_weight(weight, modified=True):
                    weight.copy_(laid_like(weight, value))
    return load_optimizers(steps[-1], trained)


def save_optimizers(folder: Path, trained: Trained, position: Position, *, writes: bool = True) -> None:
    """Optimizers and position alone: what `optimizer: carry` hands to the next round."""
    for name, (_, optimizer) in trained.items():
        state = _whole_state(optimizer, keep=writes)
        if writes:
            (folder / name).mkdir(parents=True, exist_ok=True)
            # the bytes torch.save writes depend on the file's name: keep it fixed
            torch.save(state, folder / name / _OPTIMIZER)
    if writes:
        (folder / _POSITION).write_text(json.dumps(position.to_json()))


def load_optimizers(folder: Path, trained: Trained) -> Position:
    for name, (_, optimizer) in trained.items():
        state = torch.load(folder / name / _OPTIMIZER, weights_only=True, map_location="cpu")
        if isinstance(optimizer, ZeroOptimizer):
            optimizer.load_whole_state(state)
            continue
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for index, slots in state["state"].items():
            state["state"][index] = {key: _laid(weights[index], value) for key, value in slots.items()}
        optimizer.load_state_dict(state)
    position = folder / _POSITION
    return Position.from_json(json.loads(position.read_text()), str(position))


def _whole_state(optimizer: AnyOptimizer, *, keep: bool) -> dict[str, Any]:
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.whole_state(keep=keep)
    state = optimizer.state_dict()
    state["state"] = {index: _whole_slots(slots, keep=keep) for index, slots in state["state"].items()}
    return state


def _whole_slots(slots: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    return {key: whole(value, keep=keep) if isinstance(value, torch.Tensor) else value for key, value in slots.items()}


def _laid(weight: torch.Tensor, value: Any) -> Any:
    return laid_like(weight, value) if isinstance(value, torch.Tensor) else value


def _trainable(model: torch.nn.Module, *, keep: bool) -> dict[str, torch.Tensor]:
    return {name: whole(weight, keep=keep) for name, weight in model.named_parameters() if weight.requires_grad}
