"""What the stages of a run share: the builder, the starting model, the data artifacts, labelers and engines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loops.launching import launch_of
from sail.core.artifacts import Artifact, Leaf, leaf
from sail.core.run_settings import PhaseSettings, RewardModelLabeler, RunSettings
from sail.core.seeds import derive_seed
from sail.core.store import Builder
from sail.generation import ENGINES
from sail.generation.dataset import import_data
from sail.generation.engine import Engine
from sail.generation.prompts import split_prompts
from sail.generation.sources import source_leaf
from sail.labeling import LABELERS
from sail.labeling.labeler_row import Labeler
from sail.labeling.reward_fit import fit_reward_model
from sail.policy.loading import Checkpoint, resolve_model


@dataclass
class Context:
    """One attempt at a run. Everything here is found by name; nothing here decides the order of stages."""

    settings: RunSettings
    builder: Builder
    log_folder: Path
    _engines: dict[str, Engine] = field(default_factory=dict)
    _sources: dict[str, Leaf] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = resolve_model(self.settings.model_name_or_path, self.settings.revision)
        self.launch = launch_of(self.settings, self.log_folder)
        template = self.settings.chat_template
        self.template = None if template is None else leaf(Path(template), "chat_template")

    def seed(self, *stream: str) -> int:
        return derive_seed(self.settings.seed, *stream)

    def data(self, name: str) -> Artifact:
        """The tokenised data source `name`."""
        source = self.settings.data[name]
        if name not in self._sources:
            self._sources[name] = source_leaf(source, f"data.{name}")
        return import_data(
            self.builder, name, source, self._sources[name],
            model=self.model, chat_template=self.template, max_length=self.settings.max_length,
        )  # fmt: skip

    def prompts(self, phase: PhaseSettings) -> Artifact:
        """Training and held-out prompts of a phase."""
        training = phase.prompts.source if phase.prompts else str(phase.evaluation.prompts)
        held_out = phase.evaluation.prompts or training
        return split_prompts(
            self.builder, self.data(training), self.data(held_out),
            num_held_out=phase.evaluation.num_prompts, seed=self.seed("prompts"),
        )  # fmt: skip

    def labeler(self, name: str) -> Labeler:
        """The labeler `name`; one that is to be fitted here is fitted first."""
        settings = self.settings.labelers[name]
        opened = LABELERS[settings.kind].scores
        assert opened is not None, f"{settings.kind} scores no responses"
        return opened(name, settings, self._fitted(name, settings))

    def _fitted(self, name: str, settings: object) -> Artifact | None:
        if not isinstance(settings, RewardModelLabeler) or settings.fit is None:
            return None
        fit = settings.fit
        init: Checkpoint = self.model if fit.init_from is None else resolve_model(fit.init_from)
        return fit_reward_model(self.builder, self.data(fit.data), init, fit, self.seed("reward", name))

    def engine(self, name: str) -> Engine:
        if name not in self._engines:
            self._engines[name] = ENGINES[name].open(self.settings.vllm, self.log_folder)
        return self._engines[name]

    def engine_settings(self, name: str) -> Mapping[str, Any]:
        """What of the engine can change a sample."""
        return self.settings.vllm.recipe() if name == "vllm" else {}

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
