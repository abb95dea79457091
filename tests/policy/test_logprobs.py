"""The one log-prob path: equal to a plain forward, whatever the padding, the order and the microbatch."""

from pathlib import Path

import pytest
import torch

from sail.policy.logprobs import microbatches, sequence_kls, sequence_logps, token_logps
from sail.policy.rows import Row, split_by_tokens
from sail.policy.trees import tree_rows
from tests.policy.oracle import tiny_model
from tests.policy.row_patterns import PATTERNS
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


@pytest.mark.parametrize("budget", [1, 20, 30, 60, 500])
def test_a_budget_counts_the_tokens_that_a_forward_pass_of_trees_runs(budget: int) -> None:
    rows = PATTERNS["ragged groups"]
    items = [[rows[0], rows[1]], [rows[2]], [rows[3], rows[4]], [rows[4], rows[5]], [rows[6]], [rows[7], rows[9]]]
    batches = microbatches(tiny_model("llama"), items, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(items)))

    def run(batch: list[int]) -> int:
        flat = [row for index in batch for row in items[index]]
        return int(tree_rows(flat, torch.device("cpu")).inputs["input_ids"].numel())

    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        assert run(batch) <= budget or len(batch) == 1
        if following:  # no microbatch ends while there is room
            assert run([*batch, following[0]]) > budget
    if budget == 500:
        assert len(batches) == 1


def test_responses_of_one_prompt_meet_in_a_microbatch_wherever_they_stand() -> None:
    rows = PATTERNS["sides apart"]
    batches = microbatches(tiny_model("llama"), [[row] for row in rows], 15)
    together = [{tuple(rows[index].prompt_ids) for index in batch} for batch in batches]
    assert len(batches) == 2
    assert all(len(prompts) == 1 for prompts in together)


def test_a_model_without_trees_counts_padded_tokens() -> None:
    items = [[row] for row in PATTERNS["ragged groups"]]
    widths = [row.num_tokens for row in PATTERNS["ragged groups"]]
    assert microbatches(tiny_model("gpt2"), items, 40) == split_by_tokens(widths, 40)
