"""A reward model: conversations in, one number each out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sail.core.errors import UserError
from sail.core.records import Example
from sail.policy.devices import compute_device, to_device
from sail.policy.loading import another_head, quiet_loading
from sail.policy.memory import room_for_a_model


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A sequence classifier with num_labels 1, beside the tokenizer and template it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def context_length(self) -> int:
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)

    def encode(self, example: Example) -> list[int]:
        """Token ids of the whole conversation, response included, by the reward model's own chat template.

        A tokenizer without a template gets the plain rendering "role: content", one turn after the other with a
        blank line between, and then adds its own special tokens.
        """
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in example.prompt]
        turns.append({"role": "assistant", "content": example.response})
        if self.tokenizer.chat_template is None:
            text = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
            return list(self.tokenizer(text)["input_ids"])
        text = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def rewards(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """r of each row, [len(rows)] float32, with gradient where it is enabled; rows are padded on the right."""
        device = next(self.model.parameters()).device
        width = max(len(row) for row in rows)
        input_ids = torch.full((len(rows), width), self.tokenizer.pad_token_id, dtype=torch.int64)
        mask = torch.zeros(len(rows), width, dtype=torch.int64)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        logits: Tensor = self.model(input_ids=input_ids.to(device), attention_mask=mask.to(device)).logits
        return logits[:, 0].float()


def load_reward_model(folder: Path, where: str) -> RewardModel:
    """The reward model of a folder, in eval mode, on the GPU where there is one.

    UserError for a model without a trained head, or with more than one output.
    """
    with quiet_loading(), room_for_a_model(torch.device("cpu")):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype="auto" if compute_device().type == "cuda" else torch.float32, output_loading_info=True
        )
    cure = "Give a sequence-classification model with num_labels 1"
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"{str(folder)!r} is no reward model: it lacks {missing}", where=where, cure=cure)
    if model.config.num_labels != 1:
        raise UserError(f"{str(folder)!r} has {model.config.num_labels} outputs", where=where, cure=cure)
    return _with_padding(model.eval(), AutoTokenizer.from_pretrained(folder), where)


def new_reward_model(folder: Path, seed: int, where: str) -> RewardModel:
    """A causal language model with a fresh one-output head in place of its vocabulary, fp32.

    On the GPU where there is one. The head is drawn from `seed`; torch's global stream is left as it was.
    """
    with torch.random.fork_rng(), quiet_loading(), another_head(), room_for_a_model(torch.device("cpu")):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    return _with_padding(model, AutoTokenizer.from_pretrained(folder), where)


def _with_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str) -> RewardModel:
    """The two on their device, with one padding id: the model's, else the tokenizer's, else EOS.

    A decoder reads its reward at the last token that is not this id, so it must be the one of the training.
    """
    config = model.config.get_text_config()
    known = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad_id = next((token_id for token_id in known if token_id is not None), None)
    if pad_id is None:
        raise UserError("the reward model has neither a padding nor an EOS token", where=where, cure="Set pad_token")
    config.pad_token_id = pad_id
    if tokenizer.pad_token_id != pad_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    to_device(model)
    return RewardModel(model, tokenizer)
