"""Pairings: which responses of a prompt meet. One function each; every one sees a single prompt, so none can mix two.

- verdicts: the pairs a dataset has judged
- all: every pair of the n samples; for n = 2 the iid pair that the SAIL gradient needs
- best_worst: the highest against the lowest score of n (iterative DPO: Dong et al. 2405.07863)
- across: every pair of responses from different origins (SPIN: demonstrations against samples)
- random: one pair per prompt, drawn without looking at scores
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from sail.core.errors import UserError
from sail.core.records import DatasetVerdict, Prompt, Sample
from sail.core.seeds import uniform
from sail.labeling.candidates import Candidate, pair_id


@dataclass(frozen=True, slots=True)
class PairingFacts:
    """What pairings may look at besides a prompt's responses."""

    seed: int
    scores: Mapping[str, float] | None = None
    """response_id -> score, higher is better; None where the labeler scores no single responses"""
    verdicts: Mapping[str, Sequence[DatasetVerdict]] = field(default_factory=dict)
    """prompt_id -> what the dataset says of its responses"""


Pairing = Callable[[Prompt, Sequence[Sample], PairingFacts], list[Candidate]]


def verdict_pairs(prompt: Prompt, samples: Sequence[Sample], facts: PairingFacts) -> list[Candidate]:
    """The pairs with a verdict, both responses being there; a seeded draw decides whether A is the chosen one."""
    by_id = {sample.response_id: sample for sample in samples}
    seen: Counter[frozenset[str]] = Counter()
    candidates = []
    for verdict in facts.verdicts.get(prompt.prompt_id, ()):
        ids = (verdict.chosen_id, verdict.rejected_id)
        if not by_id.keys() >= set(ids):
            continue
        name = pair_id(prompt.prompt_id, ids, repeat=seen[frozenset(ids)])
        seen[frozenset(ids)] += 1
        a_id, b_id = ids if uniform(facts.seed, "side", name) < 0.5 else ids[::-1]
        candidates.append(Candidate(name, prompt, by_id[a_id], by_id[b_id], verdict))
    return candidates


def all_pairs(prompt: Prompt, samples: Sequence[Sample], facts: PairingFacts) -> list[Candidate]:
    """All n (n - 1) / 2 pairs, i < j in the order of the samples."""
    return [_candidate(prompt, a, b) for a, b in combinations(samples, 2)]


def pairs_across(prompt: Prompt, samples: Sequence[Sample], facts: PairingFacts) -> list[Candidate]:
    """All pairs whose responses have different origins, i < j in the order of the samples."""
    return [pair for pair in all_pairs(prompt, samples, facts) if pair.a.origin != pair.b.origin]


def best_worst(prompt: Prompt, samples: Sequence[Sample], facts: PairingFacts) -> list[Candidate]:
    """The best and the worst sample, in their order; of equal scores the first is the best, the last the worst.

    The order of samples knows nothing of quality, so this picks no favourites. If all scores are equal, the first
    and the last meet in a tie, which the label and hygiene.ties then decide. UserError without scores.
    """
    if facts.scores is None:
        raise UserError(
            "keep: best_worst needs a score for every sample, the labeler gives none", where="keep",
            cure="Label by a reward model, a callable or the policy, or use keep: all",
        )  # fmt: skip
    if len(samples) < 2:
        return []
    scores = [facts.scores[sample.response_id] for sample in samples]
    best = scores.index(max(scores))
    worst = max(index for index, score in enumerate(scores) if score == min(scores))
    first, second = sorted((best, worst))
    return [_candidate(prompt, samples[first], samples[second])]


def random_pair(prompt: Prompt, samples: Sequence[Sample], facts: PairingFacts) -> list[Candidate]:
    """Two samples by seeded draws on their ids, in their order."""
    draws = {sample.response_id: uniform(facts.seed, "random_pair", sample.response_id) for sample in samples}
    kept = sorted(draws, key=lambda response_id: draws[response_id])[:2]
    return all_pairs(prompt, [sample for sample in samples if sample.response_id in kept], facts)


def _candidate(prompt: Prompt, a: Sample, b: Sample) -> Candidate:
    return Candidate(pair_id(prompt.prompt_id, (a.response_id, b.response_id)), prompt, a, b)
