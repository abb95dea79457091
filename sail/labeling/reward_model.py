"""A reward model: conversations in, one number each out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sail.core.errors import UserError
from sail.core.records import Example
from sail.policy.devices import compute_device, to_device
from sail.policy.loading import another_head, own_attention, quiet_loading
from sail.policy.memory import room_for_a_model


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A sequence classifier with num_labels 1, beside the tokenizer and template it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def context_length(self) -> int:
        return context_length(self.model.config)

    def encode(self, example: Example) -> list[int]:
        return encode(self.tokenizer, example)

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


def encode(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """Token ids of the whole conversation, response included, by the reward model's own chat template.

    A tokenizer without a template gets the plain rendering "role: content", one turn after the other with a blank line
    between, and then adds its own special tokens.
    """
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in example.prompt]
    turns.append({"role": "assistant", "content": example.response})
    if tokenizer.chat_template is None:
        text = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
        return list(tokenizer(text)["input_ids"])
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def context_length(config: PretrainedConfig) -> int:
    """Tokens of a conversation that the model takes."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def padding_id(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, where: str) -> int:
    """The model's padding id, else the tokenizer's, else EOS.

    A decoder reads its reward at the last token that is not this id, so it must be the one of the training.
    """
    known = (config.get_text_config().pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad_id = next((token_id for token_id in known if token_id is not None), None)
    if pad_id is None:
        raise UserError("the reward model has neither a padding nor an EOS token", where=where, cure="Set pad_token")
    return int(pad_id)


def load_reward_model(folder: Path, where: str) -> RewardModel:
    """The reward model of a folder, in eval mode, on the GPU where there is one.

    UserError for a model without a trained head, or with more than one output.
    """
    with quiet_loading(), room_for_a_model(torch.device("cpu")):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype="auto" if compute_device().type == "cuda" else torch.float32, output_loading_info=True,
            attn_implementation=own_attention(AutoConfig.from_pretrained(folder)),
        )  # fmt: skip
    cure = "Give a sequence-classification model with num_labels 1"
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"{str(folder)!r} is no reward model: it lacks {missing}", where=where, cure=cure)
    if model.config.num_labels != 1:
        raise UserError(f"{str(folder)!r} has {model.config.num_labels} outputs", where=where, cure=cure)
    return _with_padding(model.eval(), AutoTokenizer.from_pretrained(folder), where)


def new_reward_model(folder: Path, seed: int, where: str) -> RewardModel:
    """A causal language model with a fresh one-output head in place of its vocabulary, or a classifier as it is; fp32.

    On the GPU where there is one. The head is drawn from `seed`; torch's global stream is left as it was. UserError
    for a classifier with several outputs.
    """
    config = AutoConfig.from_pretrained(folder)
    if config.num_labels != 1 and any("SequenceClassification" in name for name in config.architectures or ()):
        raise UserError(f"{str(folder)!r} is a classifier with {config.num_labels} outputs", where=where,
                        cure="Start from a language model, or from a classifier with one output")  # fmt: skip
    with torch.random.fork_rng(), quiet_loading(), another_head(), room_for_a_model(torch.device("cpu")):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32, attn_implementation=own_attention(config)
        )
    return _with_padding(model, AutoTokenizer.from_pretrained(folder), where)


def freeze_body(reward_model: RewardModel, where: str) -> None:
    """Leave gradients to the head alone, the weights outside the model that it stands on."""
    model = reward_model.model
    if model.base_model is model:
        raise UserError(f"{type(model).__name__} has no head of its own", where=where, cure="Set train: all")
    model.base_model.requires_grad_(False)


def _with_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str) -> RewardModel:
    """The two on their device, with one padding id."""
    pad_id = padding_id(model.config, tokenizer, where)
    model.config.get_text_config().pad_token_id = pad_id
    if tokenizer.pad_token_id != pad_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    to_device(model)
    return RewardModel(model, tokenizer)
