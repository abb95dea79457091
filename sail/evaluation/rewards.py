"""External rewards of samples: their mean over held-out prompts and how sure it is."""

import math
from collections.abc import Sequence

import numpy as np

from sail.core.errors import UserError
from sail.core.records import SampleGroup, ScoredGroup


def check_scores(groups: Sequence[SampleGroup], scored: Sequence[ScoredGroup], scorer: str) -> None:
    """Every response has one score, and the score is a number.

    Raises UserError for a score that is nan or infinite, ValueError where the ids of samples and scores differ.
    """
    for row in scored:
        for response_id, score in zip(row.response_ids, row.scores, strict=True):
            if not math.isfinite(score):
                raise UserError(
                    f"scorer {scorer!r} gave {score} for response {response_id}", where="evaluation.scorers",
                    cure="A scorer must return a finite number for every response",
                )  # fmt: skip
    sampled = {sample.response_id for group in groups for sample in group.samples}
    with_score = {response_id for row in scored for response_id in row.response_ids}
    if sampled != with_score:
        raise ValueError(
            f"scorer {scorer!r}: {len(sampled - with_score)} responses without a score, "
            f"{len(with_score - sampled)} scores without a response"
        )


def mean_reward(scored: Sequence[ScoredGroup]) -> float:
    """mean over prompts of the mean score of the prompt's responses, in the scorer's unit."""
    return float(_prompt_means(scored).mean())


def reward_standard_error(scored: Sequence[ScoredGroup]) -> float | None:
    """sd(prompt means) / sqrt(P), with P - 1 in the sd; None for fewer than two prompts.

    Responses to one prompt are not independent, prompts are.
    """
    means_P = _prompt_means(scored)
    return float(means_P.std(ddof=1) / math.sqrt(len(means_P))) if len(means_P) > 1 else None


def _prompt_means(scored: Sequence[ScoredGroup]) -> np.ndarray:
    return np.array([np.mean(row.scores) for row in scored], dtype=np.float64)
