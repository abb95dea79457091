"""From the log-probs of a microbatch to its losses: one route at a time, no model.

Every objective's gradient is sum_k c_k grad log pi(y_k|x, y_<k) with detached c_k, so one forward pass that gives the
log-probs and one backward pass weighted by c is exact, however many terms the loss has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sail.core.route_settings import RouteSettings
from sail.core.run_settings import ImportanceSettings
from sail.objectives import LossRow, Responses
from sail.objectives.diagnostics import pair_diagnostics, response_diagnostics, term_scales
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
from sail.objectives.responses import Rollout, Tokens
from sail.objectives.statistics import accepted
from sail.policy.autoencoder import SparseAutoencoder
from sail.update.items import Item, Side


@dataclass(frozen=True)
class RouteObjective:
    """A route's loss with everything about it that stays fixed during a round."""

    loss: LossRow
    params: dict[str, float]
    settings: RouteSettings
    importance: ImportanceSettings
    sampling_temperature: float = 1.0
    sae: SparseAutoencoder | None = None  # where the loss looks at features


@dataclass(frozen=True)
class StepFacts:
    """What a route's loss needs to know beyond its rows, fixed during a step."""

    baseline: float = 0.0  # b of the label table
    statistic: Tensor | None = None  # 0-d, of the global batch
    values: Tensor | None = None  # [T], the value network's, with its gradient
    distances: Tensor | None = None  # [R], of features to the reference's (a leaf with gradient)


@dataclass(frozen=True)
class RouteResult:
    """One route's rows of a microbatch: unreduced losses with gradient, and what is logged."""

    losses: Tensor  # [B] float64
    values: Tensor | None = None  # [B] detached: what the baseline averages; None where there is no score term
    critic_losses: Tensor | None = None  # [B]: the value network's
    sums: dict[str, float] = field(default_factory=dict)  # sums over rows; the step divides by their count


def route_losses(objective: RouteObjective, items: Sequence[Item], tokens: Tokens, facts: StepFacts) -> RouteResult:
    """Losses of B items from the log-probs of their tokens, item by item and side by side (a leaf with gradient)."""
    sides = [side for item in items for side in item.sides]
    if objective.loss.rollouts is not None:
        tokens = tokens._replace(rollout=_rollout(sides, tokens))
    responses = responses_of(sides, tokens, _groups(items, tokens))._replace(feature_distances=facts.distances)
    if objective.loss.unit == "pair":
        return _pair_losses(objective, items, responses, facts.baseline)
    return _response_losses(objective, items, responses, facts)


def responses_of(sides: Sequence[Side], tokens: Tokens, group: Tensor | None = None) -> Responses:
    """What a loss sees of the sides, in their order."""
    logps = torch.zeros(len(sides), dtype=torch.float64, device=tokens.logps.device)
    return Responses(
        logps=logps.index_add(0, tokens.row, tokens.logps),
        ref_logps=logps.new_tensor([side.ref_logp for side in sides]),
        num_tokens=logps.new_tensor([float(len(side.row.response_ids)) for side in sides]),
        targets=logps.new_tensor([side.target for side in sides]),
        group=group,
        tokens=tokens,
    )


def _rollout(sides: Sequence[Side], tokens: Tokens) -> Rollout:
    """A round's estimates of the sides' tokens, in the tokens' order."""
    known = [side.rollout for side in sides if side.rollout is not None]
    assert len(known) == len(sides), "a round's estimates cover all its rows"
    names = ("old_logps", "values", "advantages", "returns")
    return Rollout(*(tokens.logps.new_tensor([x for each in known for x in getattr(each, name)]) for name in names))


def _groups(items: Sequence[Item], tokens: Tokens) -> Tensor:
    sizes = torch.tensor([len(item.sides) for item in items], device=tokens.row.device)
    return torch.repeat_interleave(torch.arange(len(items), device=tokens.row.device), sizes)


def _response_losses(
    objective: RouteObjective, items: Sequence[Item], responses: Responses, facts: StepFacts
) -> RouteResult:
    """Losses of single responses; a group's loss is the mean over its responses."""
    loss, params = objective.loss, objective.params
    given = [value for value in (facts.statistic, facts.values) if value is not None]
    ratios, sums = _importance(objective, items, responses.logps)
    values = plain_weights(ratios, "all") * loss.loss(responses, *given, **params)
    logged = response_diagnostics(responses, **accepted(response_diagnostics, params))
    sums |= {name: float(value.sum()) for name, value in logged.items()}
    critic = None
    if loss.critic is not None:
        critic = loss.critic(responses, *given, **accepted(loss.critic, params))
        sums["value_error"] = critic.sum().item()
    return RouteResult(_item_means(values, items, responses), critic_losses=critic, sums=sums)


def _item_means(values: Tensor, items: Sequence[Item], responses: Responses) -> Tensor:
    """[R] over responses -> [B] over items"""
    assert responses.group is not None
    sizes = values.new_tensor([float(len(item.sides)) for item in items])
    return torch.zeros_like(sizes).index_add(0, responses.group, values) / sizes


def _pair_losses(
    objective: RouteObjective, items: Sequence[Item], responses: Responses, baseline: float
) -> RouteResult:
    a, b = side(responses, 0), side(responses, 1)
    loss, params = objective.loss.function, objective.params
    losses = PairLosses(loss(a, b, **params), loss(b, a, **params))
    both = torch.stack([a.logps, b.logps], dim=1).flatten()  # through a and b, so that term_scales sees every path
    online, sums = _online_terms(objective, items, both, baseline)
    if items[0].fresh:
        assert objective.loss.link is not None, "a loss without a link cannot label; refused before the run"
        link = objective.loss.link
        uniforms = a.logps.new_tensor([item.draw for item in items])
        preference = PolicyPreference(link(a, b, **params), link(b, a, **params), uniforms)
        mode = objective.settings.labels.mode or "soft"
        p_a = FRESH_LABELS[mode](preference)
        row = FRESH_ROWS[mode](losses, preference, online)
    else:
        p_a = a.logps.new_tensor([item.p_a for item in items])
        row = labels_by_others(losses, p_a, online)
    scales = term_scales(row, losses, p_a, [a.logps, b.logps], plain_weight=online.plain_weight)
    logged = pair_diagnostics(a, b, p_a, beta=params.get("beta", 1.0))
    logged |= {"plain_scale": scales.plain, "extra_scale": scales.extra}
    sums |= {name: float(values.sum()) for name, values in logged.items()}
    return RouteResult(row, pair_value(losses, p_a) if objective.settings.sail_coef else None, sums=sums)


def side(responses: Responses, index: int) -> Responses:
    """All A sides (0) or all B sides (1) of pairs that stand one after another."""
    distances = responses.feature_distances
    return Responses(
        responses.logps[index::2], responses.ref_logps[index::2], responses.num_tokens[index::2],
        feature_distances=None if distances is None else distances[index::2],
    )  # fmt: skip


def _online_terms(
    objective: RouteObjective, items: Sequence[Item], logps: Tensor, baseline: float
) -> tuple[OnlineTerms, dict[str, float]]:
    """S, its weights and the baseline; samples of the policy only."""
    drawn = _drawn(items, logps)
    if not bool(drawn.any()):
        return OnlineTerms(sail_coef=objective.settings.sail_coef, baseline=baseline), {}
    score_logps = (logps * drawn).unflatten(0, (-1, 2)).sum(1)
    if objective.importance.mode == "none":
        return OnlineTerms(score_logps, objective.settings.sail_coef, baseline), {}
    weights, sums = _importance(objective, items, logps, per_item=2)
    plain = plain_weights(weights, objective.importance.apply_to)
    return OnlineTerms(score_logps, objective.settings.sail_coef, baseline, weights, plain), sums


def _importance(
    objective: RouteObjective, items: Sequence[Item], logps: Tensor, per_item: int = 1
) -> tuple[Tensor, dict[str, float]]:
    """Weights of the samples, `per_item` neighbouring responses weighed together; 1 for what no policy drew."""
    drawn = _drawn(items, logps)
    if objective.importance.mode == "none" or not bool(drawn.any()):
        return torch.ones_like(logps.detach()), {}
    behavior = logps.new_tensor([side.behavior_logp for item in items for side in item.sides])
    behavior = torch.where(drawn > 0, behavior, torch.zeros_like(behavior))
    ratios = importance_weights(
        (logps * drawn).unflatten(0, (-1, per_item)).sum(1),
        behavior.unflatten(0, (-1, per_item)).sum(1),
        mode=objective.importance.mode,
        cap=objective.importance.cap,
    )
    weights = ratios.weights
    return weights, {
        "weighted": float(len(weights)), "weight_sum": float(weights.sum()),
        "weight_square_sum": float(weights.square().sum()), "weight_cut": float(ratios.cut_share) * len(weights),
    }  # fmt: skip


def _drawn(items: Sequence[Item], logps: Tensor) -> Tensor:
    """[R] 1 for samples of the policy, 0 for all other responses."""
    return logps.new_tensor([float(side.from_policy) for item in items for side in item.sides])
