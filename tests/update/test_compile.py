"""`update.compile` changes how a step is computed, not what it learns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sail.core.route_settings import LossSettings
from sail.core.store import Store
from sail.update.stage import update
from tests.update.stored import World


@pytest.mark.slow
def test_an_update_with_compiled_blocks_ends_at_the_same_weights(tmp_path: Path) -> None:
    world = World(tmp_path)
    plain = world.inputs(world.offline(LossSettings(type="dpo", params={"beta": 0.5})), steps=2)
    compiled = replace(plain, settings=plain.settings.replace(compile=True))
    one, two = update(Store(tmp_path / "plain"), plain), update(Store(tmp_path / "compiled"), compiled)
    assert one.key == two.key
    weights, found = (load_file(made.path / "model" / "model.safetensors") for made in (one, two))
    assert weights.keys() == found.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight, atol=2e-5, rtol=0)
