"""The gate: loss and whole gradient of a step against float64, one row at a time, written down plainly."""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from scripts.bench.cases import Case, Pair, make_model, make_pairs, rows_of, with_scores
from scripts.bench.variants import BETA, Builder

LOSS_LIMIT = {"fp32": 1e-4, "bf16": 5e-2}
GRADIENT_LIMIT = {"fp32": 1e-4, "bf16": 1e-1}


class Deviation(NamedTuple):
    loss: float  # absolute
    gradient: float  # ||g - g64|| / ||g64||

    def right(self, dtype: str) -> bool:
        return self.loss < LOSS_LIMIT[dtype] and self.gradient < GRADIENT_LIMIT[dtype]


def deviations(case: Case, builders: dict[str, Builder], num_pairs: int = 2) -> dict[str, Deviation]:
    """Of every variant's first step, unclipped."""
    pairs = _with_reference(case, make_pairs(case, seed=99, count=num_pairs))
    loss_64, gradient_64 = oracle(case, pairs)
    scale = _norm(gradient_64)
    result = {}
    for name, build in builders.items():
        variant = build(case, max_grad_norm=0.0)
        loss = variant.step(pairs)
        gradient = {key: weight.grad.double().cpu() for key, weight in variant.model.named_parameters()}
        difference = {key: gradient[key] - expected for key, expected in gradient_64.items()}
        result[name] = Deviation(abs(loss - loss_64), _norm(difference) / scale)
    return result


def oracle(case: Case, pairs: list[Pair]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of DPO in float64 on the CPU."""
    model = make_model(case, 0).double().cpu()
    logps = _logps(model, pairs)
    h = logps[: len(pairs)] - logps[len(pairs) :]
    h = h - torch.tensor([pair.ref_chosen - pair.ref_rejected for pair in pairs], dtype=torch.float64)
    loss = -F.logsigmoid(BETA * h).mean()
    loss.backward()
    return float(loss.detach()), {name: weight.grad for name, weight in model.named_parameters()}


def _with_reference(case: Case, pairs: list[Pair]) -> list[Pair]:
    with torch.no_grad():
        return with_scores(pairs, _logps(make_model(case, 1).double().cpu(), pairs).tolist())


def _logps(model: torch.nn.Module, pairs: list[Pair]) -> torch.Tensor:
    sums = []
    for prompt, response in rows_of(pairs):
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        sums.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())
    return torch.stack(sums)


def _norm(gradient: dict[str, torch.Tensor]) -> float:
    return sum(float(value.square().sum()) for value in gradient.values()) ** 0.5
