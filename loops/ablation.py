"""An ablation: a base config, arms that change it, and seeds; every arm x seed is an ordinary run.

base: quickstart.yaml                        a file (beside this one), a preset, or the keys themselves
seeds: [1, 2, 3]
arms:
  offline: {routes.online.share: 0}
  soft: {routes: {online: {label_mode: soft}}}
compare_to: offline
share: [prompts, reward]
equal: {optimizer_steps: 180}
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import field_validator

from loops.budgets import EqualSettings, equalise
from loops.config import Config, resolve, smoke_overrides
from loops.documents import Document, merge, override, preset_names, read_document
from sail.core.errors import UserError
from sail.core.run_settings import RunSettings, Stream
from sail.core.settings import Settings, execution, meaning, nearest, parse_settings

_SEED = "{seed}"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class AblationSettings(Settings):
    """What an ablation file holds."""

    base: dict[str, Any] = meaning(doc="the config that every arm starts from: a file, a preset, or its keys")
    seeds: tuple[int, ...] = meaning((0,), "one run of every arm for each; {seed} in any text stands for it")
    arms: dict[str, dict[str, Any]] = meaning(doc="name -> what it changes, nested or dotted")
    share: tuple[str, ...] = meaning(("prompts", "reward"), "streams and phases that keep the base's seed")
    equal: EqualSettings = meaning(EqualSettings(), "what every arm gets the same amount of")
    compare_to: str | None = execution(None, "the arm that differences are taken to; default: the first")
    kl_limit: float | None = execution(None, "also report the best reward among checkpoints under this KL", gt=0)

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError("expected some seeds, all different, none negative")
        return seeds

    @field_validator("arms")
    @classmethod
    def _arms_name_folders(cls, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        wrong = [name for name in arms if not _NAME.fullmatch(name)]
        if wrong or not arms:
            raise ValueError(f"expected names of letters, digits, '.', '_' and '-', got {wrong or 'no arm'}")
        return arms


@dataclass(frozen=True)
class ArmRun:
    """One arm under one seed: an ordinary run."""

    arm: str
    seed: int
    config: Config
    settings: RunSettings

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}"


@dataclass(frozen=True)
class Ablation:
    """An ablation file and the runs it means, seed by seed, so that all arms can be compared early."""

    name: str
    source: Path
    asked: Document
    settings: AblationSettings
    runs: tuple[ArmRun, ...]

    @property
    def compare_to(self) -> str:
        return self.settings.compare_to or next(iter(self.settings.arms))


def is_ablation(source: str) -> bool:
    path = Path(source)
    return path.suffix in (".yaml", ".yml") and path.exists() and "arms" in read_document(path)


def load_ablation(source: str, overrides: Sequence[str] = (), *, smoke: bool = False) -> Ablation:
    """Read an ablation file; overrides change it as it stands: seeds=[1], base.num_rounds=1."""
    path = Path(source)
    asked = read_document(path)
    if "arms" not in asked:
        raise UserError("no arms: a run, no ablation", where=source, cure=f"sail run {source}, or add arms")
    asked = override({**asked, "base": _base(asked.get("base"), path)}, overrides)
    return parse_ablation(asked, path, smoke=smoke)


def parse_ablation(asked: Document, path: Path, *, smoke: bool = False) -> Ablation:
    """The runs that a whole document means; `path` names the file it came from."""
    source = str(path)
    settings = parse_settings(AblationSettings, asked, source)
    if settings.compare_to not in (None, *settings.arms):
        cure = nearest(str(settings.compare_to), list(settings.arms))
        raise UserError(f"no arm {settings.compare_to!r}", where=f"{source}: compare_to", cure=cure)
    runs = tuple(_run(settings, arm, seed, source, smoke) for seed in settings.seeds for arm in settings.arms)
    _arms_differ(runs, settings, source)
    return Ablation(path.stem, path.absolute(), asked, settings, runs)


def _base(base: Any, ablation: Path) -> Any:
    """The keys that `base` names; a file is looked for beside the ablation, then in the working folder."""
    if not isinstance(base, str):
        return base
    if base in preset_names():
        return {"preset": base}
    beside = ablation.parent / base
    return read_document(beside if beside.exists() else Path(base))


def _run(settings: AblationSettings, arm: str, seed: int, source: str, smoke: bool) -> ArmRun:
    where = f"{source}: arms.{arm}"
    asked = _for_seed(_with_arm(settings.base, settings.arms[arm]), seed)
    asked = _seeded(asked, seed, settings, where)
    asked = equalise(asked, settings.equal, where)
    resolved = resolve(asked, where)
    if smoke:
        resolved = smoke_overrides(resolved)
    return ArmRun(arm, seed, Config(f"{arm}-seed{seed}", asked, resolved, str(Path(source).absolute())), resolved)


def _with_arm(base: Mapping[str, Any], arm: Mapping[str, Any]) -> Document:
    """The arm's changes, nested or dotted, on top of the base."""
    changes: Document = {}
    for dotted, value in arm.items():
        change: Any = value
        for key in reversed(dotted.split(".")):
            change = {key: change}
        changes = merge(changes, change)
    return merge(_base_of(base, changes), changes)


def _base_of(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Document:
    """The base without the routes of a preset that is changed: they belong to another method."""
    kept: Document = dict(base)
    if "preset" in changes and changes["preset"] != base.get("preset"):
        kept.pop("routes", None)
    own = changes.get("phases")
    if isinstance(own, Mapping) and isinstance(base.get("phases"), list):
        kept["phases"] = [_base_of(phase, own.get(phase.get("name"), {})) for phase in base["phases"]]
    return kept


def _for_seed(value: Any, seed: int) -> Any:
    """{seed} replaced in every text: data.prefs.path: runs/testbed-{seed}/prefs.jsonl."""
    if isinstance(value, str):
        return value.replace(_SEED, str(seed))
    if isinstance(value, Mapping):
        return {key: _for_seed(inner, seed) for key, inner in value.items()}
    return [_for_seed(inner, seed) for inner in value] if isinstance(value, list) else value


def _seeded(asked: Document, seed: int, settings: AblationSettings, where: str) -> Document:
    """The run's seed, and the base's for what the runs share: streams by `seeds`, phases by their own seed."""
    of_base = asked.get("seed", 0)
    streams = [name for name in settings.share if name in get_args(Stream)]
    known = [phase.name for phase in resolve(asked, where).phases] if "phases" in asked else []
    shared = {name: {"seed": of_base} for name in settings.share if name not in streams}
    for name in shared:
        if name not in known:
            cure = nearest(name, [*get_args(Stream), *known])
            raise UserError(f"{name!r} is no stream and no phase", where=f"{where}: share", cure=cure)
    seeds = dict.fromkeys(streams, of_base) | asked.get("seeds", {})
    return merge(asked, {"seed": seed, "seeds": seeds} | ({"phases": shared} if shared else {}))


def _arms_differ(runs: Sequence[ArmRun], settings: AblationSettings, source: str) -> None:
    first = {run.arm: run.settings for run in runs if run.seed == settings.seeds[0]}
    for name, own in first.items():
        same = [other for other, theirs in first.items() if other != name and theirs == own]
        if same:
            raise UserError(f"arms {name!r} and {same[0]!r} are the same run", where=source, cure="Change or drop one")
