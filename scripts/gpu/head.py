"""The fused head on this device against float64, beside plain full logits in the same precision; and how fast."""

import itertools
from typing import Any

import torch

from sail.policy.fused_head import LogitTransform, fused_logps
from sail.policy.head_tiles import HeadTiles, TorchTiles
from scripts.bench.floors import matmul_rate
from scripts.gpu.findings import Surroundings, at_most, figure, milliseconds, missing, relative_error, surroundings

TRANSFORMS = {"as is": LogitTransform(), "scaled": LogitTransform(0.25), "capped": LogitTransform(2.0, softcap=30.0)}
WORSE = {True: 1.1, False: 1.3}  # times plain full logits' error; a CPU adds products of tiles rounded to bf16


class Inputs:
    """Random hidden states, a head and targets, drawn in float64."""

    def __init__(self, here: Surroundings, *, bias: bool) -> None:
        tokens, hidden, vocab = (999, 1024, 40_003) if here.on_gpu else (37, 32, 2 * TorchTiles.size + 5)
        torch.manual_seed(0)
        options: Any = {"device": here.device, "dtype": torch.float64}
        self.hidden = torch.randn(tokens, hidden, **options)
        self.weight = torch.randn(vocab, hidden, **options) / hidden**0.5
        self.bias = torch.randn(vocab, **options) if bias else None
        self.targets = torch.randint(vocab, (tokens,), device=here.device)
        self.upstream = torch.randn(tokens, **options)

    def results(self, dtype: torch.dtype, transform: LogitTransform, how: Any, *, frozen: bool) -> list[torch.Tensor]:
        """Log-probs, then gradients of hidden states and, unless frozen, weight and bias."""
        head = torch.nn.Linear(1, 1, bias=self.bias is not None)
        head.weight = torch.nn.Parameter(self.weight.to(dtype), requires_grad=not frozen)
        if self.bias is not None:
            head.bias = torch.nn.Parameter(self.bias.to(dtype), requires_grad=not frozen)
        hidden = self.hidden.to(dtype).requires_grad_()
        logps = how(hidden, head, self.targets, transform)
        leaves = [hidden] if frozen else [hidden, *head.parameters()]
        grads = torch.autograd.grad(self.upstream @ logps.double(), leaves)
        return [logps.detach(), *grads]


def plain(hidden: torch.Tensor, head: Any, targets: torch.Tensor, transform: LogitTransform) -> torch.Tensor:
    return torch.log_softmax(transform(head(hidden).float()), -1).gather(1, targets[:, None])[:, 0]


def check_against_float64(here: Surroundings) -> None:
    """bfloat16, by the tiles that the product takes here."""
    for (name, transform), bias, frozen in itertools.product(TRANSFORMS.items(), (False, True), (False, True)):
        inputs = Inputs(here, bias=bias)

        def exactly(*arguments: Any) -> torch.Tensor:
            return fused_logps(*arguments, tiles=TorchTiles)

        exact = inputs.results(torch.float64, transform, exactly, frozen=frozen)
        own = inputs.results(torch.bfloat16, transform, fused_logps, frozen=frozen)
        other = inputs.results(torch.bfloat16, transform, plain, frozen=frozen)
        ratios = [relative_error(o, e) / relative_error(p, e) for o, p, e in zip(own, other, exact, strict=True)]
        label = f"head, {name}, {'with' if bias else 'no'} bias, {'frozen' if frozen else 'trained'}"
        errors = ", ".join(f"{relative_error(o, e):.1e}" for o, e in zip(own, exact, strict=True))
        note = f"bf16 error over that of full logits, worst of log-probs and gradients ({errors})"
        at_most(label, max(ratios), WORSE[here.on_gpu], note)


def time_tiles(here: Surroundings) -> None:
    """Forward and backward of a trained and a frozen head, by Triton and by torch."""
    rate = matmul_rate(here.device.type, "bf16")
    figure("bf16 matrix product", rate / 1e12, "TFLOP/s", "best of several, the peak that MFU is a share of")
    ways: dict[str, type[HeadTiles]] = {"torch": TorchTiles}
    if here.on_gpu:
        from sail.policy.triton_head import TritonTiles

        ways["triton"] = TritonTiles
    else:
        missing("head, Triton kernels", "no CUDA device")
    tokens, hidden, vocabularies = (8192, 2048, (32_768, 131_072)) if here.on_gpu else (64, 32, (5000,))
    for vocab, frozen, (name, tiles) in itertools.product(vocabularies, (False, True), ways.items()):
        head = torch.nn.Linear(hidden, vocab, bias=False, device=here.device, dtype=torch.bfloat16)
        head.requires_grad_(not frozen)
        states = torch.randn(tokens, hidden, device=here.device, dtype=torch.bfloat16, requires_grad=True)
        targets = torch.randint(vocab, (tokens,), device=here.device)

        def step(head: Any = head, states: Any = states, targets: Any = targets, tiles: Any = tiles) -> None:
            fused_logps(states, head, targets, tiles=tiles).sum().backward()

        spent = milliseconds(step, here.device)
        share = (4 if frozen else 8) * tokens * hidden * vocab / spent * 1e3 / rate
        label = f"head, {name}, {tokens:,} tokens, V {vocab:,}, {'frozen' if frozen else 'trained'}"
        figure(label, spent, "ms", f"{share:.0%} of the matrix product's rate")


if __name__ == "__main__":
    HERE = surroundings()
    check_against_float64(HERE)
    time_tiles(HERE)
