"""The one log-prob path: equal to a plain forward, whatever the padding, the order and the microbatch."""

from pathlib import Path

import pytest
import torch

from sail.policy.logprobs import sequence_kls, sequence_logps, token_logps
from sail.policy.rows import Row, split_by_tokens
from tests.serving_fixtures import TinyPolicy, make_tiny_policy

ROWS = [Row((5, 6, 7), (8, 9, 2)), Row((5,), (11, 2)), Row((9, 8, 7, 6, 5), (4,)), Row((3, 4), (5, 6, 7, 8, 2))]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> TinyPolicy:
    return make_tiny_policy(tmp_path_factory.mktemp("policy") / "model", seed=1, tied=False)


def test_token_log_probs_equal_a_forward_of_the_row_alone(policy: TinyPolicy) -> None:
    tokens = token_logps(policy.model, ROWS)
    for index, row in enumerate(ROWS):
        alone = torch.tensor(policy.score(row.prompt_ids, row.response_ids))
        torch.testing.assert_close(tokens.logps[tokens.row_index == index], alone, atol=2e-5, rtol=0)


def test_a_sequence_log_prob_is_the_float64_sum_of_its_tokens(policy: TinyPolicy) -> None:
    logps = sequence_logps(policy.model, ROWS)
    assert logps.dtype == torch.float64
    expected = [sum(policy.score(*row)) for row in ROWS]
    torch.testing.assert_close(logps, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)


def test_prompt_tokens_and_padding_count_nothing(policy: TinyPolicy) -> None:
    alone = sequence_logps(policy.model, [ROWS[1]])
    beside_a_long_one = sequence_logps(policy.model, [ROWS[1], Row(tuple(range(3, 60)), (4, 5))])
    torch.testing.assert_close(alone[0], beside_a_long_one[0], atol=1e-5, rtol=0)


def test_the_gradient_of_a_weighted_sum_does_not_depend_on_the_split(policy: TinyPolicy) -> None:
    weights = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    (weights * sequence_logps(policy.model, ROWS)).sum().backward()
    whole = [weight.grad.clone() for weight in policy.model.parameters()]
    policy.model.zero_grad()
    for index, row in enumerate(ROWS):
        (weights[index] * sequence_logps(policy.model, [row])[0]).backward()
    for split, together in zip(policy.model.parameters(), whole, strict=True):
        torch.testing.assert_close(split.grad, together, atol=1e-4, rtol=1e-4)
    policy.model.zero_grad()


def test_kl_is_zero_to_itself_and_positive_to_another(policy: TinyPolicy, tmp_path: Path) -> None:
    other = make_tiny_policy(tmp_path / "other", seed=2, tied=False)
    with torch.no_grad():
        assert float(sequence_kls(policy.model, policy.model, ROWS).abs().max()) == 0.0
        assert bool((sequence_kls(policy.model, other.model, ROWS) > 0).all())


def test_microbatches_hold_every_item_once_within_the_budget() -> None:
    widths = [7, 3, 3, 9, 1, 12, 5]
    batches = split_by_tokens(widths, budget=18, members=2)
    assert sorted(index for batch in batches for index in batch) == list(range(len(widths)))
    for batch in batches:
        assert len(batch) == 1 or 2 * len(batch) * max(widths[index] for index in batch) <= 18
    assert split_by_tokens(widths, budget=1) == [[5], [3], [0], [6], [1], [2], [4]]
