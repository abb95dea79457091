"""Signs of trouble in the table of rounds, each said once in a sentence."""

import math
from collections.abc import Sequence

from sail.evaluation.numerals import number, share
from sail.evaluation.rounds import RoundRow, round_labels

_FALL_OF_ACCURACY = 0.1
_FALL_OF_EOS_RATE = 0.1
_COLLAPSE = 0.5
_GROWTH_OF_LENGTH = 1.5
_REWARD = "eval/reward/"


def alarms(rows: Sequence[RoundRow]) -> list[str]:
    """What the last evaluated round gives reason to look at; the first evaluated one is the start.

    Over-optimisation: reward under the best round's by two standard errors of the difference (Gao et al.
    2210.10760). On-policy accuracy .1 under its best: SAIL's self-labels feed on it. EOS rate down by .1, distinct
    share halved, length up by half: the usual ways to please a scorer with nothing to say.
    """
    found = (*over_optimisation(rows), *_shape(rows))
    return [sentence for sentence in found if sentence]


def over_optimisation(rows: Sequence[RoundRow]) -> list[str]:
    """The alarms that may stop a run (evaluation.stop_on_alarm): what is optimised parts from what it stands for.

    The headline reward falls; one scorer rises and another falls, both since the same round and by two standard
    errors of the difference (Gao et al. 2210.10760: the proxy rises while the gold reward falls); or accuracy on the
    policy's samples falls by .1.
    """
    evaluated = _evaluated_rows(rows)
    if len(evaluated) < 2:
        return []
    found = (_over_optimised(evaluated), _scorers_part(evaluated), _accuracy_fell(evaluated))
    return [sentence for sentence in found if sentence]


def _shape(rows: Sequence[RoundRow]) -> list[str | None]:
    evaluated = _evaluated_rows(rows)
    return _shape_changed(evaluated[0][1], evaluated[-1][1]) if len(evaluated) > 1 else []


def _evaluated_rows(rows: Sequence[RoundRow]) -> list[tuple[str, RoundRow]]:
    return [(label, row) for label, row in zip(round_labels(rows), rows, strict=True) if _evaluated(row)]


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


def _scorers_part(evaluated: Sequence[tuple[str, RoundRow]]) -> str | None:
    """Two scorers, one up and one down since the round in which the falling one stood highest."""
    _, last = evaluated[-1]
    names = [name.removeprefix(_REWARD) for name in last.metrics if name.startswith(_REWARD)]
    for falling in names:
        scored = [(label, row) for label, row in evaluated if _REWARD + falling in row.metrics]
        label, best = max(scored, key=lambda entry: entry[1].metrics[_REWARD + falling])
        risen = [name for name in names if _moved(name, best, last) > 0]
        if _moved(falling, best, last) < 0 and risen:
            return (
                f"Since {label} the reward by {', '.join(risen)} rose and that by {falling} fell: over-optimisation. "
                f"The checkpoint of {label} is better by {falling}."
            )
    return None


def _moved(scorer: str, before: RoundRow, after: RoundRow) -> int:
    """+1 up, -1 down, 0 where it stayed within two standard errors of the difference, or is not known."""
    name, errors = _REWARD + scorer, f"eval/reward_se/{scorer}"
    if name not in before.metrics or name not in after.metrics:
        return 0
    change = after.metrics[name] - before.metrics[name]
    noise = 2 * math.hypot(before.metrics.get(errors, 0.0), after.metrics.get(errors, 0.0))
    return 0 if abs(change) <= noise else (1 if change > 0 else -1)


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
