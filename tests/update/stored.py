"""A small real world on disk for the update: data, samples, log-probs and pairs, made by the project's own stages."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sail.core.artifacts import Artifact, Leaf, leaf
from sail.core.records import DatasetVerdict, Message, Prompt, Sample, SampleGroup
from sail.core.route_settings import HygieneSettings, LossSettings, RouteSettings
from sail.core.run_settings import ImportanceSettings, UpdateSettings
from sail.core.store import Recipe, Store, Workspace
from sail.labeling.evidence import Evidence
from sail.labeling.labelers.dataset import DatasetEvidence
from sail.labeling.labelers.policy import PolicyEvidence
from sail.labeling.pairs import PairingOptions, pair_responses
from sail.policy.scoring import score_logps
from sail.update.inputs import UpdateInputs
from sail.update.items import RouteInput, RowSource
from tests.serving_fixtures import make_tiny_policy

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
KEEP = HygieneSettings(truncated="keep", empty="keep", identical="keep", ties="keep")


def tiny_leaf(folder: Path, seed: int = 1, *, tied: bool = False, spread: float = 0.3) -> Leaf:
    policy = make_tiny_policy(folder, seed=seed, tied=tied, spread=spread)
    (policy.path / "chat_template.jinja").write_text(TEMPLATE)
    return leaf(policy.path)


def groups(count: int, origin: str) -> list[SampleGroup]:
    """Prompts of different lengths, two responses each."""
    made = []
    for index in range(count):
        prompt = Prompt(f"p-{index}", (Message(role="user", content=f"w{index}"),), tuple(range(3, 5 + index % 5)))
        samples = tuple(
            Sample(
                response_id=f"p-{index}-{origin}-{side}", origin=origin, text=f"r{side}",
                token_ids=(*(10 + index + 3 * side + k for k in range(1 + (index + side) % 4)), 2), logprobs=(),
                stop_kind="eos", policy_version="v", seed=0,
            )
            for side in range(2)
        )  # fmt: skip
        made.append(SampleGroup(prompt, samples))
    return made


def stored_groups(store: Store, made: list[SampleGroup], stage: str) -> Artifact:
    def run(workspace: Workspace) -> dict[str, int]:
        workspace.write("groups", made, SampleGroup)
        verdicts = [
            DatasetVerdict(g.prompt.prompt_id, g.samples[0].response_id, g.samples[1].response_id, None, None)
            for g in made
        ]
        workspace.write("verdicts", verdicts, DatasetVerdict)
        return {}

    return store.build(Recipe(stage, 1, {"ids": [s.response_id for g in made for s in g.samples]}, {}), run)


@dataclass
class World:
    root: Path
    spread: float = 0.3  # of the policy's weights
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.root / "store")
        self.policy = tiny_leaf(self.root / "policy", spread=self.spread)
        self.data = stored_groups(self.store, groups(12, "data:prefs"), "data")
        self.samples = stored_groups(self.store, groups(10, "policy"), "samples")

    def offline(self, loss: LossSettings, **settings: Any) -> RouteInput:
        """Dataset pairs with the dataset's labels."""
        return self._route("offline", self.data, DatasetEvidence(self.data), "verdicts", "hard", loss, settings)

    def self_labelled(self, loss: LossSettings, **settings: Any) -> RouteInput:
        """Policy samples, labels by the policy at the current parameters."""
        logps = score_logps(self.store, self.samples, self.policy)
        evidence = PolicyEvidence(logps, logps, loss.type, loss.params)
        labels = {"by": "policy", "mode": "soft"}
        return self._route("online", self.samples, evidence, "all", "soft", loss, {"labels": labels, **settings})

    def _route(
        self, name: str, responses: Artifact, evidence: Evidence, pairing: str, mode: Any, loss: LossSettings,
        settings: dict[str, Any],
    ) -> RouteInput:  # fmt: skip
        options = PairingOptions(pairing, mode, seed=0, sail_coef=settings.get("sail_coef", 0.0), hygiene=KEEP)
        logps = score_logps(self.store, responses, self.policy)
        rows = pair_responses(self.store, responses, evidence, options)
        source = RowSource(responses, rows, reference_logps=logps, behavior_logps=logps)
        route = RouteSettings.model_validate({"responses": name, "labels": name, **settings})
        return RouteInput(name, route, loss, (source,))

    def inputs(self, *routes: RouteInput, importance: ImportanceSettings | None = None, **update: Any) -> UpdateInputs:
        defaults = {"steps": 4, "train_batch_size": 6, "learning_rate": 1e-3, "save_steps": 1}
        settings = UpdateSettings.model_validate(defaults | update)
        return UpdateInputs(self.policy, routes, settings, importance or ImportanceSettings(), seed=0, round_index=0)
