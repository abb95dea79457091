"""Labeling: samples in; scores, then pairs or single responses with their provenance out.

    groups --scores.score_responses------> scores --pairs.pair_responses--> pairs --audit.audit_labels--> figures
        \\--verdicts.compare_responses--> verdicts --/
        \\--rows.response_rows----------> rows       reward_fit.fit_reward_model: pairs of a dataset -> a reward model

To add a labeler: a file in labelers/, its settings in sail.core.run_settings, a row below. To add a pairing: a
function in pairings.py and a row below. To add a step of the regulation: a function and a row in regulation.py.
"""

from sail.labeling.evidence import Evidence, ScoreEvidence
from sail.labeling.labeler_row import Labeler, LabelerRow
from sail.labeling.labelers.callable import callable_labeler
from sail.labeling.labelers.dataset import DatasetEvidence
from sail.labeling.labelers.human import human_labeler
from sail.labeling.labelers.judge import judge_comparer, judge_scorer
from sail.labeling.labelers.policy import PolicyEvidence
from sail.labeling.labelers.replay import replay_labeler
from sail.labeling.labelers.reward_model import reward_model_labeler
from sail.labeling.labelers.rule import rule_labeler
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
    "judge": LabelerRow(
        "judge", scores=judge_scorer, verdicts=judge_comparer, unit="pair",
        needs=("an OpenAI-compatible endpoint, or url: policy",),
        source="Guo et al. 2024, arXiv 2402.04792; rubric: Yuan et al. 2024, arXiv 2401.10020, section 2.2",
        status="exact",
    ),
    "ensemble": LabelerRow(
        "ensemble", scores=None, unit="response", needs=("two or more labelers that score responses",),
        source="Coste et al. 2023, arXiv 2310.02743, section 3", status="exact",
    ),
    "rule": LabelerRow(
        "rule", scores=rule_labeler, unit="response", needs=("a regular expression; answers to verify one",),
        source="any verifier, such as Lambert et al. 2024, arXiv 2411.15124, section 6", status="exact",
    ),
    "human": LabelerRow(
        "human", scores=None, verdicts=human_labeler, unit="pair", needs=("people who fill in a sheet",),
        source="Christiano et al. 2017, arXiv 1706.03741", status="exact",
    ),
    "replay": LabelerRow(
        "replay", scores=None, verdicts=replay_labeler, unit="pair", needs=("a file of recorded verdicts",),
        source="any recorded judge or annotator", status="exact",
    ),
    "noise": LabelerRow(
        "noise", scores=None, unit="pair", needs=("another labeler",),
        source="labels turned round independently, as in Chowdhury et al. 2024, arXiv 2403.00409", status="exact",
    ),
}  # fmt: skip

PAIRINGS: dict[str, Pairing] = {
    "verdicts": verdict_pairs,
    "all": all_pairs,
    "across": pairs_across,
    "best_worst": best_worst,
    "random": random_pair,
}
