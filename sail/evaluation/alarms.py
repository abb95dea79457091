"""Signs of trouble in the table of rounds, each said once in a sentence."""

import math
from collections.abc import Sequence

from sail.evaluation.numerals import number, share
from sail.evaluation.rounds import RoundRow, round_labels

_FALL_OF_ACCURACY = 0.1
_FALL_OF_EOS_RATE = 0.1
_COLLAPSE = 0.5
_GROWTH_OF_LENGTH = 1.5


def alarms(rows: Sequence[RoundRow]) -> list[str]:
    """What the last evaluated round gives reason to look at; the first evaluated one is the start.

    Over-optimisation: reward under the best round's by two standard errors of the difference (Gao et al.
    2210.10760). On-policy accuracy .1 under its best: SAIL's self-labels feed on it. EOS rate down by .1, distinct
    share halved, length up by half: the usual ways to please a scorer with nothing to say.
    """
    evaluated = [(label, row) for label, row in zip(round_labels(rows), rows, strict=True) if _evaluated(row)]
    if len(evaluated) < 2:
        return []
    (_, first), (_, last) = evaluated[0], evaluated[-1]
    found = (_over_optimised(evaluated), _accuracy_fell(evaluated), *_shape_changed(first, last))
    return [sentence for sentence in found if sentence]


def _evaluated(row: RoundRow) -> bool:
    return "completions/mean_length" in row.metrics or "eval/reward" in row.metrics


def _over_optimised(evaluated: Sequence[tuple[str, RoundRow]]) -> str | None:
    scored = [(label, row.metrics) for label, row in evaluated if "eval/reward" in row.metrics]
    if not scored:
        return None
    best_label, best = max(scored, key=lambda entry: entry[1]["eval/reward"])
    last_label, last = scored[-1]
    error = math.hypot(best.get("eval/reward_se", 0.0), last.get("eval/reward_se", 0.0))
    if best["eval/reward"] - last["eval/reward"] <= 2 * error:
        return None
    return (
        f"Reward fell from {number(best['eval/reward'])} ({best_label}) to {number(last['eval/reward'])} "
        f"({last_label}): over-optimisation, or steps that are too large. The checkpoint of {best_label} is better."
    )


def _accuracy_fell(evaluated: Sequence[tuple[str, RoundRow]]) -> str | None:
    name = "rewards/accuracies_online"
    found = [row.metrics[name] for _, row in evaluated if name in row.metrics]
    if not found or max(found) - found[-1] <= _FALL_OF_ACCURACY:
        return None
    return (
        f"On-policy accuracy of the implicit reward fell from {share(max(found))} to {share(found[-1])}: "
        "labels by the policy itself would be worse, or its samples have become harder to tell apart."
    )


def _shape_changed(first: RoundRow, last: RoundRow) -> list[str | None]:
    def change(name: str) -> tuple[float, float] | None:
        both = name in first.metrics and name in last.metrics
        return (first.metrics[name], last.metrics[name]) if both else None

    eos, distinct, length = (change(f"completions/{name}") for name in ("eos_rate", "distinct_share", "mean_length"))
    return [
        f"Fewer samples end by themselves: {share(eos[0])} at the start, now {share(eos[1])}."
        if eos and eos[0] - eos[1] > _FALL_OF_EOS_RATE else None,
        f"Samples repeat: {share(distinct[0])} were distinct at the start, now {share(distinct[1])}."
        if distinct and distinct[1] < _COLLAPSE * distinct[0] else None,
        f"Responses grew from {length[0]:.1f} to {length[1]:.1f} tokens: compare rewards at equal length."
        if length and length[1] > _GROWTH_OF_LENGTH * length[0] else None,
    ]  # fmt: skip
