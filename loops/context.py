"""What the stages of a run share: the builder, the starting model, the data artifacts, labelers and engines."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import partial
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
from sail.labeling.labeler_row import Labeler, PairLabeler, kept_open
from sail.labeling.labelers.judge import PolicyEndpoint
from sail.labeling.labelers.reward_model import RewardOrigin
from sail.labeling.reward_fit import fit_reward_model
from sail.labeling.scores import make_labeler
from sail.policy.autoencoder import SaeSource
from sail.policy.loading import Checkpoint, resolve_model
from sail.serving.reward_server import RewardServer

EngineSettings = tuple[VllmSettings, LoraSettings | None, Leaf | None]


@dataclass
class Engines:
    """Engines by name, opened when first used; the runs of an ablation share them, one server for all."""

    log_folder: Path
    _open: dict[str, tuple[EngineSettings, Engine]] = field(default_factory=dict)
    _reward_servers: dict[str, tuple[VllmSettings, RewardServer]] = field(default_factory=dict)

    def engine(
        self, name: str, vllm: VllmSettings, lora: LoraSettings | None, chat_template: Leaf | None = None
    ) -> Engine:
        """The engine `name`; one that runs with other settings, or another chat template, is closed first."""
        wanted = (vllm, lora, chat_template)
        if name in self._open and self._open[name][0] != wanted:
            self._open.pop(name)[1].close()
        if name not in self._open:
            self._open[name] = (wanted, ENGINES[name].open(vllm, self.log_folder, lora, chat_template))
        return self._open[name][1]

    def reward_server(self, labeler: str, vllm: VllmSettings) -> RewardServer:
        """The server of a reward model; one that runs with other settings is stopped first."""
        if labeler in self._reward_servers and self._reward_servers[labeler][0] != vllm:
            self._reward_servers.pop(labeler)[1].stop()
        if labeler not in self._reward_servers:
            self._reward_servers[labeler] = (vllm, RewardServer(vllm, self.log_folder, labeler))
        return self._reward_servers[labeler][1]

    def rest(self) -> None:
        """The policy is about to train: engines in processes of their own may make room."""
        for _, engine in self._open.values():
            if isinstance(engine, ServerEngine):
                engine.rest()
        for _, server in self._reward_servers.values():
            server.rest()

    def close(self) -> None:
        while self._reward_servers:
            self._reward_servers.popitem()[1][1].stop()
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
    _kept: dict[str, Labeler] | None = None  # labelers that were opened and stay so

    def __post_init__(self) -> None:
        self.model = resolve_model(self.settings.model_name_or_path, self.settings.revision, download=self.download)
        self.launch = launch_of(self.settings, self.log_folder)
        template = self.settings.chat_template
        self._engines = self.engines or Engines(self.log_folder)
        self.template = None if template is None else leaf(Path(template), "chat_template")

    def building_with(self, builder: Builder, kept: dict[str, Labeler]) -> "Context":
        """The same run with another builder; its labelers of single responses are loaded once and stay in `kept`."""
        other = copy(self)
        other.builder, other._kept = builder, kept
        return other

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
        if self._kept is not None and name in self._kept:
            return self._kept[name]
        settings = self.settings.labelers[name]
        made_here: object = self._policy_endpoint(settings, policy)
        if isinstance(settings, RewardModelLabeler):
            made_here = self._reward_origin(name, settings)
        labeler = make_labeler(name, settings, made_here)
        return labeler if self._kept is None else self._kept.setdefault(name, kept_open(labeler))

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

        def engine() -> VllmEngine:
            made = self.engine("vllm")
            assert isinstance(made, VllmEngine), "the row of ENGINES"
            return made

        return PolicyEndpoint(
            judge, lambda: engine().endpoint(judge), self.template, self.settings.chat_template_kwargs,
            lambda: engine().refuse_other_weights(),
        )  # fmt: skip

    def _reward_origin(self, name: str, settings: RewardModelLabeler) -> RewardOrigin:
        vllm = settings.vllm
        server = None if vllm is None else partial(self._engines.reward_server, name, vllm)
        checkpoint: Checkpoint | None = self.fitted(name)
        if settings.path is not None:
            checkpoint = resolve_model(settings.path, where=f"labelers.{name}.path", download=self.download)
        return RewardOrigin(checkpoint, server)

    def fitted(self, name: str) -> Artifact | None:
        """The reward model `name`, where it is one that is fitted here."""
        settings = self.settings.labelers[name]
        if not isinstance(settings, RewardModelLabeler) or settings.fit is None:
            return None
        fit, init = settings.fit, self.model
        if fit.init_from is not None:
            init = resolve_model(fit.init_from, where=f"labelers.{name}.fit.init_from", download=self.download)
        return fit_reward_model(self.builder, self.data(fit.data), init, fit, self.seed("reward", name))

    def engine(self, name: str) -> Engine:
        engine = self._engines.engine(name, self.settings.vllm, self.settings.lora, self.template)
        if isinstance(engine, VllmEngine):
            engine.remember(self.model)
        return engine

    def engine_settings(self, name: str) -> Mapping[str, Any]:
        """What of the engine can change a sample."""
        return self.settings.vllm.recipe() if name == "vllm" else {}

    def rest_engines(self) -> None:
        """The policy is about to train: engines in processes of their own may make room."""
        self._engines.rest()

    def close(self) -> None:
        if self.engines is None:
            self._engines.close()
