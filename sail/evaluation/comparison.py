"""Arms under the same seeds, compared: means with standard errors, and differences paired by seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sail.evaluation.numerals import number, share

FRONTIER = "frontier"  # the best eval/reward among checkpoints with objective/kl up to a limit

# Student's t, the 0.975 quantile for 1, 2, ... 30 degrees of freedom
_T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
    2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484,
    2.0452, 2.0423,
)  # fmt: skip
_Z_975 = 1.959964

Metrics = Mapping[str, float]


class Headline(NamedTuple):
    """A metric of the comparison: its name, its heading on two short lines, the form of a value."""

    metric: str
    heading: str
    form: Callable[[float], str]


HEADLINES: tuple[Headline, ...] = (
    Headline("eval/reward", "Reward", number),
    Headline(FRONTIER, "Best under\nKL limit", number),
    Headline("objective/kl", "KL\nnats", number),
    Headline("eval/win_rate", "Win\nrate", share),
    Headline("completions/mean_length", "Length\ntokens", "{:,.1f}".format),
    Headline("rewards/accuracies_online", "Accuracy\non-policy", share),
    Headline("rewards/accuracies_offline", "Accuracy\ndataset", share),
    Headline("sail/importance_ess", "Effective\nsamples", share),
)


@dataclass(frozen=True, slots=True)
class ArmResults:
    """What an arm came to, by seed. rounds: its evaluations in their order; spent: what it used up; targets: of
    conditional alignment, the last evaluation at each."""

    arm: str
    rounds: Mapping[int, Sequence[Metrics]]
    spent: Mapping[int, Metrics]
    targets: Mapping[int, Mapping[str, Metrics]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of all arms that have any."""

    title: str
    compare_to: str
    seeds: Sequence[int]
    arms: Sequence[ArmResults]
    kl_limit: float | None = None

    def headlines(self) -> list[Headline]:
        """The metrics that some run has."""
        final = [self.final(arm, seed) for arm in self.arms for seed in arm.rounds]
        return [headline for headline in HEADLINES if any(headline.metric in metrics for metrics in final)]

    def final(self, arm: ArmResults, seed: int) -> dict[str, float]:
        """The last evaluation of a run, and the frontier of all of them."""
        rounds = arm.rounds[seed]
        under = [metrics["eval/reward"] for metrics in rounds if self._under_limit(metrics)]
        return dict(rounds[-1]) | ({FRONTIER: max(under)} if under else {})

    def _under_limit(self, metrics: Metrics) -> bool:
        known = {"eval/reward", "objective/kl"} <= metrics.keys()
        return self.kl_limit is not None and known and metrics["objective/kl"] <= self.kl_limit

    def values(self, arm: ArmResults, metric: str) -> dict[int, float]:
        """The metric by seed, of the seeds that have it."""
        finals = {seed: self.final(arm, seed) for seed in arm.rounds}
        return {seed: metrics[metric] for seed, metrics in finals.items() if metric in metrics}

    def differences(self, arm: ArmResults, metric: str) -> dict[int, float]:
        """The metric minus that of compare_to under the same seed; empty for compare_to itself."""
        against = next((other for other in self.arms if other.arm == self.compare_to), None)
        if against is None or arm.arm == self.compare_to:
            return {}
        others = self.values(against, metric)
        return {seed: value - others[seed] for seed, value in self.values(arm, metric).items() if seed in others}


class Estimate(NamedTuple):
    """A mean over n seeds; standard error and 95 % interval are None for a single one."""

    mean: float
    se: float | None
    low: float | None
    high: float | None
    n: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean, sd / sqrt(n) with n - 1 in the sd, and mean -+ t_{.975, n-1} se; None without values.

    The t interval assumes that seeds are independent draws of something near normal. A percentile bootstrap of
    three seeds has ten different resamples and is far too narrow, so there is none.
    """
    n = len(values)
    if n == 0:
        return None
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, None, None, None, 1)
    se = float(np.std(values, ddof=1)) / math.sqrt(n)
    reach = t_quantile(n - 1) * se
    return Estimate(mean, se, mean - reach, mean + reach, n)


def t_quantile(degrees: int) -> float:
    """The 0.975 quantile of Student's t with `degrees` >= 1 degrees of freedom.

    Beyond 30 by Cornish and Fisher's expansion, z + (z^3 + z) / 4v + (5 z^5 + 16 z^3 + 3 z) / 96 v^2.
    """
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = _Z_975
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything the tables show, and the values of every seed behind it."""
    metrics = [headline.metric for headline in comparison.headlines()]
    return {
        "title": comparison.title,
        "compare_to": comparison.compare_to,
        "seeds": list(comparison.seeds),
        "kl_limit": comparison.kl_limit,
        "arms": {
            arm.arm: {
                "metrics": {metric: _entry(comparison, arm, metric) for metric in metrics},
                "rounds": {str(seed): [dict(turn) for turn in turns] for seed, turns in arm.rounds.items()},
                "spent": {str(seed): dict(spent) for seed, spent in arm.spent.items()},
                "targets": {str(seed): dict(swept) for seed, swept in arm.targets.items() if swept},
            }
            for arm in comparison.arms
        },
    }


def _entry(comparison: Comparison, arm: ArmResults, metric: str) -> dict[str, Any]:
    values, differences = comparison.values(arm, metric), comparison.differences(arm, metric)
    found, paired = estimate(list(values.values())), estimate(list(differences.values()))
    return {
        "seeds": {str(seed): value for seed, value in values.items()},
        "estimate": None if found is None else found._asdict(),
        "difference": None if paired is None else paired._asdict(),
    }
