"""A model directory is judged by its files before any server sees it."""

import json
import shutil

import pytest

from sail.serving.model_files import ModelDirError, context_length, eos_token_ids, tensor_layout
from tests.serving_fixtures import CONTEXT, EOS_ID, VOCAB_SIZE


@pytest.fixture
def model_dir(tiny_policies, tmp_path):
    return shutil.copytree(tiny_policies["untied-a"].path, tmp_path / "model")


def test_a_whole_directory_is_read(model_dir, tiny_policies):
    layout = tensor_layout(model_dir)
    expected = {name: tuple(tensor.shape) for name, tensor in tiny_policies["untied-a"].model.state_dict().items()}
    assert layout == expected and layout["lm_head.weight"] == (VOCAB_SIZE, 64)
    assert (context_length(model_dir), eos_token_ids(model_dir)) == (CONTEXT, {EOS_ID})


def test_several_eos_ids_are_all_found(model_dir):
    path = model_dir / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [EOS_ID, 9]}))
    assert eos_token_ids(model_dir) == {EOS_ID, 9}


@pytest.mark.parametrize(("keep", "told"), [(-1, "header promises"), (50, "no safetensors file"), (0, "0 bytes")])
def test_a_truncated_file_is_found(model_dir, keep, told):
    weights = model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelDirError, match=told):
        tensor_layout(model_dir)


def test_a_shard_that_is_missing_is_found(model_dir):
    index = {"weight_map": {"lm_head.weight": "a", "model.layers.9.mlp.up_proj.weight": "b"}}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelDirError, match=r"1 tensors of the index are missing, first model\.layers\.9"):
        tensor_layout(model_dir)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_found(model_dir, name):
    (model_dir / name).unlink()
    with pytest.raises(ModelDirError, match=r"no such file|no \*\.safetensors"):
        tensor_layout(model_dir)
