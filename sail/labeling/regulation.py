"""The regulation of labels: steps between labelling and update, each a pure function of the table of labels.

A step returns the pairs it keeps, in their order, some with another label. What it did to a pair is written into the
pair (`steps`), how often it did it into the manifest. The rows of REGULATIONS say which steps leave pairs out: those
bias the score term, which is an expectation over every pair the policy draws.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sail.core.labeler_settings import (
    Cap,
    Disagreement,
    DropNearTies,
    LengthMatched,
    RegulationStep,
    Smooth,
    Temper,
)
from sail.core.records import content_hash
from sail.labeling.candidates import Candidate
from sail.labeling.labels import Label, Opinion, sigmoid, winner_of

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """A row of the table."""

    candidate: Candidate
    opinion: Opinion
    label: Label
    draw: float
    steps: tuple[str, ...] = ()


Others = Mapping[str, Mapping[str, Opinion]]
"""labeler -> pair id -> what it says of the pair"""
Table = Sequence[LabelledPair]


class Regulation(NamedTuple):
    """A row of REGULATIONS."""

    apply: Callable[[Table, Any, Others], list[LabelledPair]]
    dropped: str | None  # the metric that counts the pairs it leaves out; None: it leaves none out
    changed: str | None  # the metric that counts the labels it changes; None: it changes none


def regulate(table: Table, steps: Sequence[RegulationStep], others: Others) -> tuple[list[LabelledPair], Counter[str]]:
    """The table after all steps, and the counts by the names of sail.core.metrics."""
    rows, counts = list(table), Counter[str]()
    for step in steps:
        row, size = REGULATIONS[step.step], len(rows)
        before = {pair.candidate.pair_id: pair for pair in rows}
        after = row.apply(rows, step, others)
        rows = [_recorded(pair, before[pair.candidate.pair_id], step) for pair in after]
        if row.dropped is not None:
            counts[row.dropped] += size - len(rows)
        if row.changed is not None:
            counts[row.changed] += sum(pair.label.p_a != before[pair.candidate.pair_id].label.p_a for pair in rows)
    return rows, counts


def drops_pairs(step: RegulationStep) -> bool:
    """Whether the step, set as it is, leaves pairs out."""
    if isinstance(step, Disagreement):
        return step.do == "drop"
    return REGULATIONS[step.step].dropped is not None


def changes_labels(step: RegulationStep) -> bool:
    """Whether the step, set as it is, changes a p."""
    if isinstance(step, Disagreement):
        return step.do == "soften"
    return REGULATIONS[step.step].changed is not None


def temper(table: Table, step: Temper, others: Others) -> list[LabelledPair]:
    """p = sigmoid(logit(p) / temperature); 0, 1/2 and 1 stay."""
    return _with_p(table, lambda p: p if p in (0.0, 1.0) else sigmoid(math.log(p / (1 - p)) / step.temperature))


def smooth(table: Table, step: Smooth, others: Others) -> list[LabelledPair]:
    """p = (1 - epsilon) p + epsilon (1 - p): the labels of conservative DPO (Mitchell 2023)."""
    return _with_p(table, lambda p: (1 - step.epsilon) * p + step.epsilon * (1 - p))


def cap(table: Table, step: Cap, others: Others) -> list[LabelledPair]:
    """p = min(max(p, 1 - confidence), confidence)."""
    return _with_p(table, lambda p: min(max(p, 1 - step.confidence), step.confidence))


def drop_near_ties(table: Table, step: DropNearTies, others: Others) -> list[LabelledPair]:
    """Keeps |p - 1/2| >= margin."""
    return [pair for pair in table if abs(pair.label.p_a - 0.5) >= step.margin]


def length_matched(table: Table, step: LengthMatched, others: Others) -> list[LabelledPair]:
    """Keeps max(length) <= ratio min(length), lengths in tokens."""

    def matched(pair: LabelledPair) -> bool:
        short, long = sorted((len(pair.candidate.a.token_ids), len(pair.candidate.b.token_ids)))
        return long <= step.ratio * short

    return [pair for pair in table if matched(pair)]


def disagreement(table: Table, step: Disagreement, others: Others) -> list[LabelledPair]:
    """Where another labeler names the other winner: the pair goes, or p becomes the mean of both labelers' p.

    A winner without a probability counts as 1 or 0. Ties, abstentions and errors contradict nobody.
    """
    kept = []
    for pair in table:
        other = others[step.other][pair.candidate.pair_id]
        if {pair.label.verdict, other.winner} != {"A", "B"}:
            kept.append(pair)
        elif step.do == "soften":
            p_other = other.p_a if other.p_a is not None else float(other.winner == "A")
            kept.append(_labelled(pair, (pair.label.p_a + p_other) / 2))
    return kept


def deduplicate(table: Table, step: Any, others: Others) -> list[LabelledPair]:
    """Of pairs with the same words in prompt and both responses, upper and lower case alike, the first stays."""
    first: dict[str, LabelledPair] = {}
    for pair in table:
        first.setdefault(_words(pair.candidate), pair)
    return list(first.values())


REGULATIONS: dict[str, Regulation] = {
    "temper": Regulation(temper, None, "labels/changed_temper"),
    "smooth": Regulation(smooth, None, "labels/changed_smooth"),
    "cap": Regulation(cap, None, "labels/changed_cap"),
    "drop_near_ties": Regulation(drop_near_ties, "labels/dropped_near_ties", None),
    "length_matched": Regulation(length_matched, "labels/dropped_length", None),
    "disagreement": Regulation(disagreement, "labels/dropped_disagreement", "labels/changed_disagreement"),
    "deduplicate": Regulation(deduplicate, "labels/dropped_duplicates", None),
}


def _with_p(table: Table, new: Callable[[float], float]) -> list[LabelledPair]:
    return [_labelled(pair, new(pair.label.p_a)) for pair in table]


def _labelled(pair: LabelledPair, p_a: float) -> LabelledPair:
    return LabelledPair(pair.candidate, pair.opinion, Label(winner_of(p_a, 0.5), p_a), pair.draw, pair.steps)


def _recorded(pair: LabelledPair, before: LabelledPair, step: RegulationStep) -> LabelledPair:
    if pair.label.p_a == before.label.p_a:
        return pair
    settings = " ".join(f"{name}={value}" for name, value in step.recipe().items() if name != "step")
    told = f"{step.step} {settings}: {before.label.p_a:.6g} -> {pair.label.p_a:.6g}"
    return LabelledPair(pair.candidate, pair.opinion, pair.label, pair.draw, (*pair.steps, told))


def _words(candidate: Candidate) -> str:
    def words(text: str) -> list[str]:
        return _WORD.findall(text.lower())

    responses = sorted((words(candidate.a.text), words(candidate.b.text)))
    return content_hash([[words(turn["content"]) for turn in candidate.prompt.messages], responses])
