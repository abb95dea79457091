"""The pairs stage: responses meet, someone says which is better, and what teaches nothing is left out, counted.

Everything is found by id: a group holds its prompt's samples, scores and verdicts name responses.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from sail.core.artifacts import Artifact, Keyed
from sail.core.errors import UserError
from sail.core.records import DatasetVerdict, Message, PreferencePair, Sample, SampleGroup, index_responses
from sail.core.route_settings import HygieneSettings
from sail.core.seeds import uniform
from sail.core.store import Builder, Recipe, Workspace
from sail.labeling import PAIRINGS
from sail.labeling.candidates import Candidate
from sail.labeling.evidence import Evidence, Opinions
from sail.labeling.hygiene import (
    CURES,
    decided,
    distinct,
    nothing_left,
    trained_on,
    usable,
    with_score,
    worth_keeping,
)
from sail.labeling.label_figures import label_figures
from sail.labeling.labels import Opinion, label
from sail.labeling.pairing_options import PairingOptions
from sail.labeling.pairings import PairingFacts
from sail.labeling.regulation import LabelledPair, Others, regulate

VERSION = 2


def pair_responses(
    builder: Builder,
    responses: Artifact,
    evidence: Evidence | None,
    options: PairingOptions,
    held_out: Artifact | None = None,
    second_opinions: Mapping[str, Evidence] | None = None,
) -> Artifact:
    """Table "pairs" of PreferencePair, in the order of the groups and of the responses in them.

    responses: a data or samples artifact; evidence: who labels (ScoreEvidence, DatasetEvidence, PolicyEvidence);
    held_out: a prompts artifact whose table held_out (Prompt) is not to be trained on; second_opinions: by name, those
    whom the regulation's steps ask.
    The manifest counts pairs, drops and changed labels by the names of sail.core.metrics. UserError where labels are
    'none', where the labels cannot be made as asked, and where no pair is left.
    """
    if evidence is None:
        raise UserError(
            "labels: none, but the loss compares pairs", where=options.where,
            cure="Name a labeler, a data source or 'policy', or use a loss of single responses such as sft",
        )  # fmt: skip
    labeler, others = evidence, second_opinions or {}

    def run(workspace: Workspace) -> dict[str, float]:
        groups = responses.read(SampleGroup, "groups")
        drops: Counter[str] = Counter(dict.fromkeys(CURES, 0))
        opinions = labeler.read(responses)
        _check_scores(groups, opinions, labeler.labeler)
        facts = PairingFacts(options.seed, opinions.scores, _verdicts(responses, groups, options.pairing))
        candidates = _candidates(trained_on(groups, held_out, drops), facts, options, labeler, drops)
        labelled = _labelled(candidates, opinions.of(candidates), options, labeler, drops)
        asked = _ask_others(others, responses, [pair.candidate for pair in labelled])
        labelled, counts = regulate(labelled, options.regulation, asked)
        pairs = [_pair(pair, options, labeler) for pair in labelled]
        if not pairs:
            raise nothing_left("pair", len(groups), drops + counts, options.where)
        workspace.write("pairs", pairs, PreferencePair)
        return {"labels/pairs": len(pairs), **drops, **counts, **label_figures(pairs)}

    inputs: dict[str, Keyed] = {"responses": responses, **labeler.inputs()}
    for name, other in others.items():
        inputs |= {f"{name}:{key}": artifact for key, artifact in other.inputs().items()}
    if held_out is not None:
        inputs["held_out"] = held_out
    recipe = options.recipe(labeler)
    if others:
        recipe["others"] = {name: other.recipe("soft") for name, other in others.items()}
    return builder.build(Recipe("pairs", VERSION, recipe, inputs), run)


def _check_scores(groups: Sequence[SampleGroup], opinions: Opinions, labeler: str) -> None:
    if opinions.scores is None:
        return
    missing = index_responses(groups).keys() - opinions.scores.keys()
    if missing:
        raise ValueError(f"labeler {labeler!r} has no score for {len(missing)} responses, {min(missing)} among them")


def _verdicts(responses: Artifact, groups: Sequence[SampleGroup], pairing: str) -> dict[str, list[DatasetVerdict]]:
    by_prompt: dict[str, list[DatasetVerdict]] = defaultdict(list)
    if pairing != "verdicts":
        return by_prompt
    index = index_responses(groups)
    for verdict in responses.read(DatasetVerdict, "verdicts"):
        for response_id in (verdict.chosen_id, verdict.rejected_id):
            if response_id not in index or index[response_id][0].prompt_id != verdict.prompt_id:
                raise ValueError(f"{responses.id}: no response {response_id} to prompt {verdict.prompt_id}")
        by_prompt[verdict.prompt_id].append(verdict)
    return by_prompt


def _candidates(
    groups: Sequence[SampleGroup],
    facts: PairingFacts,
    options: PairingOptions,
    evidence: Evidence,
    drops: Counter[str],
) -> list[Candidate]:
    hygiene, pairing = options.hygiene_of(evidence), PAIRINGS[options.pairing]
    met = [
        candidate
        for group in groups
        for candidate in pairing(group.prompt, _scored(group, options, facts, hygiene, drops), facts)
    ]
    return distinct(met, hygiene, drops)


def _scored(
    group: SampleGroup, options: PairingOptions, facts: PairingFacts, hygiene: HygieneSettings, drops: Counter[str]
) -> Sequence[Sample]:
    """The usable samples; of those a pairing is to choose from by score, the ones that have one."""
    samples = usable(group.samples, hygiene, drops)
    return with_score(samples, facts.scores, drops) if options.pairing == "best_worst" else samples


def _labelled(
    candidates: Sequence[Candidate],
    opinions: Sequence[Opinion],
    options: PairingOptions,
    evidence: Evidence,
    drops: Counter[str],
) -> list[LabelledPair]:
    hygiene = options.hygiene_of(evidence)
    pairs = []
    for candidate, opinion in zip(candidates, opinions, strict=True):
        if not decided(opinion, drops):
            continue
        draw = uniform(options.seed, "draw", candidate.pair_id)
        made = label(opinion, options.mode, evidence.source, draw, where=options.where)
        if worth_keeping(opinion, made, hygiene, drops):
            pairs.append(LabelledPair(candidate, opinion, made, draw))
    return pairs


def _ask_others(others: Mapping[str, Evidence], responses: Artifact, candidates: Sequence[Candidate]) -> Others:
    ids = [candidate.pair_id for candidate in candidates]
    return {name: dict(zip(ids, other.read(responses).of(candidates), strict=True)) for name, other in others.items()}


def _pair(pair: LabelledPair, options: PairingOptions, evidence: Evidence) -> PreferencePair:
    candidate, opinion, made = pair.candidate, pair.opinion, pair.label
    a, b = candidate.a, candidate.b
    chosen, rejected = (b, a) if made.verdict == "B" else (a, b)
    return PreferencePair(
        pair_id=candidate.pair_id,
        prompt_id=candidate.prompt.prompt_id,
        a_id=a.response_id,
        b_id=b.response_id,
        round_index=options.round_index,
        source=evidence.source,
        mode=options.mode,
        labeler=evidence.labeler,
        labeler_digest=evidence.digest,
        verdict=made.verdict,
        p_a=made.p_a,
        score_a=opinion.score_a,
        score_b=opinion.score_b,
        draw=pair.draw,
        length_a=len(a.token_ids),
        length_b=len(b.token_ids),
        truncated_a=not a.finished,
        truncated_b=not b.finished,
        prompt=candidate.prompt.messages,
        chosen=_turn(chosen),
        rejected=_turn(rejected),
        steps=pair.steps,
    )


def _turn(sample: Sample) -> tuple[Message, ...]:
    return (Message(role="assistant", content=sample.text),)
