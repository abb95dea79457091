"""A pair's life, told in order: who wrote its responses, who labelled it with what, what happened to the label."""

from collections.abc import Iterator, Mapping, Sequence

from loops.iterate import RoundRecord
from sail.core.artifacts import Artifact
from sail.core.records import PairVerdict, PreferencePair, Sample, SampleGroup, ScoredGroup

_LONGEST_TEXT = 200


def story(records: Sequence[RoundRecord], id: str) -> Iterator[str]:
    """Lines for every pair of this id; none where it names no pair."""
    for record in records:
        for name, artifact in record.artifacts.items():
            if artifact.stage == "pairs":
                pairs = [pair for pair in artifact.read(PreferencePair, "pairs") if pair.pair_id == id]
                for pair in pairs:
                    yield from _tell(record, name.partition("/")[2], artifact, pair)


def _tell(record: RoundRecord, route: str, artifact: Artifact, pair: PreferencePair) -> Iterator[str]:
    origin = "a dataset" if pair.round_index < 0 else f"round {pair.round_index}"
    yield f"pair {pair.pair_id} of route {route}, responses from {origin}, trained on in {record.title}"
    for turn in pair.prompt:
        yield f"  {turn['role']}: {_cut(turn['content'])}"
    samples = _samples(artifact, pair)
    for side, response_id in (("A", pair.a_id), ("B", pair.b_id)):
        yield f"  {side}  {_response(response_id, samples.get(response_id))}"
    yield from _said(record, pair)
    yield f"  labelled by {pair.labeler} ({pair.labeler_digest}), {pair.mode}, by its {_by(pair)}"
    yield f"  draw {pair.draw:.6f}, from the route's seed {artifact.manifest()['recipe']['seed']} and the pair's id"
    for step in pair.steps:
        yield f"  regulation: {step}"
    yield f"  label: {pair.verdict}, P(A beats B) = {pair.p_a:.6g}{_fresh(pair)}"
    checkpoint = record.artifacts.get("checkpoint")
    if checkpoint is not None:
        yield f"  among the pairs of {checkpoint.id}"


def _samples(pairs: Artifact, pair: PreferencePair) -> Mapping[str, Sample]:
    """The pair's responses, from the artifact that the pairs were made of."""
    stage, _, key = str(pairs.manifest()["inputs"]["responses"]).rpartition("-")
    source = Artifact(stage, key, pairs.path.parent / f"{stage}-{key}")
    if not source.committed:
        return {}
    groups = [group for group in source.read(SampleGroup, "groups") if group.prompt.prompt_id == pair.prompt_id]
    return {sample.response_id: sample for group in groups for sample in group.samples}


def _response(response_id: str, sample: Sample | None) -> str:
    if sample is None:
        return f"{response_id}: no longer in the store"
    drawn = f"policy {sample.policy_version}, seed {sample.seed}" if sample.policy_version else "not drawn"
    return (
        f"{response_id}: {sample.origin}, {drawn}, {len(sample.token_ids)} tokens, ended by {sample.stop_kind}\n"
        f"     {_cut(sample.text)}"
    )


def _said(record: RoundRecord, pair: PreferencePair) -> Iterator[str]:
    """What labelers said of this pair in the round, second opinions included."""
    for name, artifact in record.artifacts.items():
        if artifact.stage == "scores":
            for group in artifact.read(ScoredGroup, "scores"):
                scores = dict(zip(group.response_ids, group.scores, strict=True))
                if {pair.a_id, pair.b_id} <= scores.keys():
                    yield f"  {name} ({artifact.id}): A {scores[pair.a_id]:.6g}, B {scores[pair.b_id]:.6g}"
        if artifact.stage == "verdicts":
            for verdict in artifact.read(PairVerdict, "pair_verdicts"):
                if {verdict.a_id, verdict.b_id} == {pair.a_id, pair.b_id}:
                    yield f"  {name} ({artifact.id}): {_verdict(verdict, verdict.a_id == pair.b_id)}"


def _verdict(verdict: PairVerdict, turned: bool) -> str:
    names = {"A": "B", "B": "A"} if turned else {}
    shown, first, second = (names.get(v, v) for v in (verdict.verdict, verdict.forward, verdict.backward))
    p_a = None if verdict.p_a is None else 1 - verdict.p_a if turned else verdict.p_a
    orders = (first, second) if not turned else (second, first)
    told = shown if p_a is None else f"{shown}, P(A beats B) = {p_a:.6g}"
    if verdict.forward or verdict.backward:
        told += f"; A shown first: {orders[0] or 'not asked'}, B shown first: {orders[1] or 'not asked'}"
    return told + (f"; {verdict.problem}" if verdict.problem else "")


def _by(pair: PreferencePair) -> str:
    if pair.score_a is None or pair.score_b is None:
        return "verdict"
    return f"scores {pair.score_a:.6g} (A) and {pair.score_b:.6g} (B)"


def _fresh(pair: PreferencePair) -> str:
    return "" if pair.source == "others" else " when the pair was made; the update asks the policy anew at each step"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else f"{line[: _LONGEST_TEXT - 1]}…"
