"""Entropy and top-1 by tiles of the head: those of the plain softmax."""

import math

import pytest
import torch

from sail.policy.logprobs import full_logits_logps, response_logits, token_logps
from tests.policy.oracle import tiny_encoder_decoder, tiny_model
from tests.policy.row_patterns import PATTERNS


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite", "t5"])
def test_entropy_and_top_1_are_those_of_the_whole_softmax(kind: str) -> None:
    model = tiny_encoder_decoder(kind) if kind == "t5" else tiny_model(kind, initializer_range=0.5)
    rows = PATTERNS["ragged groups"]
    with torch.no_grad():
        logits, targets, _ = response_logits(model, rows)
    logps = torch.log_softmax(logits.double(), dim=-1)
    likeliest = logps.argmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    assert float(entropy.mean()) < 0.98 * math.log(logits.shape[-1]), "not uniform"

    for scored in (token_logps(model, rows, statistics=True), full_logits_logps(model, rows, statistics=True)):
        assert scored.statistics is not None
        torch.testing.assert_close(scored.statistics.entropy.double(), entropy, rtol=0, atol=2e-5)
        assert torch.equal(scored.statistics.is_likeliest, (targets == likeliest).float())
        assert not scored.statistics.entropy.requires_grad
    assert token_logps(model, rows).statistics is None


def test_a_token_the_policy_finds_likeliest_counts_wherever_its_tile_lies() -> None:
    model, rows = tiny_model("llama", initializer_range=0.2), PATTERNS["a pair"]
    targets = [response_logits(model, [row])[0].argmax(-1)[:1].tolist() for row in rows]
    likeliest = [row._replace(response_ids=tuple(target)) for row, target in zip(rows, targets, strict=True)]
    scored = token_logps(model, likeliest, statistics=True)
    assert scored.statistics is not None and scored.statistics.is_likeliest.tolist() == [1.0] * len(rows)
