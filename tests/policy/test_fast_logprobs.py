"""Trees and the fused head together: a plain float64 forward of every row alone, values and whole gradients."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sail.policy.fused_head import TILE
from sail.policy.logprobs import full_logits_logps, response_logits, sequence_logps
from sail.policy.trees import TREE_ATTENTION
from tests.policy.oracle import (
    VOCAB,
    LargestTensor,
    assert_equals_oracle,
    gradient,
    oracle_logps,
    relative_error,
    tiny_model,
    weights,
)
from tests.policy.row_patterns import PATTERNS


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("qwen2", False), ("qwen2", True)])
def test_every_pattern_of_rows_equals_the_plain_forward(kind: str, tied: bool, name: str) -> None:
    assert_equals_oracle(tiny_model(kind, tie_word_embeddings=tied), PATTERNS[name])


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]], ids=["frozen head", "head adapted"])
def test_lora_gets_the_gradient_of_the_plain_forward(targets: list[str]) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(tiny_model("qwen2", tie_word_embeddings=False), config)
    assert_equals_oracle(model, PATTERNS["ragged groups"])
    assert all("lora" in name for name in gradient(model))


def test_the_order_and_the_split_of_rows_change_nothing() -> None:
    model, rows = tiny_model("llama"), PATTERNS["ragged groups"]
    whole = sequence_logps(model, rows)
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    apart = torch.cat([sequence_logps(model, [row]) for row in rows])
    torch.testing.assert_close(
        sequence_logps(model, [rows[i] for i in shuffled]), whole[shuffled], rtol=1e-6, atol=1e-5
    )
    torch.testing.assert_close(apart, whole, rtol=1e-6, atol=1e-5)


def test_gradient_checkpointing_recomputes_the_same_trees() -> None:
    model = tiny_model("llama")
    expected, expected_gradient = oracle_logps(model, PATTERNS["ragged groups"])
    model.gradient_checkpointing_enable()
    found = sequence_logps(model, PATTERNS["ragged groups"])
    (weights(len(found)) @ found).backward()
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)
    assert relative_error(gradient(model), expected_gradient) < 1e-5


def test_bf16_autocast_stays_as_near_to_the_exact_values_as_full_logits_do() -> None:
    model, rows = tiny_model("llama", initializer_range=0.1), PATTERNS["ragged groups"]
    exact, _ = oracle_logps(model, rows)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        fast, padded = sequence_logps(model, rows), full_logits_logps(model, rows)
    plain = torch.zeros_like(exact).index_add(0, padded.row_index, padded.logps.double())
    assert float((fast - exact).norm()) < 2 * float((plain - exact).norm())


def test_response_logits_are_those_of_thetiny_model() -> None:
    model, rows = tiny_model("granite"), PATTERNS["a pair"]
    logits, targets, row_index = response_logits(model, rows)
    for index, (prompt, response) in enumerate(rows):
        alone = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(logits[row_index == index], alone, rtol=1e-5, atol=1e-5)
        assert targets[row_index == index].tolist() == list(response)


def test_a_model_that_took_trees_still_runs_and_saves_as_before(tmp_path: Any) -> None:
    model = tiny_model("llama").eval()
    ids, mask = torch.randint(3, VOCAB, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[0, :4] = 0  # left padding, as generation has it
    before = model(input_ids=ids, attention_mask=mask).logits
    sequence_logps(model, PATTERNS["a pair"])
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, before)
    model.save_pretrained(tmp_path)
    assert TREE_ATTENTION not in (tmp_path / "config.json").read_text()


def test_no_tensor_of_tokens_times_vocabulary_is_made_on_the_way() -> None:
    vocab_size = 4 * TILE
    model, rows = tiny_model("llama", vocab_size=vocab_size), PATTERNS["ragged groups"] * 2
    with LargestTensor() as seen:
        sequence_logps(model, rows).sum().backward()
    tokens = sum(len(row.response_ids) for row in rows)
    assert seen.largest == max(vocab_size * 32, tokens * TILE)  # the head's gradient, or one tile of logits
    assert seen.largest < tokens * vocab_size
