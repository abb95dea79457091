"""One optimizer step: forward, coefficients, backward, microbatch by microbatch, then clip and move."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from accelerate import Accelerator

from sail.core.errors import UserError
from sail.core.run_settings import UpdateSettings
from sail.objectives.baseline import RunningMean
from sail.policy.logprobs import microbatches, sequence_logps
from sail.update.items import Item
from sail.update.objective import RouteObjective, route_losses


@dataclass(frozen=True)
class Batch:
    """The global batch of one optimizer step, by route."""

    items: Mapping[str, Sequence[Item]]
    row_weights: Mapping[str, float]  # factor of each row's loss: weight / (share * batch size)


@dataclass
class StepSums:
    """Sums over the global batch, turned into metrics at its end."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    pairs: int = 0
    values: dict[str, tuple[float, int]] = field(default_factory=dict)  # route -> (sum, count) for its baseline

    def add(self, sums: Mapping[str, float], pairs: int) -> None:
        self.pairs += pairs
        for name, value in sums.items():
            self.sums[name] += value


def row_weights(
    shares: Mapping[str, Fraction], weights: Mapping[str, float | None], batch_size: int
) -> dict[str, float]:
    """weight / (share * batch size) for each route; the weight defaults to the share, which gives 1 / batch size.

    Dividing by the expected count of rows, not by the step's own (which carried rounding moves by one), keeps every
    row's weight equal over the run.
    """
    rows = {}
    for name, share in shares.items():
        weight = weights[name]
        rows[name] = 1 / batch_size if weight is None or share == 0 else weight / float(share * batch_size)
    return rows


def train_step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    objectives: Mapping[str, RouteObjective],
    baselines: Mapping[str, float],
    settings: UpdateSettings,
) -> tuple[dict[str, float], dict[str, tuple[float, int]]]:
    """Accumulate the global batch's gradient and step. Returns the metrics, and (sum, count) of values per route."""
    totals = StepSums()
    optimizer.zero_grad(set_to_none=True)
    for name, items in batch.items.items():
        rows = [[side.row for side in item.sides] for item in items]
        for chunk in microbatches(model, rows, settings.max_tokens_per_microbatch):
            part = [items[index] for index in chunk]
            _accumulate(accelerator, model, name, part, batch.row_weights[name], objectives[name], baselines, totals)
    grad_norm = _clip(accelerator, model, settings.max_grad_norm)
    if not (math.isfinite(totals.sums["loss"]) and math.isfinite(grad_norm)):
        raise UserError(
            f"loss {totals.sums['loss']} and gradient norm {grad_norm} are not finite",
            where="update", cure="Lower update.learning_rate or look for broken rows; step checkpoints are kept",
        )  # fmt: skip
    optimizer.step()
    return _metrics(totals, grad_norm), totals.values


def _accumulate(
    accelerator: Accelerator,
    model: torch.nn.Module,
    name: str,
    items: Sequence[Item],
    row_weight: float,
    objective: RouteObjective,
    baselines: Mapping[str, float],
    totals: StepSums,
) -> None:
    """One forward and one backward pass of a microbatch."""
    sides = len(items[0].sides)
    with accelerator.autocast():
        flat = sequence_logps(model, [item.sides[side].row for side in range(sides) for item in items])
    logps = flat.detach().cpu().reshape(sides, len(items)).requires_grad_()  # few numbers: a GPU would only wait
    result = route_losses(objective, items, logps, baselines.get(name, 0.0))
    loss = row_weight * result.losses.sum()
    (coefficients,) = torch.autograd.grad(loss, logps)
    accelerator.backward((coefficients.reshape(-1).to(flat.device) * flat).sum())
    totals.add({**result.sums, "loss": float(loss.detach())}, len(items) if sides == 2 else 0)
    if result.values is not None:
        known_sum, known_count = totals.values.get(name, (0.0, 0))
        totals.values[name] = (known_sum + float(result.values.sum()), known_count + len(items))


def _clip(accelerator: Accelerator, model: torch.nn.Module, max_norm: float) -> float:
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm if max_norm > 0 else math.inf)
    return float(norm) if norm is not None else 0.0


def updated_baselines(
    baselines: Mapping[str, RunningMean], values: Mapping[str, tuple[float, int]]
) -> dict[str, RunningMean]:
    """The running means after a step."""
    return {name: mean.update(*values[name]) if name in values else mean for name, mean in baselines.items()}


def _metrics(totals: StepSums, grad_norm: float) -> dict[str, float]:
    sums = totals.sums
    metrics = {"loss": sums["loss"], "grad_norm": grad_norm}
    if totals.pairs:
        names = [name for name in sums if name.startswith(("rewards/", "logps/"))]
        metrics |= {name: sums[name] / totals.pairs for name in names}
        metrics["sail/score_to_plain_ratio"] = sums["extra_scale"] / sums["plain_scale"] if sums["plain_scale"] else 0.0
    if sums.get("weighted"):
        metrics["sail/importance_cut_share"] = sums["weight_cut"] / sums["weighted"]
        squares = sums["weight_square_sum"]
        metrics["sail/importance_ess"] = sums["weight_sum"] ** 2 / squares / sums["weighted"] if squares else 0.0
    return metrics
