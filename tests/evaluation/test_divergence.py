"""The KL estimators against exact enumeration."""

from itertools import product
from pathlib import Path

import pytest
import torch

from sail.core.artifacts import Leaf
from sail.core.records import SampleGroup
from sail.evaluation.divergence import kl_between, mean_kl, mean_log_ratio
from sail.policy.logprobs import sequence_kls, sequence_logps
from sail.policy.rows import Row

from .doubles import group, random_groups, tiny_llama

VOCABULARY, LENGTH = 5, 3


def every_response() -> list[SampleGroup]:
    return [group(str(index), [ids]) for index, ids in enumerate(product(range(VOCABULARY), repeat=LENGTH))]


def test_both_estimators_have_the_sequence_kl_as_their_mean() -> None:
    policy, reference = tiny_llama(0, VOCABULARY), tiny_llama(1, VOCABULARY)
    rows = [Row(one.prompt.token_ids, one.samples[0].token_ids) for one in every_response()]
    with torch.no_grad():
        logps, ref_logps = sequence_logps(policy, rows), sequence_logps(reference, rows)
        per_state = sequence_kls(policy, reference, rows)
    exact = float((logps.exp() * (logps - ref_logps)).sum())
    assert float(logps.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    assert exact > 0.1
    assert float((logps.exp() * per_state).sum()) == pytest.approx(exact, abs=1e-5)


def test_mean_kl_is_the_mean_over_samples_however_they_are_split() -> None:
    policy, reference, groups = tiny_llama(0), tiny_llama(1), random_groups(5, 2, seed=0)
    rows = [Row(one.prompt.token_ids, sample.token_ids) for one in groups for sample in one.samples]
    with torch.no_grad():
        expected = sum(float(sequence_kls(policy, reference, [row])[0]) for row in rows) / len(rows)
    assert mean_kl(policy, reference, groups, max_tokens=8) == pytest.approx(expected, rel=1e-5)
    assert mean_kl(policy, reference, groups, max_tokens=4096) == pytest.approx(expected, rel=1e-5)
    assert expected > 0


def test_equal_models_have_no_divergence() -> None:
    assert mean_kl(tiny_llama(0), tiny_llama(0), random_groups(3, 2, seed=0)) == 0.0


def test_an_empty_response_adds_nothing() -> None:
    one, with_empty = [group("a", [(3, 2)])], [group("a", [(3, 2), ()])]
    policy, reference = tiny_llama(0), tiny_llama(1)
    assert mean_kl(policy, reference, with_empty) == pytest.approx(mean_kl(policy, reference, one) / 2)
    assert mean_kl(policy, reference, [group("a", [()])]) == 0.0


def test_the_same_checkpoint_twice_is_zero_and_never_loaded() -> None:
    nowhere = Leaf(Path("/no/such/folder"), "key")
    assert kl_between(nowhere, nowhere, random_groups(1, 1, seed=0), bf16=False, max_tokens=64) == 0.0


def test_the_log_ratio_by_hand() -> None:
    assert mean_log_ratio({"a": -1.0, "b": -2.0}, {"b": -2.5, "a": -3.0}) == pytest.approx(1.25)
