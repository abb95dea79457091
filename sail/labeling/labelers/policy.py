"""The policy as its own labeler: its implicit preference between two responses, by the link of its loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sail.core.artifacts import Artifact, Keyed
from sail.core.errors import UserError
from sail.core.records import LabelMode, LabelSource, Sample
from sail.labeling.candidates import Candidate
from sail.labeling.evidence import Opinions
from sail.labeling.labels import Opinion, winner_of
from sail.objectives import ALIASES, LossRow, Responses, find_loss
from sail.policy.scoring import read_logps


@dataclass(frozen=True, slots=True)
class PolicyEvidence:
    """q(A beats B) = link(A, B), for dpo sigmoid(beta (h_a - h_b)) with h = log pi - log ref (SAIL, 2406.15567).

    when: 'frozen' fixes the label here, like anyone else's; 'fresh' leaves it to the update, and the pair records q.
    The artifacts are tables "logps" of the paired responses under policy and reference (sail.policy.scoring).
    A response's score is h in nats, or log pi for a loss without a reference.
    """

    policy_logps: Artifact
    reference_logps: Artifact | None
    loss: str  # a row of sail.objectives.LOSSES
    params: Mapping[str, float] = field(default_factory=dict)
    when: Literal["fresh", "frozen"] = "fresh"
    labeler: str = "policy"

    @property
    def source(self) -> LabelSource:
        return "fresh" if self.when == "fresh" else "others"

    @property
    def digest(self) -> str:
        """The key of the policy's log-probs, which depends on the checkpoint and the responses."""
        return self.policy_logps.key

    def inputs(self) -> dict[str, Keyed]:
        reference = {} if self.reference_logps is None else {"reference_logps": self.reference_logps}
        return {"policy_logps": self.policy_logps, **reference}

    def recipe(self, mode: LabelMode) -> dict[str, Any]:
        loss = ALIASES.get(self.loss, self.loss)
        params = find_loss(self.loss).params | dict(self.params)
        return {"by": "policy", "labeler": self.labeler, "loss": loss, "params": params, "when": self.when}

    def read(self, responses: Artifact) -> Opinions:
        row = find_loss(self.loss)
        if row.link is None:
            raise UserError(
                f"{self.loss!r} says nothing about preferences (it has no link)", where="labels.by: policy",
                cure="Use a loss with a link, such as dpo or ipo, or another labeler",
            )  # fmt: skip
        if "reference" in row.needs and self.reference_logps is None:
            raise ValueError(f"labels by the policy with {self.loss!r} need the reference's log-probs")
        reference = {} if self.reference_logps is None else read_logps(self.reference_logps)
        return _PolicyOpinions(row, self.params, read_logps(self.policy_logps), reference)


@dataclass(frozen=True, slots=True)
class _PolicyOpinions:
    row: LossRow
    params: Mapping[str, float]
    policy: Mapping[str, float]
    reference: Mapping[str, float]

    @property
    def scores(self) -> Mapping[str, float]:
        return {response_id: self._score(response_id) for response_id in self.policy}

    def _score(self, response_id: str) -> float:
        return self.policy[response_id] - (self.reference[response_id] if self.reference else 0.0)

    def of(self, candidates: Sequence[Candidate]) -> list[Opinion]:
        a = self._responses([pair.a for pair in candidates])
        b = self._responses([pair.b for pair in candidates])
        return [
            Opinion(
                winner_of(q_a, q_b), min(q_a, 1.0), self._score(pair.a.response_id), self._score(pair.b.response_id)
            )
            for pair, q_a, q_b in zip(candidates, self._preference(a, b), self._preference(b, a), strict=True)
        ]

    def _preference(self, a: Responses, b: Responses) -> list[float]:
        assert self.row.link is not None
        preferences: list[float] = self.row.link(a, b, **self.params).exp().tolist()
        return preferences

    def _responses(self, samples: Sequence[Sample]) -> Responses:
        return Responses(
            logps=_vector([self.policy[sample.response_id] for sample in samples]),
            ref_logps=_vector([self.reference.get(sample.response_id, 0.0) for sample in samples]),
            num_tokens=_vector([float(len(sample.token_ids)) for sample in samples]),
        )


def _vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
