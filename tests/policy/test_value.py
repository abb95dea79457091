"""The value network: where it reads, what it knows, and that it survives the disk."""

from pathlib import Path

import pytest
import torch

from sail.policy.rows import Row
from sail.policy.value import Per, ValueModel, load_value_model, new_value_model
from tests.update.stored import tiny_leaf

ROWS = [Row((3, 4, 5), (10, 11, 12, 2)), Row((3, 4, 5, 6), (13, 2)), Row((7,), (14,))]


def a_value_model(folder: Path, per: Per) -> ValueModel:
    model = new_value_model(tiny_leaf(folder), per)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.weight)
    return model


def test_it_starts_at_zero_with_the_policys_body(tmp_path: Path) -> None:
    model = new_value_model(tiny_leaf(tmp_path / "policy"), "token")
    assert model(ROWS).tolist() == [0.0] * 7
    assert model(ROWS).dtype == torch.float64


def test_a_value_per_prompt_is_one_number_a_row_and_looks_at_the_prompt_alone(tmp_path: Path) -> None:
    model = a_value_model(tmp_path, "prompt")
    values = model(ROWS)
    assert values[:4].unique().numel() == 1 and values[4:6].unique().numel() == 1
    other = model([Row((3, 4, 5), (20, 21, 22, 23)), *ROWS[1:]])
    torch.testing.assert_close(other, values, rtol=0, atol=1e-6)


def test_a_value_per_token_sees_what_stands_before_the_token(tmp_path: Path) -> None:
    model = a_value_model(tmp_path, "token")
    values = model(ROWS)
    changed = model([Row((3, 4, 5), (10, 11, 30, 2)), *ROWS[1:]])
    torch.testing.assert_close(changed[:3], values[:3], rtol=0, atol=1e-6)  # the third token is not seen by its value
    assert (changed[3] - values[3]).abs().item() > 1e-4
    per_prompt = a_value_model(tmp_path / "again", "prompt")(ROWS)
    torch.testing.assert_close(values[[0, 4, 6]], per_prompt[[0, 4, 6]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("per", ["token", "prompt"])
def test_saved_and_loaded_it_is_the_same(per: Per, tmp_path: Path) -> None:
    model = a_value_model(tmp_path / "policy", per)
    (tmp_path / "value").mkdir()
    model.save(tmp_path / "value")
    loaded = load_value_model(tmp_path / "value")
    assert loaded.per == per and torch.equal(loaded(ROWS), model(ROWS))
