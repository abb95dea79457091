"""The gradient of one optimizer step, taken from the update's own step: an optimizer at rate 0 leaves it behind."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sail.core.records import LabelMode
from sail.objectives.baseline import RunningMean
from sail.policy.loading import load_policy
from sail.update.distributed import make_accelerator
from sail.update.items import Item
from sail.update.learners import Learner
from sail.update.objective import RouteObjective
from sail.update.step import Batch, train_step, updated_baselines
from scripts.variance.samples import ONLINE, FreshPairs

MODES: tuple[LabelMode, ...] = ("hard", "sampled", "soft")


@dataclass(frozen=True)
class Terms:
    """A step's gradient by the terms of the label table, each [D] float64; the label and score terms at c = 1."""

    plain: Tensor
    label: Tensor
    score: Tensor

    def at(self, c: float) -> Tensor:
        """The gradient under this sail_coef: it is linear in c."""
        return self.plain + c * (self.label + self.score)


class Stepper:
    """Gradients of batches at the policy that drew them."""

    def __init__(self, pairs: FreshPairs) -> None:
        self.accelerator = make_accelerator(bf16=False)
        self.model = load_policy(pairs.policy, trainable=True).train()
        self.objective, self.settings = pairs.objective, pairs.update

    def terms(self, items: Sequence[Item], mode: LabelMode, baselines: Sequence[float]) -> list[Terms]:
        """Under each baseline: c = 0 leaves the plain term, responses that no policy drew leave the score term out."""
        found, others = [], [_from_data(item) for item in items]
        plain = self.gradient(items, mode, 0.0, 0.0)
        for baseline in baselines:
            without_score = self.gradient(others, mode, 1.0, baseline)
            whole = self.gradient(items, mode, 1.0, baseline)
            found.append(Terms(plain, without_score - plain, whole - without_score))
        return found

    def gradient(self, items: Sequence[Item], mode: LabelMode, c: float, baseline: float) -> Tensor:
        """[D] float64, of the batch's mean loss"""
        self._step(items, mode, c, baseline)
        grads = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        return torch.cat([grad.flatten() for grad in grads]).double()

    def settled_baseline(self, batches: Sequence[Sequence[Item]]) -> float:
        """What the running mean is after steps on these batches, none of which may be measured."""
        known = {ONLINE: RunningMean()}
        start = self.objective.loss.baseline_start(**self.objective.params)
        for items in batches:
            values = self._step(items, "soft", 1.0, known[ONLINE].value(start))
            known = updated_baselines(known, values)
        return known[ONLINE].value(start)

    def _step(self, items: Sequence[Item], mode: LabelMode, c: float, baseline: float) -> dict[str, tuple[float, int]]:
        learner = Learner(self.model, torch.optim.SGD(self.model.parameters(), lr=0.0), max_grad_norm=0.0)
        batch = Batch({ONLINE: items}, {ONLINE: 1 / len(items)})
        objectives = {ONLINE: _objective(self.objective, mode, c)}
        baselines = {ONLINE: baseline}
        _, values = train_step(self.accelerator, {"policy": learner}, batch, objectives, baselines, self.settings)
        return values


def _objective(objective: RouteObjective, mode: LabelMode, c: float) -> RouteObjective:
    labels = objective.settings.labels.replace(mode=mode)
    return replace(objective, settings=objective.settings.replace(labels=labels, sail_coef=c))


def _from_data(item: Item) -> Item:
    return replace(item, sides=tuple(replace(side, from_policy=False) for side in item.sides))
