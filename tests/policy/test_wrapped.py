"""Wrappers that hook the model's forward (DDP, FSDP2) see it: values and gradients stay those of the plain forward."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sail.policy.logprobs import sequence_logps
from tests.policy.oracle import gradient, oracle_logps, relative_error, tiny_model, weights
from tests.policy.row_patterns import PATTERNS

ROWS = PATTERNS["ragged groups"]


@pytest.fixture
def _process_group(tmp_path: Path) -> Iterator[None]:
    """One process: the hooks are those of many."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def _ddp(model: torch.nn.Module) -> torch.nn.Module:
    return DistributedDataParallel(model)


def _fsdp(model: torch.nn.Module) -> torch.nn.Module:
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model, reshard_after_forward=True)


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("wrap", [_ddp, _fsdp])
@pytest.mark.parametrize("tied", [False, True])
def test_a_wrapped_model_gives_the_plain_values_and_gradient(wrap, tied: bool) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    expected, expected_gradient = oracle_logps(model, ROWS)
    found = sequence_logps(wrap(model), ROWS)
    (weights(len(ROWS)) @ found).backward()
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)
    whole = {name: getattr(grad, "full_tensor", lambda grad=grad: grad)() for name, grad in gradient(model).items()}
    assert relative_error(whole, expected_gradient) < 1e-5
