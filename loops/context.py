"""What the stages of a run share: the builder, the starting model, the data artifacts, labelers and engines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loops.launching import launch_of
from sail.core.artifacts import Artifact, Leaf, leaf
from sail.core.labeler_settings import POLICY_URL, JudgeLabeler
from sail.core.run_settings import (
    LabelerSettings,
    LoraSettings,
    PhaseSettings,
    RewardModelLabeler,
    RunSettings,
    Stream,
    VllmSettings,
)
from sail.core.seeds import derive_seed
from sail.core.store import Builder
from sail.generation import ENGINES
from sail.generation.dataset import import_data
from sail.generation.engine import Engine, ServerEngine
from sail.generation.prompts import split_prompts
from sail.generation.sources import source_leaf
from sail.generation.vllm_engine import VllmEngine
from sail.labeling import LABELERS
from sail.labeling.labeler_row import Labeler, PairLabeler
from sail.labeling.labelers.judge import PolicyEndpoint
from sail.labeling.reward_fit import fit_reward_model
from sail.labeling.scores import make_labeler
from sail.policy.autoencoder import SaeSource
from sail.policy.loading import Checkpoint, resolve_model

EngineSettings = tuple[VllmSettings, LoraSettings | None]


@dataclass
class Engines:
    """Engines by name, opened when first used; the runs of an ablation share them, one server for all."""

    log_folder: Path
    _open: dict[str, tuple[EngineSettings, Engine]] = field(default_factory=dict)

    def engine(self, name: str, vllm: VllmSettings, lora: LoraSettings | None) -> Engine:
        """The engine `name`; one that runs with other settings is closed first."""
        if name in self._open and self._open[name][0] != (vllm, lora):
            self._open.pop(name)[1].close()
        if name not in self._open:
            self._open[name] = ((vllm, lora), ENGINES[name].open(vllm, self.log_folder, lora))
        return self._open[name][1]

    def rest(self) -> None:
        """The policy is about to train: engines in processes of their own may make room."""
        for _, engine in self._open.values():
            if isinstance(engine, ServerEngine):
                engine.rest()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1][1].close()


@dataclass
class Context:
    """One attempt at a run. Everything here is found by name; nothing here decides the order of stages."""

    settings: RunSettings
    builder: Builder
    log_folder: Path
    engines: Engines | None = None  # of several runs, closed by whoever opened them; default: its own
    download: bool = True  # of Hub models everything; else their configs alone, which is enough to plan
    _sources: dict[str, Leaf] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = resolve_model(self.settings.model_name_or_path, self.settings.revision, download=self.download)
        self.launch = launch_of(self.settings, self.log_folder)
        template = self.settings.chat_template
        self._engines = self.engines or Engines(self.log_folder)
        self.template = None if template is None else leaf(Path(template), "chat_template")

    def seed(self, stream: Stream, *names: str, phase: PhaseSettings | None = None) -> int:
        """The seed of a random stream: its own, else the phase's, else the run's."""
        of_phase = None if phase is None else phase.seed
        seed = self.settings.seeds.get(stream, self.settings.seed if of_phase is None else of_phase)
        return derive_seed(seed, stream, *names)

    def data(self, name: str) -> Artifact:
        """The tokenised data source `name`."""
        source = self.settings.data[name]
        if name not in self._sources:
            self._sources[name] = source_leaf(source, f"data.{name}")
        return import_data(
            self.builder, name, source, self._sources[name],
            model=self.model, chat_template=self.template,
            chat_template_kwargs=self.settings.chat_template_kwargs, max_length=self.settings.max_length,
        )  # fmt: skip

    def prompts(self, phase: PhaseSettings) -> Artifact:
        """Training and held-out prompts of a phase."""
        training = phase.prompts.source if phase.prompts else str(phase.evaluation.prompts)
        held_out = phase.evaluation.prompts or training
        return split_prompts(
            self.builder, self.data(training), self.data(held_out),
            num_held_out=phase.evaluation.num_prompts, seed=self.seed("prompts"),
        )  # fmt: skip

    def sae(self, phase: PhaseSettings) -> SaeSource | None:
        """The user's sparse autoencoder, by content."""
        settings = phase.components.sae
        if settings is None:
            return None
        return SaeSource(leaf(Path(settings.path), "components.sae.path"), settings.layer, settings.k)

    def labeler(self, name: str, policy: Checkpoint | None = None) -> Labeler:
        """The labeler `name` of single responses; one that is to be fitted here is fitted first.

        policy: who judges where the labeler is a judge at url: policy; default the starting policy.
        """
        settings = self.settings.labelers[name]
        made_here = self._policy_endpoint(settings, policy) or self._reward_model(name, settings)
        return make_labeler(name, settings, made_here)

    def pair_labeler(self, name: str, policy: Checkpoint) -> PairLabeler:
        """The labeler `name` of pairs."""
        settings = self.settings.labelers[name]
        make = LABELERS[settings.kind].verdicts
        assert make is not None, f"{settings.kind} compares no pairs"
        return make(name, settings, self._policy_endpoint(settings, policy))

    def _policy_endpoint(self, settings: LabelerSettings, policy: Checkpoint | None) -> PolicyEndpoint | None:
        if not isinstance(settings, JudgeLabeler) or settings.url != POLICY_URL:
            return None
        judge = policy or self.model

        def serve() -> tuple[str, str]:
            engine = self.engine("vllm")
            assert isinstance(engine, VllmEngine), "the row of ENGINES"
            return engine.endpoint(judge)

        return PolicyEndpoint(judge, serve)

    def _reward_model(self, name: str, settings: object) -> Checkpoint | None:
        """The user's own, or the one that is fitted here."""
        if not isinstance(settings, RewardModelLabeler):
            return None
        fit, where = settings.fit, f"labelers.{name}"
        if fit is None:
            return resolve_model(str(settings.path), where=f"{where}.path", download=self.download)
        init: Checkpoint = self.model
        if fit.init_from is not None:
            init = resolve_model(fit.init_from, where=f"{where}.fit.init_from", download=self.download)
        return fit_reward_model(self.builder, self.data(fit.data), init, fit, self.seed("reward", name))

    def engine(self, name: str) -> Engine:
        return self._engines.engine(name, self.settings.vllm, self.settings.lora)

    def engine_settings(self, name: str) -> Mapping[str, Any]:
        """What of the engine can change a sample."""
        return self.settings.vllm.recipe() if name == "vllm" else {}

    def rest_engines(self) -> None:
        """The policy is about to train: engines in processes of their own may make room."""
        self._engines.rest()

    def close(self) -> None:
        if self.engines is None:
            self._engines.close()
