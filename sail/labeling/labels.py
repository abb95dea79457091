"""From an opinion to a label: who wins, with which probability, by which mode.

The first column is what a loss reads as p_a when the pair's source is 'others'; u is the pair's stored draw:

    hard      p_a = 1 if A is better, 0 if B is, 1/2 for a tie           verdict A, B or tie
    sampled   p_a = 1[u < p]                                             verdict A or B
    soft      p_a = p                                                    verdict by p against 1/2

Labels by the policy that stay fresh are made in the update, at the parameters of that step. Their pair records
p_a = q for information; its verdict is the draw 1[u < q], for hard labels the likelier side (a tie goes by u < 1/2).
"""

import math
from typing import Literal, NamedTuple

from sail.core.errors import UserError
from sail.core.records import LabelMode, LabelSource, Verdict

Winner = Literal["A", "B", "tie"]


class Opinion(NamedTuple):
    """What a labeler says of a candidate: Opinion("A", p_a=0.73, score_a=1.5, score_b=0.5).

    Of an abstention or an error no label is made.
    """

    winner: Verdict
    p_a: float | None  # P(A beats B); None where the labeler only names a winner
    score_a: float | None
    score_b: float | None

    @property
    def decided(self) -> bool:
        """Whether there is a label in it."""
        return self.winner not in ("abstain", "error")

    @property
    def margin(self) -> float | None:
        """|s_a - s_b|, None without scores."""
        return None if self.score_a is None or self.score_b is None else abs(self.score_a - self.score_b)


class Label(NamedTuple):
    verdict: Verdict
    p_a: float


def label(opinion: Opinion, mode: LabelMode, source: LabelSource, draw: float, *, where: str = "") -> Label:
    """The label of one pair (the table above). UserError where mode needs a probability and there is none."""
    if source == "fresh":
        return _fresh(opinion, mode, draw)
    if mode == "hard":
        return Label(opinion.winner, {"A": 1.0, "B": 0.0, "tie": 0.5}[opinion.winner])
    p_a = _probability(opinion, mode, where)
    if mode == "sampled":
        return Label("A", 1.0) if draw < p_a else Label("B", 0.0)
    return Label(winner_of(p_a, 0.5), p_a)


def _fresh(opinion: Opinion, mode: LabelMode, draw: float) -> Label:
    q_a = _probability(opinion, mode, "")
    if mode != "hard":
        return Label("A" if draw < q_a else "B", q_a)
    tie_break: Verdict = "A" if draw < 0.5 else "B"
    return Label(tie_break if opinion.winner == "tie" else opinion.winner, q_a)


def _probability(opinion: Opinion, mode: LabelMode, where: str) -> float:
    if opinion.p_a is None:
        raise UserError(
            f"label mode '{mode}' needs scores of both responses, the dataset has none for some pairs", where=where,
            cure="Use label_mode: hard, add score_chosen and score_rejected to the data, or label by a reward model",
        )  # fmt: skip
    return opinion.p_a


def by_scores(score_a: float, score_b: float, temperature: float) -> Opinion:
    """Bradley-Terry 1952: P(A beats B) = sigmoid((s_a - s_b) / temperature); equal scores tie, nan is an error."""
    if math.isnan(score_a) or math.isnan(score_b):
        return Opinion("error", None, None, None)
    return Opinion(winner_of(score_a, score_b), sigmoid((score_a - score_b) / temperature), score_a, score_b)


def winner_of(a: float, b: float) -> Winner:
    if a == b:
        return "tie"
    return "A" if a > b else "B"


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow at either end."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))
