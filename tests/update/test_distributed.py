"""What accelerate's environment may say of an update, and what it may not."""

import pytest
import torch

from sail.update.distributed import make_accelerator


def test_gradients_are_not_divided_by_the_accumulation_of_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate launch exports it from deepspeed_config.gradient_accumulation_steps."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.ones(2, requires_grad=True)
    make_accelerator(bf16=False).backward(3 * weight.sum())
    assert weight.grad is not None and weight.grad.tolist() == [3.0, 3.0]
