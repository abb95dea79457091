"""Tiny models of many architectures, and log-probs from a plain float64 forward of one row at a time."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from sail.policy.fused_head import TILE
from sail.policy.loading import own_attention
from sail.policy.logprobs import sequence_logps
from sail.policy.rows import Row

VOCAB = TILE + 101  # more than one tile of the head
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {  # what brings out the ways of an architecture
    "cohere": {"logit_scale": 0.4}, "cohere2": {"logit_scale": 0.4, "sliding_window": 4},
    "granite": {"logits_scaling": 3.0},
    "gemma2": {"sliding_window": 4, "final_logit_softcapping": 5.0}, "gemma3_text": {"sliding_window": 4},
    "mistral": {"sliding_window": None}, "mixtral": {"sliding_window": None, "num_local_experts": 4},
    "phi3": {"sliding_window": None}, "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}  # fmt: skip


def tiny_model(kind: str, **settings: Any) -> Any:
    """A seeded random model of an architecture, float32, training mode as the update has it (no dropout)."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **{**SIZES, **SETTINGS.get(kind, {}), **settings})
    config._experts_implementation = "eager"  # the default one of mixtures takes no float64
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=own_attention(config))
    return model.train()


def tiny_encoder_decoder(kind: str, **settings: Any) -> Any:
    """The same of an encoder-decoder; tie_word_embeddings=False gives T5 v1.1: a head of its own, nothing scaled."""
    torch.manual_seed(3)
    sizes = {
        "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0,
        "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "relative_attention_num_buckets": 8,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **{**sizes, **settings})
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32).train()
    if settings.get("tie_word_embeddings") is False:  # from_config ties it all the same
        model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(VOCAB, 32))
    return model


def plain_logits(model: torch.nn.Module, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
    """[T, V] at the positions that predict a response's tokens, from a forward of one row."""
    if not model.config.is_encoder_decoder:
        return model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    before = torch.tensor([[model.config.decoder_start_token_id, *response]])
    return model(input_ids=torch.tensor([prompt]), decoder_input_ids=before).logits[0, :-1]


def oracle_logps(model: torch.nn.Module, rows: Sequence[Row]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sequence log-probs [R] float64 from full logits, and the gradient of weights(R) @ them."""
    model = copy.deepcopy(model).double()
    model.zero_grad()
    sums = []
    for prompt, response in rows:
        logps = torch.log_softmax(plain_logits(model, prompt, response), -1)
        sums.append(logps.gather(1, torch.tensor(response, dtype=torch.int64)[:, None]).sum())
    logps_R = torch.stack(sums)
    (weights(len(rows)) @ logps_R).backward()
    return logps_R.detach(), gradient(model)


def weights(count: int) -> torch.Tensor:
    """Coefficients of both signs, as an objective gives them."""
    return torch.tensor([(-1) ** index * (0.5 + 0.3 * index) for index in range(count)], dtype=torch.float64)


def gradient(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.double() for name, weight in model.named_parameters() if weight.grad is not None}


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """L2 distance of whole gradients over the L2 norm of the expected one."""
    assert found.keys() == expected.keys()
    distance = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return (distance / sum(float(value.square().sum()) for value in expected.values())) ** 0.5


def assert_equals_oracle(model: torch.nn.Module, rows: Sequence[Row]) -> None:
    """Values and the whole gradient within 1e-5."""
    expected, expected_gradient = oracle_logps(model, rows)
    model.zero_grad()
    found = sequence_logps(model, rows)
    (weights(len(rows)) @ found).backward()
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)
    assert relative_error(gradient(model), expected_gradient) < 1e-5


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
        return result
