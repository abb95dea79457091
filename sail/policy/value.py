"""A value network: a transformer of the policy's architecture with a scalar read-out, separate from the policy.

Separate, because sharing one network between policy and value loses most of DRO's gain (Richemond et al. 2024,
arXiv 2405.19107, table 2).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from sail.policy.architectures import cast_experts
from sail.policy.encoder_decoder import decoder_rows, start_id
from sail.policy.loading import Checkpoint, another_head, base_folder, own_attention, quiet_loading, without_dropout
from sail.policy.rows import Row, padded_rows

Per = Literal["token", "prompt"]
VALUE_FOLDER = "components/value"  # of a checkpoint
_HEAD, _CONFIG = "value_head.safetensors", "value.json"


class ValueModel(torch.nn.Module):
    """V(x) or V(x, y_<k), in the unit of the (normalised) reward; it starts at 0 everywhere."""

    def __init__(self, backbone: PreTrainedModel, per: Per) -> None:
        super().__init__()
        self.backbone, self.per = backbone, per
        self.head = torch.nn.Linear(backbone.config.get_text_config().hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """[T] float64: a value for every response token, read before the token is seen; rows after one another.

        per 'prompt': V(x), read where the first response token is predicted and repeated over the response.
        """
        config, device = self.backbone.config, self.head.weight.device
        encoded = config.is_encoder_decoder
        batch = decoder_rows(rows, start_id(config), device) if encoded else padded_rows(rows, device)
        cast_experts(self.backbone)
        hidden = self.backbone(**batch.inputs, use_cache=False).last_hidden_state
        values = self.head(batch.at_scored(hidden)).squeeze(-1).double()
        if self.per == "token":
            return values
        starts = torch.searchsorted(batch.row_index, torch.arange(len(rows), device=values.device))
        return values[starts[batch.row_index]]

    def save(self, folder: Path) -> None:
        with quiet_loading():
            self.backbone.save_pretrained(str(folder))
        save_file(self.head.state_dict(), folder / _HEAD)
        (folder / _CONFIG).write_text(json.dumps({"per": self.per}))


def value_model_of(policy: Checkpoint, per: Per) -> ValueModel:
    """The value network that stands in the policy's checkpoint, or a new one from the policy's weights."""
    saved = policy.path / VALUE_FOLDER
    return load_value_model(saved) if saved.exists() else new_value_model(policy, per)


def new_value_model(policy: Checkpoint, per: Per) -> ValueModel:
    """A value network that starts from the policy's weights (an adapter's base), with a head of zeros."""
    return ValueModel(_backbone(base_folder(policy)), per)


def load_value_model(folder: Path) -> ValueModel:
    """The value network that an earlier round saved."""
    model = ValueModel(_backbone(folder), json.loads((folder / _CONFIG).read_text())["per"])
    model.head.load_state_dict(load_file(folder / _HEAD))
    return model


def _backbone(folder: Path) -> PreTrainedModel:
    attention = own_attention(AutoConfig.from_pretrained(folder))
    with quiet_loading(), another_head():
        model: PreTrainedModel = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    return without_dropout(model)
