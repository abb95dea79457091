"""What a model directory says about itself, read without torch."""

import json
import struct
from pathlib import Path
from typing import Any

from sail.core.errors import UserError

Layout = dict[str, tuple[int, ...]]  # tensor name -> shape


class ModelDirError(UserError):
    """A model directory no server can load: a restart would not help."""


def read_model_config(model_dir: Path) -> dict[str, Any]:
    """config.json, the text part of it where a model has several."""
    config = _read_json(model_dir / "config.json")
    text_config: dict[str, Any] = config.get("text_config", config)
    return text_config


def context_length(model_dir: Path) -> int:
    """Tokens of prompt and response the model was made for."""
    config = read_model_config(model_dir)
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if config.get(key):
            return int(config[key])
    raise ModelDirError("config.json names no context length", where=str(model_dir), cure="Set vllm.max_model_len")


def checkpoint_dtype(model_dir: Path) -> str:
    """The number format the weights were saved in; float32 where config.json does not say."""
    config = _read_json(model_dir / "config.json")
    named = [part.get(key) for part in (config, config.get("text_config", {})) for key in ("dtype", "torch_dtype")]
    return next((str(dtype) for dtype in named if dtype), "float32")


def eos_token_ids(model_dir: Path) -> frozenset[int]:
    """All end-of-sequence ids of config.json and generation_config.json (some models have several)."""
    ids: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        path = model_dir / name
        value = _read_json(path).get("eos_token_id") if path.exists() else None
        if value is not None:
            ids |= set(value if isinstance(value, list) else [value])
    return frozenset(ids)


def tensor_layout(model_dir: Path) -> Layout:
    """Names and shapes of all weights; every file is whole, every tensor of the index is there.

    Reads the headers only: a safetensors file is 8 bytes of header length, a JSON header, then the tensors
    end to end, so a truncated file is shorter than its header says.
    """
    read_model_config(model_dir)
    files = sorted(model_dir.glob("*.safetensors"))
    if not files:
        raise ModelDirError("no *.safetensors file", where=str(model_dir), cure="Save with save_pretrained")
    layout: Layout = {}
    for file in files:
        layout |= _file_layout(file)
    index = model_dir / "model.safetensors.index.json"
    missing = sorted(set(_read_json(index)["weight_map"]) - set(layout)) if index.exists() else []
    if missing:
        raise ModelDirError(f"{len(missing)} tensors of the index are missing, first {missing[0]}", where=str(index))
    return layout


def check_adapter(adapter_dir: Path) -> None:
    """ModelDirError unless a LoRA adapter's config and weights are there and whole."""
    _read_json(adapter_dir / "adapter_config.json")
    file = adapter_dir / "adapter_model.safetensors"
    if not file.is_file():
        raise ModelDirError("no such file", where=str(file), cure="Expected an adapter written by save_pretrained")
    if not any(".lora_A." in name for name in _file_layout(file)):
        raise ModelDirError("it holds no LoRA layer", where=str(file), cure="Only adapters of kind LORA are served")


def _file_layout(file: Path) -> Layout:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        header_size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if header_size + 8 > size:
            raise _broken(file, f"its {size} bytes are no safetensors file")
        text = stream.read(header_size)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise _broken(file, f"its header is no JSON ({error})") from None
    header.pop("__metadata__", None)
    if not header:
        raise _broken(file, "it holds no tensor")
    expected = 8 + header_size + max(entry["data_offsets"][1] for entry in header.values())
    if size != expected:
        raise _broken(file, f"it has {size} bytes, its header promises {expected}")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _broken(file: Path, problem: str) -> ModelDirError:
    return ModelDirError(problem, where=str(file), cure="The file is damaged or still being written: save it again")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelDirError("no such file", where=str(path), cure="Expected a folder written by save_pretrained")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ModelDirError(f"not JSON: {error}", where=str(path)) from None
    return content
