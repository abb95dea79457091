"""Labeling: samples in; scores, then pairs or single responses with their provenance out.

    groups --scores.score_responses--> scores --pairs.pair_responses--> pairs
        \\--rows.response_rows--> rows              reward_fit.fit_reward_model: pairs of a dataset -> a reward model

To add a labeler: a file in labelers/, its settings in sail.core.run_settings, a row below. To add a pairing: a
function in pairings.py and a row below.
"""

from sail.labeling.evidence import Evidence, ScoreEvidence
from sail.labeling.labeler_row import Labeler, LabelerRow
from sail.labeling.labelers.callable import callable_labeler
from sail.labeling.labelers.dataset import DatasetEvidence
from sail.labeling.labelers.policy import PolicyEvidence
from sail.labeling.labelers.reward_model import reward_model_labeler
from sail.labeling.pairings import Pairing, all_pairs, best_worst, pairs_across, random_pair, verdict_pairs

__all__ = [
    "LABELERS", "PAIRINGS", "DatasetEvidence", "Evidence", "Labeler", "LabelerRow", "PolicyEvidence", "ScoreEvidence",
]  # fmt: skip

LABELERS: dict[str, LabelerRow] = {
    "dataset": LabelerRow(
        "dataset", scores=None, unit="pair", needs=("verdicts of the route's own data source",),
        source="Rafailov et al. 2023, arXiv 2305.18290, section 4", status="exact",
    ),
    "policy": LabelerRow(
        "policy", scores=None, unit="pair", needs=("a loss with a link", "log-probs under policy and reference"),
        source="Ding et al. 2024, arXiv 2406.15567, section 4: q = sigmoid(beta (h_a - h_b))", status="exact",
    ),
    "order": LabelerRow(
        "order", scores=None, unit="pair", needs=("a list of sources, the better one first",),
        source="SPIN, Chen et al. 2024, arXiv 2401.01335", status="exact",
    ),
    "reward_model": LabelerRow(
        "reward_model", scores=reward_model_labeler, unit="response",
        needs=("a sequence classifier with one output, or fit: a data source with pairs",),
        source="Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1", status="exact",
    ),
    "callable": LabelerRow(
        "callable", scores=callable_labeler, unit="response", needs=("module:function, f(examples) -> floats",),
        source="any rule or verifier, such as Lambert et al. 2024, arXiv 2411.15124, section 6", status="exact",
    ),
}  # fmt: skip

PAIRINGS: dict[str, Pairing] = {
    "verdicts": verdict_pairs,
    "all": all_pairs,
    "across": pairs_across,
    "best_worst": best_worst,
    "random": random_pair,
}
