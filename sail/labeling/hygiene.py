"""What never reaches the update: unusable samples and pairs that teach nothing, each drop counted under its metric."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.records import LabelMode, LabelSource, Prompt, Sample, SampleGroup, content_key
from sail.core.route_settings import HygieneSettings
from sail.labeling.candidates import Candidate
from sail.labeling.labels import Label, Opinion

TRUNCATED, EMPTY = "labels/dropped_truncated", "labels/dropped_empty"
ABORTED = "labels/dropped_aborted"
HELD_OUT = "labels/dropped_held_out"
UNRATED, FILTERED = "labels/dropped_unrated", "labels/dropped_filtered"
IDENTICAL, TIES, MARGIN = "labels/dropped_identical", "labels/dropped_ties", "labels/dropped_margin"
ABSTAINED, ERRORS = "labels/dropped_abstained", "labels/dropped_errors"

CURES = {
    TRUNCATED: "Raise generation.max_completion_length, or set hygiene.truncated: keep",
    EMPTY: "Look at the samples; hygiene.empty: keep lets them pass",
    ABORTED: "Look at the server's log: it ended these samples itself",
    IDENTICAL: "Sample at a higher temperature, or set hygiene.identical: keep",
    TIES: "Use label_mode: soft or hygiene.ties: keep (a policy that equals its reference prefers nothing)",
    HELD_OUT: "Hold out fewer prompts with evaluation.num_prompts, or name evaluation.prompts a source of its own",
    MARGIN: "Lower hygiene.min_margin",
    ABSTAINED: "Look at the verdicts: a replay abstains on pairs that its file does not hold",
    ERRORS: "Look at the problems in the verdicts, or at the judge's answers.jsonl",
}
_ROW_CURES = {
    UNRATED: "Give every response a score or a label, or label by a reward model",
    FILTERED: "Lower the route's filter: threshold is in normalised scores",
}
_NO_PARTNER = "A pair needs two responses of one prompt: num_generations 2 or more, or data with chosen and rejected"
_NO_RESPONSE = "There are no responses: look at the data source or the samples"


def resolve_hygiene(
    hygiene: HygieneSettings, sail_coef: float, mode: LabelMode = "hard", source: LabelSource = "others"
) -> HygieneSettings:
    """The settings as they act: defaults filled in, and what cannot act under this mode and source switched off.

    Identical and tied pairs stay where sail_coef > 0: the score term of the label table is an expectation over all
    pairs the policy draws, and leaving some out biases it. Only hard labels can tie. A fresh label has no margin yet.
    """
    default = "keep" if sail_coef > 0 else "drop"
    return hygiene.replace(
        identical=hygiene.identical or default,
        ties=(hygiene.ties or default) if mode == "hard" and source == "others" else "keep",
        min_margin=0.0 if source == "fresh" else hygiene.min_margin,
    )


def trained_on(groups: Sequence[SampleGroup], held_out: Artifact | None, drops: Counter[str]) -> Sequence[SampleGroup]:
    """The groups whose prompts are no copies, near-copies included, of the evaluation's (table held_out, Prompt)."""
    if held_out is None:
        return groups
    taken = {content_key(prompt) for prompt in held_out.read(Prompt, "held_out")}
    kept = [group for group in groups if content_key(group.prompt) not in taken]
    drops[HELD_OUT] += len(groups) - len(kept)
    return kept


def sample_recipe(hygiene: HygieneSettings) -> dict[str, Any]:
    """What can change which single responses are usable."""
    return {"truncated": hygiene.truncated, "empty": hygiene.empty}


def usable(samples: Sequence[Sample], hygiene: HygieneSettings, drops: Counter[str]) -> list[Sample]:
    """The samples worth a label. Dataset responses count as finished whatever their length."""
    kept = []
    for sample in samples:
        if sample.stop_kind == "abort":  # a fragment, whatever is kept of the others
            drops[ABORTED] += 1
        elif hygiene.truncated == "drop" and not sample.finished:
            drops[TRUNCATED] += 1
        elif hygiene.empty == "drop" and not sample.text.strip():
            drops[EMPTY] += 1
        else:
            kept.append(sample)
    return kept


def with_score(samples: Sequence[Sample], scores: Mapping[str, float] | None, drops: Counter[str]) -> Sequence[Sample]:
    """The samples whose labeler gave a score: a judge's error is nan, and no label."""
    if scores is None:
        return samples
    kept = [sample for sample in samples if not math.isnan(scores[sample.response_id])]
    drops[ERRORS] += len(samples) - len(kept)
    return kept


def decided(opinion: Opinion, drops: Counter[str]) -> bool:
    """Whether the labeler says anything; abstentions and errors go, each counted."""
    if not opinion.decided:
        drops[ABSTAINED if opinion.winner == "abstain" else ERRORS] += 1
    return opinion.decided


def distinct(candidates: Sequence[Candidate], hygiene: HygieneSettings, drops: Counter[str]) -> list[Candidate]:
    """The candidates whose responses differ in some token, or all of them."""
    if hygiene.identical == "keep":
        return list(candidates)
    kept = [candidate for candidate in candidates if not candidate.identical]
    drops[IDENTICAL] += len(candidates) - len(kept)
    return kept


def worth_keeping(opinion: Opinion, label: Label, hygiene: HygieneSettings, drops: Counter[str]) -> bool:
    """Whether a labelled pair stays: ties of hard labels, then the margin of its scores, where it has any.

    min_margin is in the labeler's units: its score, or nats of log pi - log ref for frozen labels by the policy.
    """
    if label.verdict == "tie" and hygiene.ties == "drop":
        drops[TIES] += 1
        return False
    if opinion.margin is not None and opinion.margin < hygiene.min_margin:
        drops[MARGIN] += 1
        return False
    return True


def nothing_left(what: str, num_prompts: int, drops: Counter[str], where: str) -> UserError:
    """The error of a labeling stage that kept nothing: how many went for which reason, and the cure of the first."""
    drops = Counter({metric: count for metric, count in drops.items() if count and "/dropped_" in metric})
    reasons = [f"{count} {metric.removeprefix('labels/dropped_')}" for metric, count in drops.most_common()]
    dropped = f"dropped {', '.join(reasons)}" if reasons else "dropped none"
    otherwise = _NO_PARTNER if what == "pair" else _NO_RESPONSE
    cures = CURES | _ROW_CURES
    cure = cures.get(drops.most_common(1)[0][0], "Loosen the regulation of the labels") if reasons else otherwise
    return UserError(f"no {what} is left of {num_prompts} prompts: {dropped}", where=where, cure=cure)
