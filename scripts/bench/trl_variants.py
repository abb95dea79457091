"""TRL's DPOTrainer, one step at a time: its own collator, loss, metrics, clipping and fused optimizer.

Its loop (data loader, callbacks, logging) is left out and so not charged. Nothing here needs the network.
"""

import contextlib
import io
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from scripts.bench.cases import Case, Pair, make_model
from scripts.bench.variants import BETA, LEARNING_RATE, Builder

HERE = find_spec("trl") is not None


def word_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Token i is the word "ti"; 0 pads and 1 ends."""
    words = {"<pad>": 0, "<eos>": 1, **{f"t{index}": index for index in range(2, vocab)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def dpo_trainer(model: Any, reference: Any, vocab: int, **options: Any) -> Any:
    """A DPOTrainer round these models. Its data set is one row that is never trained on."""
    from trl import DPOConfig, DPOTrainer

    stored = options.get("precompute_ref_log_probs", False)
    row = {"prompt": ["t2 t3"], "chosen": [" t4"], "rejected": [" t5"]}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        settings = {"beta": BETA, "learning_rate": LEARNING_RATE, "max_length": None, "report_to": "none"} | options
        config = DPOConfig(output_dir=folder, weight_decay=0.0, **settings)
        return DPOTrainer(
            model=model, ref_model=None if stored else reference, args=config, train_dataset=Dataset.from_dict(row),
            processing_class=word_tokenizer(vocab),
        )  # fmt: skip


@dataclass(frozen=True)
class Trl:
    """DPOTrainer; checkpointing is its default and costs time, so its fastest setting is without."""

    stored_reference: bool = False
    checkpointing: bool = False

    def build(self, case: Case, *, max_grad_norm: float = 1.0) -> "TrlStep":
        return TrlStep(self, case, max_grad_norm)


class TrlStep:
    def __init__(self, options: Trl, case: Case, max_grad_norm: float) -> None:
        self.options, self.max_grad_norm = options, max_grad_norm
        reference = None if options.stored_reference else make_model(case, 1).requires_grad_(False)
        self.trainer = dpo_trainer(
            make_model(case, 0), reference, case.vocab, per_device_train_batch_size=case.pairs,
            precompute_ref_log_probs=options.stored_reference, gradient_checkpointing=options.checkpointing,
            bf16=case.bf16, use_cpu=case.device == "cpu",
        )  # fmt: skip
        if options.checkpointing:  # its train() does so
            self.trainer.model.gradient_checkpointing_enable()
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.create_optimizer()
        self.model, self.optimizer = self.trainer.accelerator.prepare(self.trainer.model, self.trainer.optimizer)

    def step(self, pairs: list[Pair]) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.trainer.training_step(self.model, self.trainer.data_collator([_row(pair) for pair in pairs]))
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm or float("inf"))
        self.optimizer.step()
        return float(torch.as_tensor(loss))


def _row(pair: Pair) -> dict[str, Any]:
    ids = {"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
    row: dict[str, Any] = {name: list(values) for name, values in ids.items()}
    if pair.ref_chosen == pair.ref_chosen:  # not nan: stored
        row |= {"ref_chosen_logps": pair.ref_chosen, "ref_rejected_logps": pair.ref_rejected}
    return row


TRL: dict[str, Builder] = {
    "trl": Trl().build,
    "trl, stored reference": Trl(stored_reference=True).build,
    "trl, checkpointing": Trl(checkpointing=True).build,
}
