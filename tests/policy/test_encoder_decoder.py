"""Encoder-decoders: each prompt is read once, and values and gradients are those of a plain forward of every row."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sail.core.errors import UserError
from sail.policy.architectures import bare_model, fused_head_of
from sail.policy.fused_head import TILE
from sail.policy.logprobs import full_logits_logps, response_logits, sequence_kls, sequence_logps, token_logps
from tests.policy.oracle import (
    VOCAB,
    LargestTensor,
    assert_equals_oracle,
    gradient,
    oracle_logps,
    plain_logits,
    relative_error,
    tiny_encoder_decoder,
    weights,
)
from tests.policy.row_patterns import PATTERNS

RAGGED = PATTERNS["ragged groups"]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("tied", [True, False], ids=["T5", "T5 v1.1"])
def test_every_pattern_of_rows_equals_the_plain_forward(tied: bool, name: str) -> None:
    assert_equals_oracle(tiny_encoder_decoder("t5", tie_word_embeddings=tied), PATTERNS[name])


@pytest.mark.parametrize("kind", ["mt5", "umt5", "longt5"])
def test_the_relatives_of_t5_take_the_fused_head(kind: str) -> None:
    model = tiny_encoder_decoder(kind)
    assert fused_head_of(model) is not None
    assert_equals_oracle(model, RAGGED)


def test_another_encoder_decoder_gives_full_logits() -> None:
    """BART adds a bias behind its head."""
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
             "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "dropout": 0.0, "max_position_embeddings": 64}  # fmt: skip
    model = tiny_encoder_decoder("bart", **sizes)
    model.final_logits_bias.normal_()
    assert fused_head_of(model) is None
    assert_equals_oracle(model, RAGGED)


def test_the_tied_head_is_scaled_and_the_untied_one_is_not() -> None:
    """hidden / sqrt(d_model) enters a tied head: leaving that out would be off by whole nats."""
    for tied in (True, False):
        model = tiny_encoder_decoder("t5", tie_word_embeddings=tied).eval()
        prompt, response = RAGGED[0]
        hidden = model.decoder(
            input_ids=torch.tensor([[0, *response[:-1]]]),
            encoder_hidden_states=model.encoder(input_ids=torch.tensor([prompt])).last_hidden_state,
        ).last_hidden_state[0]
        by_hand = torch.log_softmax(hidden * (32**-0.5 if tied else 1.0) @ model.lm_head.weight.T, -1)
        expected = by_hand.gather(1, torch.tensor(response)[:, None]).sum().double()
        torch.testing.assert_close(sequence_logps(model, RAGGED[:1])[0], expected, rtol=1e-5, atol=1e-5)


def test_the_encoder_reads_each_distinct_prompt_once() -> None:
    model, seen = tiny_encoder_decoder("t5"), []
    model.encoder.block[0].register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    sequence_logps(model, RAGGED)
    response_logits(model, RAGGED)
    full_logits_logps(model, RAGGED)
    assert seen == [4, 4, 4]  # prompts of the ten rows
    model(input_ids=torch.ones(3, 5, dtype=torch.int64), decoder_input_ids=torch.zeros(3, 1, dtype=torch.int64))
    assert seen[-1] == 3  # a forward of somebody else is left alone


def test_the_order_and_the_company_of_rows_change_nothing() -> None:
    model = tiny_encoder_decoder("t5")
    whole = sequence_logps(model, RAGGED)
    shuffled = torch.randperm(len(RAGGED), generator=torch.Generator().manual_seed(1)).tolist()
    apart = torch.cat([sequence_logps(model, [row]) for row in RAGGED])
    torch.testing.assert_close(
        sequence_logps(model, [RAGGED[i] for i in shuffled]), whole[shuffled], rtol=1e-6, atol=1e-5
    )
    torch.testing.assert_close(apart, whole, rtol=1e-6, atol=1e-5)


def test_response_logits_and_kl_are_those_of_the_plain_forward() -> None:
    policy, reference = tiny_encoder_decoder("t5"), tiny_encoder_decoder("t5", tie_word_embeddings=False)
    logits, targets, row_index = response_logits(policy, RAGGED)
    kls = sequence_kls(policy, reference, RAGGED)
    for index, (prompt, response) in enumerate(RAGGED):
        alone, other = (plain_logits(model, prompt, response) for model in (policy, reference))
        torch.testing.assert_close(logits[row_index == index], alone, rtol=1e-5, atol=1e-5)
        assert targets[row_index == index].tolist() == list(response)
        logp, ref_logp = torch.log_softmax(alone, -1), torch.log_softmax(other, -1)
        torch.testing.assert_close(
            kls[index], (logp.exp() * (logp - ref_logp)).sum().double(), rtol=1e-5, atol=1e-5
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # every T5 says so, this one is not tied
@pytest.mark.parametrize("targets", ["all-linear", ["q", "v", "lm_head"]], ids=["frozen head", "head adapted"])
def test_lora_gets_the_gradient_of_the_plain_forward(targets: Any) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
    model = get_peft_model(tiny_encoder_decoder("t5", tie_word_embeddings=False), config)
    assert bare_model(model).config.model_type == "t5"
    assert_equals_oracle(model, RAGGED)
    assert all("lora" in name for name in gradient(model))


def test_gradient_checkpointing_changes_nothing() -> None:
    model = tiny_encoder_decoder("t5")
    expected, expected_gradient = oracle_logps(model, RAGGED)
    model.gradient_checkpointing_enable()
    found = sequence_logps(model, RAGGED)
    (weights(len(found)) @ found).backward()
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)
    assert relative_error(gradient(model), expected_gradient) < 1e-5


def test_a_failed_forward_leaves_no_hooks_behind() -> None:
    model = tiny_encoder_decoder("t5")
    with pytest.raises(IndexError):
        token_logps(model, [RAGGED[0]._replace(response_ids=(VOCAB, 3))])
    assert not model.encoder._forward_hooks and not model.encoder._forward_pre_hooks
    assert not model.lm_head._forward_pre_hooks


def test_no_tensor_of_tokens_times_vocabulary_is_made_on_the_way() -> None:
    vocab_size = 4 * TILE
    model, rows = tiny_encoder_decoder("t5", vocab_size=vocab_size), RAGGED * 2
    with LargestTensor() as seen:
        sequence_logps(model, rows).sum().backward()
    tokens = sum(len(row.response_ids) for row in rows)
    assert seen.largest < tokens * vocab_size


def test_a_model_without_a_start_token_is_refused() -> None:
    model = tiny_encoder_decoder("t5")
    del model.config.decoder_start_token_id
    with pytest.raises(UserError, match="decoder_start_token_id"):
        sequence_logps(model, RAGGED)
