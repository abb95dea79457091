"""One optimizer step of DPO, done in several ways: ours, as the product does it, and the plain full-logits way.

TRL's ways are in trl_variants.py. Each does all of a step: batch, forward, backward, clipping, fused AdamW, metrics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from accelerate import Accelerator

from sail.core.route_settings import RouteSettings
from sail.core.run_settings import ImportanceSettings, UpdateSettings
from sail.objectives import LOSSES
from sail.policy.logprobs import sequence_logps
from sail.policy.rows import padded_rows
from sail.update.items import Item, Side
from sail.update.learners import Learner
from sail.update.objective import RouteObjective
from sail.update.optimizer import make_optimizer
from sail.update.step import Batch, row_weights, train_step
from scripts.bench.cases import Case, Pair, make_model, rows_of, with_scores

BETA, SAIL_COEF, LEARNING_RATE = 0.1, 0.1, 1e-6


class Variant(Protocol):
    model: Any
    max_grad_norm: float

    def step(self, pairs: list[Pair]) -> float:
        """The loss; the gradient stays in model."""


@dataclass(frozen=True)
class Ours:
    """sail.update.step on sail.policy.logprobs; the reference scored as the scoring stage does, or its scores given."""

    stored_reference: bool = False
    sail_coef: float = 0.0
    pairs_per_microbatch: int | None = None
    checkpointing: bool = False

    def build(self, case: Case, *, max_grad_norm: float = 1.0) -> "OurStep":
        return OurStep(self, case, max_grad_norm)


class OurStep:
    def __init__(self, options: Ours, case: Case, max_grad_norm: float) -> None:
        self.options, self.max_grad_norm = options, max_grad_norm
        self.settings = UpdateSettings(
            learning_rate=LEARNING_RATE, train_batch_size=case.pairs, max_grad_norm=max_grad_norm, bf16=case.bf16
        )
        self.reference = None if options.stored_reference else make_model(case, 1).requires_grad_(False)
        model = make_model(case, 0)
        if options.checkpointing:
            model.gradient_checkpointing_enable()
        self.accelerator = Accelerator(mixed_precision="bf16" if case.bf16 else "no", cpu=case.device == "cpu")
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(model, self.settings))
        route = RouteSettings.model_validate(
            {"responses": "policy", "labels": {"by": "rm"}, "sail_coef": options.sail_coef}
        )
        self.objective = RouteObjective(LOSSES["dpo"], {"beta": BETA}, route, ImportanceSettings())

    def step(self, pairs: list[Pair]) -> float:
        batch = Batch({"route": self._items(pairs)}, row_weights({"route": Fraction(1)}, {"route": None}, len(pairs)))
        settings = self.settings.model_copy(update={"max_tokens_per_microbatch": self._budget(pairs)})
        baselines = {"route": 0.7} if self.options.sail_coef else {}
        metrics, _ = train_step(
            self.accelerator, self._learners(), batch, {"route": self.objective}, baselines, settings
        )
        return metrics["loss"]

    def _learners(self) -> dict[str, Learner]:
        return {"policy": Learner(self.model, self.optimizer, self.max_grad_norm)}

    def _items(self, pairs: list[Pair]) -> list[Item]:
        chosen, rejected = self._reference_logps(pairs)
        rows = rows_of(pairs)
        return [
            Item(str(index), (Side(rows[index], won, won, True), Side(rows[index + len(pairs)], lost, lost, True)))
            for index, (won, lost) in enumerate(zip(chosen, rejected, strict=True))
        ]

    def _reference_logps(self, pairs: list[Pair]) -> tuple[list[float], list[float]]:
        if self.reference is None:
            return [pair.ref_chosen for pair in pairs], [pair.ref_rejected for pair in pairs]
        with torch.no_grad(), self.accelerator.autocast():
            logps = sequence_logps(self.reference, rows_of(pairs)).tolist()
        return logps[: len(pairs)], logps[len(pairs) :]

    def _budget(self, pairs: list[Pair]) -> int:
        """So many tokens that the largest pairs, as many as asked for, fill a microbatch."""
        sizes = sorted((len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs), reverse=True)
        return sum(sizes[: self.options.pairs_per_microbatch])


class Naive:
    """Padded rows, full logits in float32, log-softmax over all of them, reference in the loop: DPO as it is written
    in most places (LLaMA-Factory, HALOs and torchtune have this head and this padding)."""

    def __init__(self, case: Case, *, max_grad_norm: float = 1.0) -> None:
        self.case, self.max_grad_norm = case, max_grad_norm
        self.model, self.reference = make_model(case, 0), make_model(case, 1).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def step(self, pairs: list[Pair]) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        logps = self._logps(self.model, pairs)
        with torch.no_grad():
            ref_logps = self._logps(self.reference, pairs)
        chosen, rejected = (logps - ref_logps).chunk(2)
        loss = -F.logsigmoid(BETA * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm or float("inf"))
        self.optimizer.step()
        return float(loss.detach())

    def _logps(self, model: Any, pairs: list[Pair]) -> torch.Tensor:
        rows = rows_of(pairs)
        inputs = padded_rows(rows, torch.device(self.case.device)).inputs
        ids = inputs["input_ids"]
        with torch.autocast(self.case.device, torch.bfloat16, enabled=self.case.bf16):
            logits = model(**inputs, use_cache=False).logits
        logps = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        answered = torch.zeros_like(logps)
        for index, row in enumerate(rows):
            answered[index, len(row.prompt_ids) - 1 : row.num_tokens - 1] = 1
        return (logps * answered).sum(-1)


def with_reference(reference: Any, pairs: list[Pair]) -> list[Pair]:
    """The pairs with what the scoring stage would have stored."""
    with torch.no_grad():
        return with_scores(pairs, sequence_logps(reference, rows_of(pairs)).tolist())


Builder = Callable[..., Variant]

OURS: dict[str, Builder] = {
    "naive": Naive,
    "ours": Ours().build,
    "ours, stored reference": Ours(stored_reference=True).build,
    "ours, microbatches of 2": Ours(pairs_per_microbatch=2).build,
    "ours, SAIL": Ours(stored_reference=True, sail_coef=SAIL_COEF).build,
    "ours, checkpointing": Ours(checkpointing=True).build,
}
