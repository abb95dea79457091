"""From a YAML file (or a preset's name) and overrides to RunSettings.

A flat file is one phase. In a file with `phases:` every phase starts from its preset, then takes what stands at the
top level beside the phases, then its own keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loops.documents import Document, merge, override, preset_names, read_document, read_preset
from sail.core.errors import UserError
from sail.core.run_settings import PhaseSettings, RunSettings
from sail.core.settings import nearest, parse_settings

_RUN_KEYS = [name for name in RunSettings.model_fields if name != "phases"]
_OWN_KEYS = ("name", "seed")  # of a phase alone; beside the phases, seed is the run's
_PHASE_KEYS = [name for name in PhaseSettings.model_fields if name not in _OWN_KEYS]
_BATCH_TRIPLE = ("per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True)
class Config:
    """What was asked and what it resolves to."""

    name: str
    asked: Document
    settings: RunSettings
    source: str  # a preset's name, or the file's absolute path


def load_config(source: str, overrides: Sequence[str] = ()) -> Config:
    """Read `source`: a YAML file or the name of a preset."""
    path = Path(source)
    is_preset = path.suffix not in (".yaml", ".yml") and source in preset_names()
    asked: Document = {"preset": source} if is_preset else read_document(path)
    if "arms" in asked:
        raise UserError("an ablation, no run", where=source, cure=f"sail ablate {source}")
    asked = override(asked, overrides)
    return Config(path.stem, asked, resolve(asked, source), source if is_preset else str(path.absolute()))


def resolve(asked: Mapping[str, Any], source: str = "config") -> RunSettings:
    """Merge presets and phases of a document and validate the whole."""
    _known_keys(asked, [*_RUN_KEYS, *_PHASE_KEYS, "phases"], source)
    shared = {key: value for key, value in asked.items() if key in _PHASE_KEYS}
    phases = asked.get("phases")
    if phases is None:
        resolved = [_phase(shared, {}, shared.get("preset") or "main", source)]
    else:
        if not isinstance(phases, list) or not all(isinstance(phase, Mapping) for phase in phases):
            raise UserError("phases: expected a list of mappings", where=source, cure="- {name: dpo, preset: dpo}")
        resolved = [
            _phase(shared, phase, str(phase.get("name", f"phase-{index}")), f"{source}: phases.{index}")
            for index, phase in enumerate(phases)
        ]
    run = {key: value for key, value in asked.items() if key in _RUN_KEYS}
    for key in ("model_name_or_path", "data"):
        if run.get(key) is None:
            raise UserError(f"{key}: missing", where=source, cure=f"Set {key}, in the file or as {key}=...")
    return parse_settings(RunSettings, run | {"phases": resolved}, source, ("phases", 0) if phases is None else ())


def _phase(shared: Mapping[str, Any], own: Mapping[str, Any], name: str, source: str) -> Document:
    _known_keys(own, [*_PHASE_KEYS, *_OWN_KEYS], source)
    preset = own.get("preset", shared.get("preset"))
    base = read_preset(str(preset), f"{source}: preset") if preset is not None else {}
    base = {key: value for key, value in base.items() if key != "about"}
    phase = merge(merge(base, shared), own) | {"name": name, "preset": preset}
    if isinstance(phase.get("update"), Mapping):
        phase["update"] = _batch_size(phase["update"], source)
    return phase


def _known_keys(document: Mapping[str, Any], known: list[str], source: str) -> None:
    for key in document:
        if key not in known:
            raise UserError(f"unknown key {key!r}", where=source, cure=nearest(str(key), known))


def _batch_size(update: Mapping[str, Any], source: str) -> Document:
    """Accept per_device_train_batch_size x gradient_accumulation_steps (one process) for train_batch_size."""
    given = {key: _whole(update[key], f"{source}: update.{key}") for key in _BATCH_TRIPLE if key in update}
    rest = {key: value for key, value in update.items() if key not in _BATCH_TRIPLE}
    if not given:
        return rest
    product = given.get(_BATCH_TRIPLE[0], 1) * given.get(_BATCH_TRIPLE[1], 1)
    if rest.setdefault("train_batch_size", product) != product:
        raise UserError(
            f"train_batch_size {rest['train_batch_size']} is not {' x '.join(str(value) for value in given.values())}",
            where=f"{source}: update", cure="Give train_batch_size alone",
        )  # fmt: skip
    return rest


def _whole(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{value!r} is no whole number", where=where, cure="Give an integer greater than 0")
    return value


def smoke_overrides(settings: RunSettings) -> RunSettings:
    """The same run, tiny: a minute of everything before hours of it."""
    data = {
        name: source.replace(limit=min(source.limit or 64, 64), overlong="drop")
        for name, source in settings.data.items()
    }
    return settings.replace(data=data, phases=tuple(_smoke_phase(phase) for phase in settings.phases))


def _smoke_phase(phase: PhaseSettings) -> PhaseSettings:
    prompts = phase.prompts and phase.prompts.replace(per_round=8)
    length = min(phase.generation.max_completion_length, 32)
    return phase.replace(
        num_rounds=min(phase.num_rounds, 2),
        prompts=prompts,
        update=phase.update.replace(steps=2, train_batch_size=4, save_steps=1),
        generation=phase.generation.replace(max_completion_length=length),
        hygiene=phase.hygiene.replace(truncated="keep", empty="keep", identical="keep", ties="keep", min_margin=0.0),
        evaluation=phase.evaluation.replace(num_prompts=min(phase.evaluation.num_prompts, 8)),
    )
