"""TRL's own trainers on tiny real models and texts: their tokens, their collators, their losses; and ours on the same.

No network: the tokenizer has one word a token. TRL's trainers patch the model they are given, so each side has its own.
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset

from sail.objectives import LOSSES, Responses
from sail.policy.logprobs import sequence_logps
from sail.policy.rows import Row
from scripts.bench.trl_variants import word_tokenizer
from tests.policy.oracle import VOCAB, gradient, tiny_model

TEXTS = {  # lengths differ within a pair and between pairs
    "prompt": ["t3 t4 t5", "t6 t7", "t8 t9 t10 t11"],
    "chosen": [" t12 t13 t14 t15", " t16", " t17 t18 t19"],
    "rejected": [" t20 t21", " t22 t23 t24 t25 t26", " t27 t28 t29 t30"],
}


class Outcome(NamedTuple):
    """A loss and its gradient, and the rows it was taken on: chosen ones, rejected ones."""

    loss: float
    gradient: dict[str, torch.Tensor]
    chosen: list[Row]
    rejected: list[Row]


def policy_and_reference() -> tuple[Any, Any]:
    """Two tiny models in float64 that differ by noise, so that no log-ratio is zero."""
    policy = tiny_model("llama").double()
    reference = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in reference.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return policy, reference.requires_grad_(False)


def dpo_outcome(folder: Path, loss_type: str, **options: Any) -> Outcome:
    """DPOTrainer's compute_loss on a batch of its own loader."""
    from trl import DPOConfig, DPOTrainer

    policy, reference = policy_and_reference()
    config = DPOConfig(loss_type=[loss_type], **_common(folder), **options)
    trainer = DPOTrainer(policy, reference, config, train_dataset=_texts(), processing_class=word_tokenizer(VOCAB))
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    ids, kept, answered = (batch[key] for key in ("input_ids", "attention_mask", "completion_mask"))
    rows = [_row(*row) for row in zip(ids, kept, answered, strict=True)]
    half = len(rows) // 2
    return Outcome(float(loss.detach()), gradient(trainer.model), rows[:half], rows[half:])


def cpo_outcome(folder: Path, loss_type: str, **options: Any) -> Outcome:
    """CPOTrainer, which holds SimPO; no reference."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return _paired_outcome(CPOTrainer, CPOConfig(loss_type=loss_type, **_common(folder), **options))


def orpo_outcome(folder: Path, **options: Any) -> Outcome:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return _paired_outcome(ORPOTrainer, ORPOConfig(**_common(folder), **options))


class KtoOutcome(NamedTuple):
    """As Outcome, for single responses with a thumb each and the mismatched rows behind z0."""

    loss: float
    gradient: dict[str, torch.Tensor]
    rows: list[Row]
    up: list[bool]
    mismatched: list[Row]


def kto_outcome(folder: Path, **options: Any) -> KtoOutcome:
    """KTOTrainer's compute_loss: chosen texts with a thumb up, rejected ones with a thumb down."""
    from trl import KTOConfig, KTOTrainer

    policy, reference = policy_and_reference()
    half = len(TEXTS["prompt"])
    data = Dataset.from_dict({
        "prompt": TEXTS["prompt"] * 2, "completion": TEXTS["chosen"] + TEXTS["rejected"],
        "label": [True] * half + [False] * half,
    })  # fmt: skip
    config = KTOConfig(**(_common(folder) | {"per_device_train_batch_size": 2 * half}), **options)
    trainer = KTOTrainer(policy, reference, config, train_dataset=data, processing_class=word_tokenizer(VOCAB))
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    rows, mismatched = (
        [_row(*row) for row in zip(*(batch[f"{prefix}{key}"] for key in _KTO_KEYS), strict=True)]
        for prefix in ("", "KL_")
    )
    return KtoOutcome(float(loss.detach()), gradient(trainer.model), rows, batch["label"].tolist(), mismatched)


_KTO_KEYS = ("input_ids", "attention_mask", "completion_mask")


def our_responses(rows: list[Row]) -> tuple[Responses, Any]:
    """Our log-probs of rows, and the policy that takes their gradient."""
    policy, reference = policy_and_reference()
    return _responses(policy, reference, rows), policy


def our_outcome(name: str, chosen: list[Row], rejected: list[Row], **params: float) -> Outcome:
    """The mean of a row of LOSSES over the pairs, or over the chosen ones for a loss of single responses."""
    policy, reference = policy_and_reference()
    row = LOSSES[name]
    sides = [_responses(policy, reference, rows) for rows in ((chosen, rejected) if row.unit == "pair" else (chosen,))]
    loss = row.function(*sides, **params).mean()
    loss.backward()
    return Outcome(float(loss.detach()), gradient(policy), chosen, rejected)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """||a - b|| / ||b||"""
    assert a.keys() == b.keys()
    difference = sum(float((a[name] - b[name]).square().sum()) for name in a)
    return (difference / sum(float(value.square().sum()) for value in b.values())) ** 0.5


def _paired_outcome(trainer_class: Any, config: Any) -> Outcome:
    policy, _ = policy_and_reference()
    trainer = trainer_class(policy, config, train_dataset=_texts(), processing_class=word_tokenizer(VOCAB))
    batch = next(iter(trainer.get_train_dataloader()))
    loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    loss.backward()
    sides = []
    for side in ("chosen", "rejected"):
        ids, kept, labels = (batch[f"{side}_{key}"] for key in ("input_ids", "attention_mask", "labels"))
        sides.append([_row(*row) for row in zip(ids, kept, (labels != -100).long(), strict=True)])
    return Outcome(float(loss.detach()), gradient(trainer.model), *sides)


def _responses(policy: Any, reference: Any, rows: list[Row]) -> Responses:
    with torch.no_grad():
        ref_logps = sequence_logps(reference, rows)
    lengths = torch.tensor([float(len(row.response_ids)) for row in rows], dtype=torch.float64)
    return Responses(sequence_logps(policy, rows), ref_logps, lengths)


def _row(ids: torch.Tensor, kept: torch.Tensor, answered: torch.Tensor) -> Row:
    return Row(tuple(ids[(kept == 1) & (answered == 0)].tolist()), tuple(ids[(kept == 1) & (answered == 1)].tolist()))


def _common(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True,
        "gradient_checkpointing": False, "per_device_train_batch_size": len(TEXTS["prompt"]),
    }  # fmt: skip


def _texts() -> Dataset:
    return Dataset.from_dict(TEXTS)
