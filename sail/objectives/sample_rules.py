"""Rules about samples: whose they must be, and how drawn, where a gradient is that of an expectation over them."""

from collections.abc import Iterator
from typing import NamedTuple

from sail.objectives import find_loss
from sail.objectives.route_facts import Finding, RouteFacts, Rule, refused, warned


class _Expectation(NamedTuple):
    """What a gradient is an expectation over, in the words of the findings."""

    where: str
    drawn: str
    assumption: str
    keep_all: str
    way_out: str = ""


def _expectation(facts: RouteFacts) -> _Expectation | None:
    """None where any responses do."""
    row = find_loss(facts.loss)
    if facts.sail_coef > 0.0 and facts.responses_from_policy:
        return _Expectation(
            "with sail_coef > 0", "pairs", "the score term and its baseline assume every drawn pair",
            "Keep identical, truncated and near-tied pairs in", ", or set sail_coef: 0",
        )  # fmt: skip
    drawn = {"policy": facts.responses_from_policy, "reference": facts.responses_from_reference}
    if not drawn.get(row.samples, False):
        return None
    return _Expectation(
        f"under {facts.loss}", "responses", "its gradient is an expectation over every drawn response",
        "Set hygiene: {truncated: keep, empty: keep}, and no filter",
    )  # fmt: skip


def _responses_are_whose_the_loss_says(facts: RouteFacts) -> Iterator[Finding]:
    row = find_loss(facts.loss)
    whose, told_as_greedy = row.samples, facts.greedy and row.unit == "group"
    if whose == "policy" and not told_as_greedy and (not facts.responses_from_policy or facts.sources > 1):
        yield refused(f"{facts.loss} learns from samples of the policy alone", "Set responses: policy")
    if whose in ("reference", "others") and facts.responses_from_policy:
        yield refused(
            f"{facts.loss} on samples of the policy: its gradient is zero in expectation, as E[grad log pi] is",
            "Set responses: reference",
        )
    elif whose == "reference" and facts.greedy:
        yield refused(
            f"{facts.loss} is an expectation over draws of the reference, and greedy responses are none",
            "Set responses: reference",
        )


def _estimates_are_of_this_policy(facts: RouteFacts) -> Iterator[Finding]:
    """Losses that learn from a round's estimates: their ratios are to the policy that drew the samples."""
    if find_loss(facts.loss).rollouts is None:
        return
    if not facts.own_samples:
        yield refused(
            f"{facts.loss} starts from the policy that drew its samples",
            "Set round: {init_from: previous, data: new, staleness: 0}",
        )
    if facts.importance_mode != "none":
        yield refused(f"{facts.loss} weighs every token itself", "Set importance_sampling: {mode: none}")
    cut = _truncations(facts) + ([f"temperature {facts.temperature}"] if facts.temperature != 1.0 else [])
    if cut:
        yield refused(
            f"{', '.join(cut)}: the samples are not those of the policy that {facts.loss} moves",
            "Set generation: {temperature: 1, top_p: 1, top_k: 0, min_p: 0, min_tokens: 0, linear_alignment: null}",
        )


def _greedy_responses_are_no_draws(facts: RouteFacts) -> Iterator[Finding]:
    if not facts.greedy:
        return
    unit = find_loss(facts.loss).unit
    if facts.sail_coef > 0.0:
        yield refused(
            "greedy responses with sail_coef > 0: they jump with the policy, which no score term sees",
            "Set sail_coef: 0, or responses: policy",
        )
    if unit == "group":
        yield refused(
            f"{facts.loss} compares draws of a prompt, and greedy responses are none", "Use responses: policy"
        )
    elif unit == "pair" and facts.sources == 1:
        yield refused(
            f"{facts.loss} compares two responses, and a prompt has one greedy one",
            "Set responses: [policy_greedy, <another source>]",
        )


def _samples_are_draws(facts: RouteFacts) -> Iterator[Finding]:
    """Each at the probability its policy gives it, or weighted to that."""
    over, row = _expectation(facts), find_loss(facts.loss)
    if over is None or row.rollouts is not None:
        return
    if facts.sail_coef > 0.0 and facts.keep == "best_worst":
        yield refused(
            f"best of {facts.num_generations} against worst with sail_coef > 0: the pair is no draw from the policy",
            "Set sail_coef: 0 (iterative DPO), or keep: all (for two generations the same pairs)",
        )
    cut = _truncations(facts)
    if cut:
        yield refused(
            f"{', '.join(cut)} {over.where}: samples from a truncated support cannot be repaired by weights",
            f"{_WHOLE_SUPPORT}{over.way_out}",
        )
    if facts.temperature != 1.0 and row.samples == "reference":
        yield refused(
            f"temperature {facts.temperature} {over.where}: the samples are not the reference's, and have no weights",
            "Set generation.temperature: 1",
        )
    elif facts.temperature != 1.0 and facts.importance_mode == "none":
        yield refused(
            f"temperature {facts.temperature} {over.where} and no importance weights",
            "Set generation.temperature: 1, or importance_sampling: {mode: sequence_mask, apply_to: all}",
        )


def _draws_are_weighted(facts: RouteFacts) -> Iterator[Finding]:
    over, row = _expectation(facts), find_loss(facts.loss)
    if over is None or row.samples == "reference" or row.rollouts is not None:
        return
    if facts.stale and facts.importance_mode == "none":
        yield warned(
            f"stale samples without importance weights {over.where}: the gradient is that of another objective",
            "Set importance_sampling: {mode: sequence_mask, apply_to: all}",
        )
    if facts.sail_coef > 0.0 and facts.importance_mode != "none" and facts.importance_apply_to == "score":
        yield warned(
            "weighing only the score term leaves an error on stale or tempered samples (40 % on a toy)",
            "Set importance_sampling.apply_to: all",
        )


def _every_draw_counts(facts: RouteFacts) -> Iterator[Finding]:
    over = _expectation(facts)
    if over is None:
        return
    if facts.filters or facts.filtered:
        yield warned(f"{over.drawn} are filtered {over.where}: {over.assumption}", f"{over.keep_all}{over.way_out}")
    if facts.labels_may_lack:
        yield warned(
            f"errors and abstentions of the labeler leave {over.drawn} out {over.where}: {over.assumption}",
            f"Watch {_LEFT_OUT[over.drawn]}{over.way_out}",
        )


def _truncations(facts: RouteFacts) -> list[str]:
    cut = {
        f"top_p {facts.top_p}": facts.top_p < 1.0,
        f"top_k {facts.top_k}": facts.top_k > 0,
        f"min_p {facts.min_p}": facts.min_p > 0.0,
        f"min_tokens {facts.min_tokens}": facts.min_tokens > 0,
        "linear_alignment": facts.linear_alignment,
    }
    return [name for name, applies in cut.items() if applies]


_WHOLE_SUPPORT = "Set generation: {top_p: 1, top_k: 0, min_p: 0, min_tokens: 0, linear_alignment: null}"
_LEFT_OUT = {"pairs": "labels/dropped_errors and labels/dropped_abstained", "responses": "labels/dropped_unrated"}

SAMPLE_RULES: tuple[Rule, ...] = (
    _responses_are_whose_the_loss_says,
    _estimates_are_of_this_policy,
    _greedy_responses_are_no_draws,
    _samples_are_draws,
    _draws_are_weighted,
    _every_draw_counts,
)
