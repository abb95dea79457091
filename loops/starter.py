"""`sail init`: a config to start from, with what must be filled in and what is worth knowing."""

from collections.abc import Sequence
from typing import Any

import yaml

from loops.documents import configs_folder, override, read_preset
from sail.core.route_settings import SAMPLED

_HEAD = """\
# A run of the method '{preset}'. Fill in the lines marked <...>, then
#   sail plan {file}     what would run, memory, tokens, disk
#   sail run {file} --smoke     everything once, tiny
#   sail run {file}      run; the same command resumes
"""
_MODEL = "<folder or Hub id of the SFT policy>"
_SOURCES = {
    "prefs": {"path": "<Hub id, jsonl or parquet with prompt, chosen, rejected>", "split": "train"},
    "demos": {"path": "<Hub id, jsonl or parquet with prompt, completion or messages>", "split": "train"},
    "prompts": {"path": "<Hub id, jsonl or parquet with prompt>", "split": "train"},
}
_SAE = {"path": "<safetensors file with W_enc, b_enc, threshold, trained on this very model>", "layer": 25, "k": 50}
_REWARD = {"rm": {"kind": "reward_model", "path": "<sequence-classification model; or fit: {data: prefs}>"}}


def starter_config(preset: str, overrides: Sequence[str], file: str) -> str:
    """The text of a commented config, to be kept as `file`: the parts every run needs, then the preset's own table as
    comments."""
    routes = read_preset(preset).get("routes", {}).values()
    origins = [origin for route in routes for origin in _origins(route)]
    samples = bool(set(SAMPLED) & set(origins))
    sources = [name for name in dict.fromkeys(origins) if name not in SAMPLED] or ["prompts"]
    document: dict[str, Any] = {"preset": preset, "model_name_or_path": _MODEL, "seed": 0}
    document["data"] = {name: _SOURCES[name] for name in sources}
    if any(_labels_by(route) == "rm" for route in routes):
        document["labelers"] = _REWARD
    document |= {key: value for key, value in read_preset(preset).get("about", {}).items() if key == "labelers"}
    if samples:
        document["prompts"] = {"from": sources[0], "per_round": 512}
        document["update"] = {"steps": 32}
        document["evaluation"] = {"num_prompts": 128, "scorers": ["rm"] if "rm" in document.get("labelers", {}) else []}
    elif not routes:
        document["prompts"] = {"from": sources[0]}
    else:
        document["evaluation"] = {"num_prompts": 0}
    if "components.sae" in read_preset(preset)["about"]["needs"]:
        document["components"] = {"sae": _SAE}
    head = _HEAD.format(preset=preset, file=file)
    body = yaml.safe_dump(override(document, overrides), sort_keys=False, width=110)
    shipped = (configs_folder() / "methods" / f"{preset}.yaml").read_text()
    inherited = "".join(f"#   {line}\n" if line else "#\n" for line in shipped.splitlines())
    return f"{head}{body}\n# From the preset; write a key here to change it, or pass it as key=value:\n{inherited}"


def _origins(route: dict[str, Any]) -> list[str]:
    responses = route["responses"]
    return [responses] if isinstance(responses, str) else responses


def _labels_by(route: dict[str, object]) -> object:
    labels = route.get("labels")
    return labels.get("by") if isinstance(labels, dict) else labels
