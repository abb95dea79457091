"""A starting policy that cannot be trained as asked is refused from its config alone."""

import json
from pathlib import Path

import pytest
from transformers import Qwen2Config

from loops.config import load_config
from loops.model_checks import check_model
from sail.core.artifacts import leaf
from sail.core.errors import UserError

_CONFIG = "{preset: dpo, model_name_or_path: m, data: {prefs: {path: p.jsonl}}}"


def check(folder: Path, *changes: str, quantised: bool = True) -> None:
    (folder / "c.yaml").write_text(_CONFIG)
    (folder / "model").mkdir()
    config = Qwen2Config().to_dict() | (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}} if quantised else {}
    )
    (folder / "model" / "config.json").write_text(json.dumps(config))
    check_model(load_config(str(folder / "c.yaml"), list(changes)).settings, leaf(folder / "model"))


def test_quantised_weights_are_trained_through_an_adapter_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lora: 'm' is quantised.*Set lora:"):
        check(tmp_path)


def test_a_value_network_of_quantised_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"components\.value: .*trains all its weights"):
        check(tmp_path, "lora.r=8", "components.value.per=token")


@pytest.mark.parametrize(("change", "quantised"), [("lora.r=8", True), ("seed=1", False)])
def test_an_adapter_on_quantised_weights_and_plain_weights_pass(change: str, quantised: bool, tmp_path: Path) -> None:
    check(tmp_path, change, quantised=quantised)
