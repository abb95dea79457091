"""One optimizer step: forward, coefficients, backward, microbatch by microbatch, then clip and move."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial

import torch
from accelerate import Accelerator

from sail.core.errors import UserError
from sail.core.run_settings import UpdateSettings
from sail.objectives.baseline import RunningMean
from sail.objectives.responses import Tokens
from sail.policy.logprobs import microbatches
from sail.policy.rows import Row, padded_microbatches
from sail.policy.token_statistics import TokenStatistics
from sail.update.distributed import Share, dealt, gathered, sum_gradients
from sail.update.features import policy_outputs
from sail.update.items import Item
from sail.update.learners import Learner
from sail.update.objective import RouteObjective, StepFacts, route_losses
from sail.update.statistics import batch_statistics
from sail.update.zero import ZeroOptimizer


@dataclass(frozen=True)
class Batch:
    """The global batch of one optimizer step, by route."""

    items: Mapping[str, Sequence[Item]]
    row_weights: Mapping[str, float]  # factor of each row's loss: weight / (share * batch size)


@dataclass
class StepSums:
    """Sums over the global batch, turned into metrics at its end."""

    of_tokens: bool = False  # entropy and top-1 too
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    pairs: int = 0
    responses: int = 0  # of routes without pairs
    values: dict[str, tuple[float, int]] = field(default_factory=dict)  # route -> (sum, count) for its baseline

    def add(self, sums: Mapping[str, float], items: Sequence[Item], unit: str) -> None:
        if unit == "pair":
            self.pairs += len(items)
        else:
            self.responses += sum(len(item.sides) for item in items)
        for name, value in sums.items():
            self.sums[name] += value

    def add_tokens(self, statistics: TokenStatistics) -> None:
        self.sums["tokens"] += len(statistics.entropy)
        self.sums["entropy"] += float(statistics.entropy.sum(dtype=torch.float64))
        self.sums["likeliest"] += float(statistics.is_likeliest.sum())

    def add_values(self, name: str, value_sum: float, count: int) -> None:
        known_sum, known_count = self.values.get(name, (0.0, 0))
        self.values[name] = (known_sum + value_sum, known_count + count)


def merged(parts: Sequence[StepSums]) -> StepSums:
    """The sums of all processes."""
    if len(parts) == 1:
        return parts[0]
    total = StepSums(pairs=sum(part.pairs for part in parts), responses=sum(part.responses for part in parts))
    for part in parts:
        for name, value in part.sums.items():
            total.sums[name] += value
        for name, (value_sum, count) in part.values.items():
            total.add_values(name, value_sum, count)
    return total


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
    learners: Mapping[str, Learner],
    batch: Batch,
    objectives: Mapping[str, RouteObjective],
    baselines: Mapping[str, float],
    settings: UpdateSettings,
    *,
    entropy: bool = False,
) -> tuple[dict[str, float], dict[str, tuple[float, int]]]:
    """Accumulate the global batch's gradient and step. Returns the metrics, and (sum, count) of values per route.

    entropy: of the policy before the step, and its top-1 accuracy, are metrics too.
    learners: the policy under "policy" and, where a route has a critic, the value network under "value".
    """
    totals = StepSums(of_tokens=entropy)
    drop_gradients(learners)
    statistics = batch_statistics(accelerator, learners["policy"].model, batch.items, objectives, settings)
    for name, items in batch.items.items():
        statistic = statistics.get(name)
        facts = StepFacts(baselines.get(name, 0.0), None if statistic is None else statistic.value)
        rows = [[side.row for side in item.sides] for item in items]
        model = None if objectives[name].loss.critic is not None else learners["policy"].model
        cut = partial(_cut, model, rows, settings.max_tokens_per_microbatch)
        for share in dealt(accelerator, [sum(row.num_tokens for row in group) for group in rows], cut):
            _accumulate(accelerator, learners, batch, name, share, objectives[name], facts, totals)
    totals = merged(gathered(accelerator, totals))
    for learner in learners.values():
        sum_gradients(accelerator, learner.model)
    grad_norms = {name: _clip(accelerator, learner) for name, learner in learners.items()}
    if not (math.isfinite(totals.sums["loss"]) and all(map(math.isfinite, grad_norms.values()))):
        raise UserError(
            f"loss {totals.sums['loss']} and gradient norms {grad_norms} are not finite",
            where="update", cure="Lower update.learning_rate or look for broken rows; step checkpoints are kept",
        )  # fmt: skip
    for learner in learners.values():
        learner.optimizer.step()
    metrics = _metrics(totals, grad_norms)
    for statistic in statistics.values():
        metrics |= statistic.metrics
    return metrics, totals.values


def drop_gradients(learners: Mapping[str, Learner]) -> None:
    """Before a step, and after it: nothing between steps needs gradients, and a sampler may need the memory."""
    for learner in learners.values():
        learner.optimizer.zero_grad(set_to_none=True)


def _cut(
    model: torch.nn.Module | None, rows: Sequence[Sequence[Row]], budget: int, chosen: Sequence[int]
) -> list[list[int]]:
    """model None: a value network reads the same rows, and pads them."""
    hand = [rows[index] for index in chosen]
    return padded_microbatches(hand, budget) if model is None else microbatches(model, hand, budget)


def _accumulate(
    accelerator: Accelerator,
    learners: Mapping[str, Learner],
    batch: Batch,
    name: str,
    share: Share,
    objective: RouteObjective,
    facts: StepFacts,
    totals: StepSums,
) -> None:
    """One forward and one backward pass of a microbatch, through the policy and the value network of the route."""
    items = [batch.items[name][index] for index in share.indices]
    with accelerator.autocast():
        scored, distances = policy_outputs(learners["policy"].model, items, objective.sae, statistics=totals.of_tokens)
        if objective.loss.critic is not None:
            values = learners["value"].model([side.row for item in items for side in item.sides])
            facts = replace(facts, values=values.cpu())
    outputs = [scored.logps] if distances is None else [scored.logps, distances]
    # few numbers: a GPU would only wait
    leaves = [output.detach().cpu().double().requires_grad_() for output in outputs]
    facts = replace(facts, distances=None if distances is None else leaves[1])
    result = route_losses(objective, items, Tokens(leaves[0], scored.row_index.cpu()), facts)
    loss = batch.row_weights[name] * result.losses.sum()
    coefficients = torch.autograd.grad(loss, leaves)
    pulls = [(c.to(output) * output).sum() for c, output in zip(coefficients, outputs, strict=True)]
    accelerator.backward(share.gradient_scale * torch.stack(pulls).sum())
    if result.critic_losses is not None:
        accelerator.backward(share.gradient_scale * result.critic_losses.sum() / len(batch.items[name]))
    if share.gradient_scale == 0:
        return
    totals.add({**result.sums, "loss": float(loss.detach())}, items, objective.loss.unit)
    if scored.statistics is not None:
        totals.add_tokens(scored.statistics)
    if result.values is not None:
        totals.add_values(name, float(result.values.sum()), len(items))


def _clip(accelerator: Accelerator, learner: Learner) -> float:
    if isinstance(learner.optimizer, ZeroOptimizer):
        return learner.optimizer.clip_and_step()
    limit = learner.max_grad_norm if learner.max_grad_norm > 0 else math.inf
    norm = accelerator.clip_grad_norm_(learner.model.parameters(), limit)
    return float(norm) if norm is not None else 0.0


def updated_baselines(
    baselines: Mapping[str, RunningMean], values: Mapping[str, tuple[float, int]]
) -> dict[str, RunningMean]:
    """The running means after a step."""
    return {name: mean.update(*values[name]) if name in values else mean for name, mean in baselines.items()}


def _metrics(totals: StepSums, grad_norms: Mapping[str, float]) -> dict[str, float]:
    sums = totals.sums
    metrics = {"loss": sums["loss"], "grad_norm": grad_norms["policy"]}
    if "value" in grad_norms:
        metrics |= {"value/grad_norm": grad_norms["value"], "value/loss": sums["value_error"] / totals.responses}
    if sums.get("tokens"):
        metrics["policy/entropy"] = sums["entropy"] / sums["tokens"]
        metrics["policy/top1_accuracy"] = sums["likeliest"] / sums["tokens"]
    if totals.responses:
        logged = [name for name in sums if name.startswith(("logps/responses", "objective/log_ratio", "policy/"))]
        metrics |= {name: sums[name] / totals.responses for name in logged}
    if totals.pairs:
        names = [name for name in sums if name.startswith(("rewards/", "logps/")) and name != "logps/responses"]
        metrics |= {name: sums[name] / totals.pairs for name in names}
        metrics["sail/score_to_plain_ratio"] = sums["extra_scale"] / sums["plain_scale"] if sums["plain_scale"] else 0.0
    if sums.get("weighted"):
        metrics["sail/importance_cut_share"] = sums["weight_cut"] / sums["weighted"]
        squares = sums["weight_square_sum"]
        metrics["sail/importance_ess"] = sums["weight_sum"] ** 2 / squares / sums["weighted"] if squares else 0.0
    return metrics
