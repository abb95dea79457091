"""The dataset's own verdict: chosen beats rejected."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sail.core.artifacts import Artifact, Keyed
from sail.core.errors import UserError
from sail.core.records import LabelMode, LabelSource
from sail.labeling.candidates import Candidate
from sail.labeling.evidence import Opinions
from sail.labeling.labels import Opinion, Winner, by_scores


@dataclass(frozen=True, slots=True)
class DatasetEvidence:
    """The verdicts table of a data artifact, the one whose responses are paired; needs the pairing 'verdicts'.

    The winner is the chosen response, whatever the scores beside it say; p_chosen of 1/2 is a tie. P(A beats B) is
    p_chosen where the dataset says one below 1, else sigmoid((s_a - s_b) / temperature) where it has both scores;
    where it has neither, only hard labels can be made.
    """

    data: Artifact
    labeler: str = "dataset"  # the data source's name
    temperature: float = 1.0  # in units of the dataset's scores

    @property
    def source(self) -> LabelSource:
        return "others"

    @property
    def digest(self) -> str:
        return self.data.key

    def inputs(self) -> dict[str, Keyed]:
        return {}  # the verdicts lie in the artifact of the responses

    def recipe(self, mode: LabelMode) -> dict[str, Any]:
        names = {"by": "dataset", "labeler": self.labeler}
        return names if mode == "hard" else names | {"temperature": self.temperature}

    def read(self, responses: Artifact) -> Opinions:
        if responses.key != self.data.key:
            raise UserError(
                f"data source {self.labeler!r} has verdicts on its own responses only", where="labels.by",
                cure="Label other responses by a reward model, a callable or the policy",
            )  # fmt: skip
        return _DatasetOpinions(self.temperature)


@dataclass(frozen=True, slots=True)
class _DatasetOpinions:
    temperature: float
    scores: None = None

    def of(self, candidates: Sequence[Candidate]) -> list[Opinion]:
        return [self._opinion(pair) for pair in candidates]

    def _opinion(self, pair: Candidate) -> Opinion:
        verdict = pair.verdict
        if verdict is None:
            raise ValueError(f"{pair.pair_id} comes from no verdict: DatasetEvidence needs the pairing 'verdicts'")
        a_is_chosen = verdict.chosen_id == pair.a.response_id
        winner: Winner = "tie" if verdict.is_tie else "A" if a_is_chosen else "B"
        scores = (verdict.score_chosen, verdict.score_rejected)
        score_a, score_b = scores if a_is_chosen else scores[::-1]
        if verdict.p_chosen < 1.0:
            return Opinion(winner, verdict.p_chosen if a_is_chosen else 1.0 - verdict.p_chosen, score_a, score_b)
        if score_a is None or score_b is None:
            return Opinion(winner, None, None, None)
        return by_scores(score_a, score_b, self.temperature)._replace(winner=winner)
