"""Fused layers: the modules' own values and gradients with less kept; their own forward wherever that is in doubt."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from sail.policy.fused_layers import BLOCK, fuse_layers
from sail.policy.logprobs import sequence_logps
from sail.policy.rows import Row
from sail.policy.trees import tree_rows
from tests.policy.oracle import gradient, relative_error, tiny_model, weights
from tests.policy.row_patterns import PATTERNS

ROWS = [*PATTERNS["ragged groups"], Row(range(3, 40), range(40, 100))]


def _plain(kind: str) -> Any:
    """A model that takes trees with the layers as transformers has them."""
    model = tiny_model(kind)
    sequence_logps(model, ROWS)
    for module in model.modules():
        if hasattr(module, "unfused"):
            module.__class__ = type(module).__base__
    return model


def _kept(model: Any) -> int:
    """How many numbers the body of the model keeps for its backward."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().size() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.model(**tree_rows(ROWS, torch.device("cpu")).inputs, use_cache=False)
    assert output.last_hidden_state.requires_grad
    of_weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    return sum(size for storage, size in kept.items() if storage not in of_weights)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "granite"])
def test_fused_layers_give_the_same_and_keep_less(kind: str) -> None:
    plain = _plain(kind)
    fused = copy.deepcopy(plain)
    fuse_layers(fused)
    logps = [sequence_logps(model, ROWS) for model in (plain, fused)]
    torch.testing.assert_close(logps[1], logps[0], rtol=1e-6, atol=1e-6)
    for model, values in zip((plain, fused), logps, strict=True):
        model.zero_grad()
        (weights(len(ROWS)) @ values).backward()
    assert relative_error(gradient(fused), gradient(plain)) < 1e-5
    assert _kept(fused) < 0.75 * _kept(plain)


def test_the_last_layer_runs_where_a_token_is_predicted() -> None:
    plain = _plain("llama")
    fused = copy.deepcopy(plain)
    fuse_layers(fused)
    rows = [Row(range(5, 105), range(3, 14)), Row(range(5, 105), [7])]  # 100 of 110 tokens are the prompt's
    counts = []
    for model in (plain, fused):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.model(**tree_rows(rows, torch.device("cpu")).inputs, use_cache=False)
        counts.append(counter.get_total_flops())
    assert counts[1] < 0.7 * counts[0]


def test_an_mlp_runs_its_backward_in_blocks_of_rows() -> None:
    fused = tiny_model("llama").model.layers[0].mlp
    plain = copy.deepcopy(fused).double()
    fuse_layers(fused)
    x = torch.randn(2, BLOCK - 5, 32)
    inputs = [x.requires_grad_(), x.detach().double().requires_grad_()]
    for module, given in zip((fused, plain), inputs, strict=True):
        module(given).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad.double(), inputs[1].grad, rtol=1e-5, atol=1e-4)
    assert relative_error(gradient(fused), gradient(plain)) < 1e-6


def test_autocast_takes_the_modules_own_forward() -> None:
    plain = _plain("llama")
    fused = copy.deepcopy(plain)
    fuse_layers(fused)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sequence_logps(fused, ROWS), sequence_logps(plain, ROWS))


def test_adapters_on_some_layers_are_trained_through_fused_ones() -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    plain = get_peft_model(_plain("llama"), config)
    fused = copy.deepcopy(plain)
    fuse_layers(fused)
    for model in (plain, fused):
        (weights(len(ROWS)) @ sequence_logps(model, ROWS)).backward()
    assert relative_error(gradient(fused), gradient(plain)) < 1e-5


def test_a_model_that_is_dropped_leaves_memory_at_once() -> None:
    """No module of it in a reference cycle, which would wait for the garbage collector."""
    model = tiny_model("llama")
    fuse_layers(model)
    weights = [weakref.ref(weight) for weight in model.model.layers.parameters()]
    gc.collect()
    gc.disable()
    try:
        del model
        assert [weight() for weight in weights] == [None] * len(weights)
    finally:
        gc.enable()
