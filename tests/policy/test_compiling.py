"""Compiled decoder blocks: the plain values and gradients, weights under their names, few compilations."""

import pytest
import torch

from sail.policy.compiling import compile_blocks
from tests.policy.oracle import assert_equals_oracle, tiny_model
from tests.policy.row_patterns import PATTERNS


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_give_the_plain_forward_and_compile_for_all_lengths_at_once(checkpointing: bool) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = tiny_model("llama")
    names = [name for name, _ in model.named_parameters()]
    assert compile_blocks(model, backend="aot_eager") == 2  # the graphs of inductor, without its compiler
    assert [name for name, _ in model.named_parameters()] == names
    if checkpointing:
        model.gradient_checkpointing_enable()
    graphs = []
    for rows in PATTERNS.values():
        assert_equals_oracle(model, rows)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[-1] == graphs[3]  # what the first batches of different lengths asked for is enough
