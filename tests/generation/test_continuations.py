"""Logits of responses on their way are those of whole rows, however prompts and samples are kept."""

from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch

from sail.generation.continuations import continuation
from sail.policy.decoding import SharedPrompts
from tests.policy.oracle import VOCAB, plain_logits, tiny_model
from tests.policy.test_architectures import PADDED, TREES

PROMPTS = [(5, 9, 7, 8, 3), (4,), (6, 5, 11)]


@torch.no_grad()
def assert_equals_whole_rows(
    kind: str, prompts: Sequence[Sequence[int]], counts: Sequence[int], num_tokens: int = 5
) -> None:
    model = tiny_model(kind).eval()
    draw = torch.Generator().manual_seed(0)
    responses = torch.randint(3, VOCAB, (sum(counts), num_tokens), generator=draw)
    found = continuation(model, prompts, counts)
    steps = []
    for tokens in responses.T:
        steps.append(found.next_logits())
        found.advance(tokens)
    first = [0, *accumulate(counts)]
    for prompt, start, end in zip(prompts, first[:-1], first[1:], strict=True):
        for sample in range(start, end):
            expected = plain_logits(model, prompt, responses[sample].tolist())
            torch.testing.assert_close(torch.stack(steps, 1)[sample], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [*TREES, *PADDED])
def test_every_architecture_goes_on_from_prompts_of_any_length(kind: str) -> None:
    assert_equals_whole_rows(kind, PROMPTS, [2, 2, 2])


@pytest.mark.parametrize("counts", [[3, 1, 2], [1, 1, 1]])
def test_prompts_may_have_different_numbers_of_samples(counts: list[int]) -> None:
    assert_equals_whole_rows("llama", PROMPTS, counts)


def test_prompts_of_one_length_need_no_mask() -> None:
    assert_equals_whole_rows("qwen3", [(5, 9, 7), (4, 4, 8)], [2, 2])


def test_responses_outgrow_the_first_buffer() -> None:
    assert_equals_whole_rows("llama", PROMPTS[:1], [2], num_tokens=70)


def test_the_keys_of_a_prompt_are_held_once_for_all_its_samples() -> None:
    model = tiny_model("llama").eval()
    with torch.no_grad():
        found = continuation(model, PROMPTS, [4, 4, 4])
    shared: SharedPrompts = found.shared  # type: ignore[attr-defined]
    assert [layer.keys.shape for layer in shared.layers.values()] == [(3, 2, 5, 8)] * 2  # prompts, heads, longest, D


def test_a_prompt_passes_the_last_layer_at_its_last_token_alone() -> None:
    model, rows = tiny_model("llama").eval(), list[int]()
    model.model.layers[-1].mlp.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[1]))
    with torch.no_grad():
        continuation(model, PROMPTS, [2, 2, 2]).advance(torch.full((6,), 7))
    assert rows == [3, 6]
