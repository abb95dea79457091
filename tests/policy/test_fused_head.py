"""The tiled head equals log_softmax of full logits, values and gradients, and never holds [tokens, vocabulary]."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sail.policy.fused_head import TILE, LogitTransform, fused_logps
from sail.policy.head_tiles import KEPT_BYTES
from tests.policy.oracle import LargestTensor

TOKENS, HIDDEN, VOCAB = 40, 16, 2 * TILE + 333  # two whole tiles and a part of one


def _case(*, bias: bool = False, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, Any, torch.Tensor]:
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, VOCAB, bias=bias, dtype=dtype)
    targets = torch.randint(VOCAB, (TOKENS,))
    targets[:4] = torch.tensor([0, TILE - 1, TILE, VOCAB - 1])  # the edges of tiles
    return 3 * torch.randn(TOKENS, HIDDEN, dtype=dtype).requires_grad_(), head, targets


def _plain(hidden: torch.Tensor, head: Any, targets: torch.Tensor, transform: LogitTransform) -> torch.Tensor:
    return torch.log_softmax(transform(head(hidden)), -1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(0.25), LogitTransform(2.0, softcap=3.0)])
def test_values_and_gradients_are_those_of_full_logits(bias: bool, transform: LogitTransform) -> None:
    hidden, head, targets = _case(bias=bias)
    leaves = [hidden, *head.parameters()]
    upstream = torch.randn(TOKENS, dtype=torch.float64)
    found, expected = fused_logps(hidden, head, targets, transform), _plain(hidden, head, targets, transform)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    for tiled, plain in zip(
        torch.autograd.grad(upstream @ found, leaves), torch.autograd.grad(upstream @ expected, leaves), strict=True
    ):
        torch.testing.assert_close(tiled, plain, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(0.25), LogitTransform(2.0, softcap=3.0)])
def test_a_frozen_head_passes_on_the_gradient_and_gets_none(bias: bool, transform: LogitTransform) -> None:
    hidden, head, targets = _case(bias=bias)
    head.requires_grad_(False)
    upstream = torch.randn(TOKENS, dtype=torch.float64)
    logps, plain = fused_logps(hidden, head, targets, transform), _plain(hidden, head, targets, transform)
    torch.testing.assert_close(logps, plain, atol=1e-12, rtol=1e-12)
    (found,), (expected,) = (torch.autograd.grad(upstream @ values, hidden) for values in (logps, plain))
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)


def test_a_frozen_head_multiplies_less_often() -> None:
    counts = {}
    for frozen in (False, True):
        hidden, head, targets = _case()
        head.requires_grad_(not frozen)
        with FlopCounterMode(display=False) as counter:
            fused_logps(hidden, head, targets).sum().backward()
        counts[frozen] = counter.get_total_flops()
    assert counts == {False: 6 * TOKENS * HIDDEN * VOCAB, True: 4 * TOKENS * HIDDEN * VOCAB}


def test_only_tiles_beyond_what_may_be_kept_are_made_again() -> None:
    tokens, vocab = KEPT_BYTES // (8 * TILE) - 1, 2 * TILE  # room for one tile of two
    hidden, targets = torch.randn(tokens, 4, dtype=torch.float64).requires_grad_(), torch.arange(tokens) % vocab
    head = torch.nn.Linear(4, vocab, bias=False, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        found = torch.autograd.grad(fused_logps(hidden, head, targets).sum(), [hidden, head.weight])
    assert counter.get_total_flops() == (6 + 8) * tokens * 4 * TILE
    expected = torch.autograd.grad(_plain(hidden, head, targets, LogitTransform()).sum(), [hidden, head.weight])
    for tiled, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(tiled, plain, atol=1e-9, rtol=1e-9)


def test_far_apart_logits_stay_finite_under_a_frozen_head() -> None:
    hidden, head, targets = _case(dtype=torch.float32)
    head.requires_grad_(False)
    with torch.no_grad():
        head.weight[TILE + 5] *= 1e4  # one token takes everything, in a later tile, at some positions
    (found,) = torch.autograd.grad(fused_logps(hidden, head, targets).sum(), hidden)
    (expected,) = torch.autograd.grad(_plain(hidden, head, targets, LogitTransform()).sum(), hidden)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_no_tokens_are_no_log_probs_and_zero_gradient() -> None:
    hidden, head, targets = _case()
    logps = fused_logps(hidden[:0], head, targets[:0])
    logps.sum().backward()
    assert logps.shape == (0,)
    assert float(head.weight.grad.abs().max()) == 0.0


def test_under_bf16_autocast_only_the_matmuls_are_bf16() -> None:
    hidden, head, targets = _case(dtype=torch.float32)
    exact = _plain(hidden, head, targets, LogitTransform())
    with torch.autocast("cpu", torch.bfloat16):
        found = fused_logps(hidden, head, targets)
        plain = torch.log_softmax(head(hidden).float(), -1).gather(1, targets[:, None])[:, 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(logps.sum(), hidden)[0] for logps in (found, exact)]
    assert float((grads[0] - grads[1]).norm() / grads[1].norm()) < 0.02


def test_no_tensor_of_tokens_times_vocabulary_is_made() -> None:
    hidden, head, targets = _case()
    with LargestTensor() as seen:
        fused_logps(hidden, head, targets).sum().backward()
    assert seen.largest == TOKENS * TILE  # one tile of logits
    with LargestTensor() as seen:
        _plain(hidden, head, targets, LogitTransform())
    assert seen.largest == TOKENS * VOCAB
