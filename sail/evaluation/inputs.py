"""What an evaluation looks at."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sail.core.artifacts import Artifact, Keyed
from sail.policy.loading import Checkpoint


@dataclass(frozen=True, slots=True)
class HeldOutPairs:
    """Dataset pairs the update never saw, scored under policy and reference."""

    data: Artifact  # tables "groups" (SampleGroup) and "verdicts" (DatasetVerdict)
    policy_logps: Artifact  # table "logps"
    reference_logps: Artifact


@dataclass(frozen=True, slots=True)
class EvaluationInputs:
    """What one evaluation looks at.

    scores: by scorer, the headline first; may be empty. start_scores: the same scorers on the starting policy's
    samples of the same prompts; empty for the starting policy itself, which then has no win rate.
    """

    policy: Checkpoint
    reference: Checkpoint
    samples: Artifact  # table "groups": n samples on each held-out prompt, drawn from the policy
    policy_logps: Artifact  # table "logps" of the samples
    reference_logps: Artifact
    scores: Mapping[str, Artifact] = field(default_factory=dict)  # table "scores"
    start_scores: Mapping[str, Artifact] = field(default_factory=dict)
    pairs: HeldOutPairs | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.start_scores) - set(self.scores):
            raise ValueError(f"start_scores by {sorted(unknown)}, which did not score the policy's samples")

    def keyed(self) -> dict[str, Keyed]:
        """Every input by name, as it enters the recipe."""
        inputs: dict[str, Keyed] = {
            "policy": self.policy,
            "reference": self.reference,
            "samples": self.samples,
            "policy_logps": self.policy_logps,
            "reference_logps": self.reference_logps,
        }
        inputs |= {f"scores:{name}": artifact for name, artifact in self.scores.items()}
        inputs |= {f"start_scores:{name}": artifact for name, artifact in self.start_scores.items()}
        if self.pairs is not None:
            inputs["pairs"] = self.pairs.data
            inputs["pairs_policy_logps"] = self.pairs.policy_logps
            inputs["pairs_reference_logps"] = self.pairs.reference_logps
        return inputs
