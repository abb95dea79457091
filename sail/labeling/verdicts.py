"""The verdicts stage: pairs of responses, compared once by one labeler, in shards that survive a kill.

It stands between the responses and their pairs, so that pairing, labelling and regulating them anew costs no judge's
time. What it judges does not depend on hygiene: that comes at pairing.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from sail.core.artifacts import Artifact
from sail.core.records import Comparison, DatasetVerdict, PairVerdict, SampleGroup, ScoredGroup
from sail.core.store import Builder, Recipe, Workspace
from sail.labeling.answers import sort_answers
from sail.labeling.candidates import Candidate, pair_id
from sail.labeling.labeler_row import Comparer, PairAnswer, PairLabeler
from sail.labeling.pairings import PairingFacts, all_pairs, random_pair, verdict_pairs

VERSION = 1
TABLE, WIN_RATES = "pair_verdicts", "scores"
Compared = Literal["all", "random", "verdicts"]
"""every pair of a prompt's responses, one drawn pair, or the pairs a dataset has judged"""

_EQUAL = PairAnswer("tie", 0.5)  # of two equal texts; nobody is asked


def compare_responses(
    builder: Builder, responses: Artifact, labeler: PairLabeler, compared: Compared, *, seed: int = 0
) -> Artifact:
    """Table "pair_verdicts" of PairVerdict, in the order of the groups.

    With compared: all there is a table "scores" of ScoredGroup too: a response's win rate, the mean of P(it wins)
    over the others of its prompt (nan where no verdict came). seed matters for compared: random alone. The manifest
    counts pairs, errors, abstentions and ties, and how often the response shown first won.
    """

    def run(workspace: Workspace) -> dict[str, Any]:
        groups = responses.read(SampleGroup, "groups")
        pairs = _pairs(responses, groups, compared, seed)
        done = sorted(path.stem for path in workspace.path.glob(f"{TABLE}-*.parquet"))
        verdicts = [verdict for shard in done for verdict in workspace.read(shard, PairVerdict)]
        assert [v.pair_id for v in verdicts] == [pair.pair_id for pair in pairs[: len(verdicts)]], "other pairs' shards"
        comparer = labeler.open(workspace) if len(verdicts) < len(pairs) else None
        while comparer is not None and len(verdicts) < len(pairs):
            shard = _compare(comparer, pairs[len(verdicts) : len(verdicts) + labeler.shard_size])
            workspace.write(f"{TABLE}-{len(done):05d}", shard, PairVerdict)
            done.append(f"{TABLE}-{len(done):05d}")
            verdicts += shard
            workspace.say(f"{labeler.name} compared {len(verdicts)} of {len(pairs)} pairs")
        sort_answers(workspace.path)
        if compared == "all":
            workspace.write(WIN_RATES, win_rates(groups, verdicts), ScoredGroup)
        return figures(verdicts)

    recipe = {**labeler.recipe, "compared": compared} | ({"seed": seed} if compared == "random" else {})
    return builder.build(Recipe("verdicts", VERSION, recipe, {"responses": responses, "labeler": labeler.source}), run)


def _pairs(responses: Artifact, groups: Sequence[SampleGroup], compared: Compared, seed: int) -> list[Candidate]:
    """Each two responses once, whatever a dataset says of them how often."""
    by_prompt: dict[str, list[DatasetVerdict]] = defaultdict(list)
    if compared == "verdicts":
        for verdict in responses.read(DatasetVerdict, "verdicts"):
            by_prompt[verdict.prompt_id].append(verdict)
    pairing = {"all": all_pairs, "random": random_pair, "verdicts": verdict_pairs}[compared]
    facts = PairingFacts(seed, None, by_prompt)
    met = [pair for group in groups for pair in pairing(group.prompt, group.samples, facts)]
    return list({frozenset((pair.a.response_id, pair.b.response_id)): pair for pair in reversed(met)}.values())[::-1]


def _compare(comparer: Comparer, pairs: Sequence[Candidate]) -> list[PairVerdict]:
    different = [pair for pair in pairs if pair.a.text != pair.b.text]
    comparisons = [Comparison(pair.prompt.messages, pair.a.text, pair.b.text) for pair in different]
    told = dict(zip([pair.pair_id for pair in different], comparer(comparisons) if comparisons else [], strict=True))
    return [_verdict(pair, told.get(pair.pair_id, _EQUAL)) for pair in pairs]


def _verdict(pair: Candidate, answer: PairAnswer) -> PairVerdict:
    a_id, b_id = pair.a.response_id, pair.b.response_id
    name = pair_id(pair.prompt.prompt_id, (a_id, b_id))
    return PairVerdict(name, pair.prompt.prompt_id, a_id, b_id, **answer._asdict())


def win_rates(groups: Sequence[SampleGroup], verdicts: Sequence[PairVerdict]) -> list[ScoredGroup]:
    """Mean P(response beats another of its prompt) over the pairs with a verdict; nan where there is none."""
    wins: dict[str, list[float]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.p_a is not None:
            wins[verdict.a_id].append(verdict.p_a)
            wins[verdict.b_id].append(1.0 - verdict.p_a)
    scored = []
    for group in groups:
        ids = tuple(sample.response_id for sample in group.samples)
        rates = tuple(sum(wins[name]) / len(wins[name]) if wins[name] else math.nan for name in ids)
        scored.append(ScoredGroup(group.prompt.prompt_id, ids, rates))
    return scored


def figures(verdicts: Sequence[PairVerdict]) -> dict[str, Any]:
    """What a judge's manifest says of its verdicts; the names are those of sail.core.metrics."""
    if not verdicts:
        return {"pairs": 0}
    kinds = [verdict.verdict for verdict in verdicts]
    shares = {f"judge/{kind}_share": kinds.count(kind) / len(kinds) for kind in ("tie", "abstain", "error")}
    shown_first = [
        value
        for verdict in verdicts
        for value in (_VALUE.get(verdict.forward), _turned(_VALUE.get(verdict.backward)))
        if value is not None
    ]
    both = [v for v in verdicts if v.forward in _VALUE and v.backward in _VALUE]
    bias = {"judge/first_share": sum(shown_first) / len(shown_first)} if shown_first else {}
    flips = {"judge/order_flips": sum({v.forward, v.backward} == {"A", "B"} for v in both) / len(both)} if both else {}
    return {"pairs": len(verdicts), **shares, **bias, **flips}


_VALUE = {"A": 1.0, "tie": 0.5, "B": 0.0}


def _turned(value: float | None) -> float | None:
    return None if value is None else 1.0 - value
