"""Optimizers of 8 bits come from bitsandbytes, or are refused before anything runs."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from loops.checks import check_run
from sail.core.errors import UserError
from sail.core.run_settings import RunSettings
from sail.update.eight_bit import EIGHT_BIT, check_optimizer

needs_absence = pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")


@needs_absence
@pytest.mark.parametrize("name", EIGHT_BIT)
def test_an_optimizer_of_8_bits_without_its_library_names_the_cure_before_the_run(name: str, tmp_path: Path) -> None:
    settings = RunSettings.model_validate({
        "model_name_or_path": "m", "data": {"prefs": {"path": "p"}},
        "phases": [{
            "routes": {"offline": {"responses": "prefs", "labels": "prefs"}}, "loss": {"type": "dpo"},
            "update": {"optimizer": name}, "evaluation": {"num_prompts": 0},
        }],
    })  # fmt: skip
    with pytest.raises(UserError, match=f"{name} needs bitsandbytes.*pip install bitsandbytes, or take adamw"):
        check_run(settings, engines=["transformers", "vllm"])


def test_others_need_nothing() -> None:
    for name in ("adamw", "rmsprop", "sgd"):
        check_optimizer(name)
