"""From the log-probs of a microbatch to the coefficients of its backward pass: one route at a time, no model.

Every objective's gradient is sum_i c_i grad log pi(y_i|x_i) with detached c_i, so one forward pass that gives the
log-probs and one backward pass weighted by c is exact, however many terms the loss has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sail.core.run_settings import ImportanceSettings, RouteSettings
from sail.objectives import LossRow, Responses
from sail.objectives.diagnostics import pair_diagnostics, term_scales
from sail.objectives.importance import importance_weights, plain_weights
from sail.objectives.online import (
    FRESH_LABELS,
    FRESH_ROWS,
    OnlineTerms,
    PairLosses,
    PolicyPreference,
    labels_by_others,
    pair_value,
)
from sail.update.items import Item


@dataclass(frozen=True)
class RouteObjective:
    """A route's loss with everything about it that stays fixed during a round."""

    loss: LossRow
    params: dict[str, float]
    settings: RouteSettings
    importance: ImportanceSettings
    sampling_temperature: float = 1.0


@dataclass(frozen=True)
class RouteResult:
    """One route's rows of a microbatch: unreduced losses with gradient, and what is logged."""

    losses: Tensor  # [B] float64
    values: Tensor | None  # [B] detached: what the baseline averages; None where there is no score term
    sums: dict[str, float]  # sums over rows; the step divides by their count


def route_losses(objective: RouteObjective, items: Sequence[Item], logps: Tensor, baseline: float) -> RouteResult:
    """Losses of B items from their log-probs [sides, B] float64 (a leaf that takes the gradient)."""
    sides = [_responses(items, logps, index) for index in range(len(logps))]
    if objective.loss.unit == "response":
        return RouteResult(objective.loss.function(sides[0], **objective.params), None, {})
    return _pair_losses(objective, items, logps, sides, baseline)


def _pair_losses(
    objective: RouteObjective, items: Sequence[Item], logps: Tensor, sides: Sequence[Responses], baseline: float
) -> RouteResult:
    a, b = sides
    loss, params = objective.loss.function, objective.params
    losses = PairLosses(loss(a, b, **params), loss(b, a, **params))
    online, sums = _online_terms(objective, items, logps, baseline)
    if items[0].fresh:
        assert objective.loss.link is not None, "a loss without a link cannot label; refused before the run"
        link = objective.loss.link
        uniforms = logps.new_tensor([item.draw for item in items])
        preference = PolicyPreference(link(a, b, **params), link(b, a, **params), uniforms)
        mode = objective.settings.labels.mode or "soft"
        p_a = FRESH_LABELS[mode](preference)
        row = FRESH_ROWS[mode](losses, preference, online)
    else:
        p_a = logps.new_tensor([item.p_a for item in items])
        row = labels_by_others(losses, p_a, online)
    scales = term_scales(row, losses, p_a, [logps], plain_weight=online.plain_weight)
    logged = pair_diagnostics(a, b, p_a, beta=params.get("beta", 1.0))
    logged |= {"plain_scale": scales.plain, "extra_scale": scales.extra}
    sums |= {name: float(values.sum()) for name, values in logged.items()}
    return RouteResult(row, pair_value(losses, p_a) if objective.settings.sail_coef else None, sums)


def _online_terms(
    objective: RouteObjective, items: Sequence[Item], logps: Tensor, baseline: float
) -> tuple[OnlineTerms, dict[str, float]]:
    """S, its weights and the baseline; samples of the policy only."""
    drawn = logps.new_tensor([[float(side.from_policy) for side in item.sides] for item in items]).T
    if not bool(drawn.any()):
        return OnlineTerms(sail_coef=objective.settings.sail_coef, baseline=baseline), {}
    score_logps = (logps * drawn).sum(0)
    if objective.importance.mode == "none":
        return OnlineTerms(score_logps, objective.settings.sail_coef, baseline), {}
    behavior = logps.new_tensor([[side.behavior_logp for side in item.sides] for item in items]).T
    ratios = importance_weights(
        score_logps,
        torch.where(drawn > 0, behavior, torch.zeros_like(behavior)).sum(0),
        mode=objective.importance.mode,
        cap=objective.importance.cap,
    )
    plain = plain_weights(ratios.weights, objective.importance.apply_to)
    terms = OnlineTerms(score_logps, objective.settings.sail_coef, baseline, ratios.weights, plain)
    weights = ratios.weights
    return terms, {
        "weighted": float(len(items)), "weight_sum": float(weights.sum()),
        "weight_square_sum": float(weights.square().sum()), "weight_cut": float(ratios.cut_share) * len(items),
    }  # fmt: skip


def _responses(items: Sequence[Item], logps: Tensor, index: int) -> Responses:
    sides = [item.sides[index] for item in items]
    return Responses(
        logps=logps[index],
        ref_logps=logps.new_tensor([side.ref_logp for side in sides]),
        num_tokens=logps.new_tensor([float(len(side.row.response_ids)) for side in sides]),
    )
