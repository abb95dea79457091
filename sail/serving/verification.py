"""The proof that a server samples from the weights it was given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sail.core.run_settings import VllmSettings
from sail.serving.client import Completion, CompletionRequest, ServerClient
from sail.serving.errors import ServerError, WeightSyncError
from sail.serving.probes import Probe
from sail.serving.served_policy import Score

_PROBE_SALT = "sail-probe"  # never the version: a stale prefix cache must be found, not stepped round
_TOLERANCES = {"float32": 1e-3}  # engine and trainer differ by 2e-5 in float32
_LOW_PRECISION_TOLERANCE = 0.5
_QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class SyncReport:
    """How far the server's log-probs are from the trainer's on the probes' greedy tokens."""

    max_abs_nats: float
    quantiles: dict[float, float]  # of |server - trainer|, nats
    greedy_equal: bool  # asked twice, cold and from the prefix cache, it gives the same tokens
    num_tokens: int


def verify_weights(
    client: ServerClient, version: str, probes: Sequence[Probe], score: Score, *, tolerance_nats: float
) -> SyncReport:
    """Compare greedy tokens' log-probs with `score`, the trainer's; WeightSyncError above the tolerance.

    Each probe is asked twice, so that the answer from the prefix cache is checked as well.
    """
    try:
        cold, warm = _ask(client, probes), _ask(client, probes)
    except ServerError as error:
        raise WeightSyncError(f"version {version} was not verified: {error}") from error
    answers = [*zip(probes, cold, strict=True), *zip(probes, warm, strict=True)]
    asked = {(probe.prompt_ids, answer.token_ids) for probe, answer in answers}
    expected = {(prompt_ids, token_ids): score(prompt_ids, token_ids) for prompt_ids, token_ids in asked}
    gaps = np.array([
        gap
        for probe, answer in answers
        for gap in _gaps(answer, expected[probe.prompt_ids, answer.token_ids])
    ])  # fmt: skip
    report = SyncReport(
        max_abs_nats=float(gaps.max()),
        quantiles={q: float(np.quantile(gaps, q)) for q in _QUANTILES},
        greedy_equal=all(a.token_ids == b.token_ids for a, b in zip(cold, warm, strict=True)),
        num_tokens=len(gaps),
    )
    if not report.max_abs_nats <= tolerance_nats:  # also when it is NaN
        raise WeightSyncError(
            f"version {version}: server and trainer differ by {report.max_abs_nats:.3g} nats "
            f"on {report.num_tokens} probe tokens (tolerance {tolerance_nats:g}, vllm.verify_tolerance)"
        )
    return report


def tolerance_nats(settings: VllmSettings, dtype: str) -> float:
    """vllm.verify_tolerance, or what the server's number format allows."""
    return settings.verify_tolerance or _TOLERANCES.get(dtype, _LOW_PRECISION_TOLERANCE)


def _ask(client: ServerClient, probes: Sequence[Probe]) -> list[Completion]:
    requests = [
        CompletionRequest(probe.prompt_ids, 1, 0, probe.max_tokens, temperature=0.0, cache_salt=_PROBE_SALT)
        for probe in probes
    ]
    answers = dict(client.complete_many(requests))
    return [answers[position][0] for position in range(len(requests))]


def _gaps(answer: Completion, expected: Sequence[float]) -> list[float]:
    if len(expected) != len(answer.token_ids):
        raise ValueError(f"score returned {len(expected)} log-probs for {len(answer.token_ids)} tokens")
    differences = (abs(a - b) for a, b in zip(answer.logprobs, expected, strict=True))
    return [math.inf if math.isnan(gap) else gap for gap in differences]
