"""Tiny models of many architectures, and log-probs from a plain float64 forward of one row at a time."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sail.policy.rows import Row

VOCAB = 101
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def tiny_model(kind: str, **settings: Any) -> Any:
    """A seeded random model of an architecture, float32, training mode as the update has it (no dropout)."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **{**SIZES, **settings})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


def oracle_logps(model: torch.nn.Module, rows: Sequence[Row]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sequence log-probs [R] float64 from full logits, and the gradient of weights(R) @ them."""
    model = copy.deepcopy(model).double()
    model.zero_grad()
    sums = []
    for prompt, response in rows:
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        logps = torch.log_softmax(logits, -1)
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
