"""What the samples look like: length, endings, and signs of collapse."""

from collections.abc import Mapping, Sequence

import numpy as np

from sail.core.records import SampleGroup, ScoredGroup


def completion_metrics(groups: Sequence[SampleGroup]) -> dict[str, float]:
    """mean_length (tokens, EOS included), eos_rate and the two distinct shares, by metric name."""
    samples = [sample for group in groups for sample in group.samples]
    return {
        "completions/mean_length": float(np.mean([len(sample.token_ids) for sample in samples])),
        "completions/eos_rate": float(np.mean([sample.finished for sample in samples])),
        "completions/distinct_share": distinct_share([sample.token_ids for sample in samples]),
        "completions/distinct_share_per_prompt": float(
            np.mean([distinct_share([sample.token_ids for sample in group.samples]) for group in groups])
        ),
    }


def distinct_share(responses: Sequence[tuple[int, ...]]) -> float:
    """Different token sequences over sequences, in (0, 1].

    Over one prompt's responses it falls when the policy repeats itself there, over all responses also when it says
    the same to every prompt.
    """
    return len(set(responses)) / len(responses)


def nats_per_token(groups: Sequence[SampleGroup], logps: Mapping[str, float]) -> float | None:
    """- sum log pi(y|x) / tokens over samples y ~ pi: per-token entropy, nats; None without tokens."""
    samples = [sample for group in groups for sample in group.samples]
    tokens = sum(len(sample.token_ids) for sample in samples)
    return -sum(logps[sample.response_id] for sample in samples) / tokens if tokens else None


def length_correlation(groups: Sequence[SampleGroup], scored: Sequence[ScoredGroup]) -> float | None:
    """Pearson correlation of tokens and score over all samples, in [-1, 1]; None where one of them is constant."""
    lengths = {sample.response_id: len(sample.token_ids) for group in groups for sample in group.samples}
    pairs = [(lengths[id_], score) for row in scored for id_, score in zip(row.response_ids, row.scores, strict=True)]
    lengths_N, scores_N = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    if len(pairs) < 2 or np.ptp(lengths_N) == 0.0 or np.ptp(scores_N) == 0.0:
        return None
    return float(np.corrcoef(lengths_N, scores_N)[0, 1])
