"""What is refused and what is warned about before anything runs (docs/methods.md).

Each rule is a generator over one RouteFacts; check_route runs them all. Where the cure says "sail_coef 0" the route
is still a valid one: iterative or online DPO.
"""

import math
from collections.abc import Iterator

from sail.core.errors import UserError
from sail.objectives import find_loss
from sail.objectives.route_facts import Finding, RouteFacts, Rule, refused, warned
from sail.objectives.sample_rules import SAMPLE_RULES


def check_route(facts: RouteFacts) -> list[Finding]:
    """Every finding about a route, refusals first; an empty list is a clean bill. Nothing is raised."""
    try:
        find_loss(facts.loss)
    except UserError as error:
        return [refused(error.problem, error.cure)]
    findings = [finding for rule in RULES for finding in rule(facts)]
    return sorted(findings, key=lambda finding: finding.level)


def _loss_and_labels_fit(facts: RouteFacts) -> Iterator[Finding]:
    row = find_loss(facts.loss)
    if row.unit != "pair":
        return
    if facts.labels_by == "policy" and row.link is None:
        yield refused(
            f"labels: policy needs a loss with a preference link, and {facts.loss} has none",
            "Use dpo or ipo, or labels by a reward model or a callable",
        )
    if facts.mode == "soft" and not row.soft_labels:
        yield refused(f"{facts.loss} takes no soft labels: {row.hard_only}", "Use label_mode: hard, or another loss")
    if facts.mode != "hard" and facts.labels_by == "order":
        yield refused("labels: order names winners, no probabilities", "Use label_mode: hard")
    if facts.labels_by == "none":
        yield refused(f"{facts.loss} is a loss of labelled pairs and the route has labels: none", "Name a labeler")
    if facts.labels_as not in ("", "preference"):
        yield refused(
            f"{facts.loss} compares pairs and cannot use labels as {facts.labels_as}",
            "Leave labels.as out, or use a loss of single responses such as kto or rwr",
        )
    if facts.filtered:
        yield refused(
            f"filter keeps single responses, and {facts.loss} compares pairs", "Use hygiene.min_margin, or keep"
        )
    if facts.labels_by == "order" and facts.sources < 2:
        yield refused("labels: order needs a list of sources, the better one first", "Set responses: [demos, policy]")


def _single_responses_have_what_they_need(facts: RouteFacts) -> Iterator[Finding]:
    row = find_loss(facts.loss)
    if row.unit == "pair":
        return
    if row.target and facts.labels_as != row.target:
        says = f"they come as {facts.labels_as}" if facts.labels_as else "nobody gives any"
        yield refused(
            f"{facts.loss} needs labels as {row.target} of single responses, and {says}", _TARGET_CURES[row.target]
        )
    if facts.mode != "hard" and facts.labels_by != "policy":
        yield refused(f"{facts.loss} takes no {facts.mode} labels: {row.hard_only}", "Leave label_mode out")
    if facts.labels_by == "policy":
        yield refused(
            f"the policy labels pairs, by the link of their loss, and {facts.loss} has single responses",
            "Label by a reward model or a callable, or use dpo",
        )
    if facts.labels_by == "order":
        yield refused(f"labels: order says which of two is better, and {facts.loss} has one", "Use labels: none")
    if facts.keep != "all":
        yield refused(
            f"keep: {facts.keep} chooses pairs, and {facts.loss} learns from single responses",
            "Set keep: all; a filter, such as {top_k: 1}, chooses single responses",
        )
    if row.critic is not None and not facts.has_value:
        yield refused(f"{facts.loss} needs a value network", "Set components.value: {per: token}")
    if facts.filtered and facts.labels_as != "score":
        yield refused("a filter needs scores", "Set labels to a labeler or to a data source with scores")
    if facts.has_prompt_tag and facts.labels_as != "score":
        yield refused(
            "components.prompt_tag writes a response's score into its prompt, and this route has no scores",
            "Set labels to a labeler or to a data source with scores",
        )
    if row.unit == "group" and (facts.num_generations < 2 and facts.responses_from_policy):
        yield refused(
            f"{facts.loss} compares the responses of a prompt and num_generations is 1", "Set num_generations: 2"
        )


_TARGET_CURES = {
    "thumbs": "Use data with a boolean column label, or labels: {by: rm, as: thumbs, threshold: 0}",
    "score": "Use data with a score column, or labels by a reward model or a callable",
    "win_rate": "Label samples of the policy by a reward model or a callable, with num_generations 2 or more",
}


def _features_can_be_read(facts: RouteFacts) -> Iterator[Finding]:
    if "features" in find_loss(facts.loss).needs and not facts.has_sae:
        yield refused(
            f"{facts.loss} needs a sparse autoencoder of this very model",
            "Set components.sae: {path: ..., layer: ...}",
        )


def _coefficient_means_something(facts: RouteFacts) -> Iterator[Finding]:
    c = facts.sail_coef
    if not (math.isfinite(c) and c >= 0.0):
        yield refused(f"sail_coef is {c}", "Use a finite number >= 0; 0 is online DPO")
    elif c > 0.0 and (find_loss(facts.loss).unit != "pair" or facts.labels_by == "none"):
        yield refused("sail_coef acts on labelled pairs, and this route has none", "Set sail_coef: 0")
    elif c > 0.0 and not (facts.responses_from_policy or facts.greedy or _has_label_term(facts)):
        yield refused(
            "sail_coef does nothing here: neither the responses nor a drawn label depends on the policy",
            "Set sail_coef: 0, or responses: policy, or labels: {by: policy, when: fresh, mode: soft}",
        )


def _coefficient_fits_the_loss(facts: RouteFacts) -> Iterator[Finding]:
    row, c = find_loss(facts.loss), facts.sail_coef
    if row.unit != "pair" or not c > 0.0:
        return
    start, pull = row.baseline_start(**facts.loss_params), row.plain_pull(facts.num_tokens, **facts.loss_params)
    scale = _DPO_AT_BETA * pull / start if start > 0.0 else math.inf
    if c > 1.5 * scale > 0.0:
        yield warned(
            f"sail_coef {c:g} is {c / scale:.1f} times {scale:.2g}, the scale of {facts.loss} here (dpo: beta): its "
            "terms may outweigh the plain one (published coefficients belong to another gradient)",
            f"Start from sail_coef: {scale:.2g} and watch sail/score_to_plain_ratio",
        )


_DPO_AT_BETA = 2.0 * math.log(2.0)  # c l over the plain pull of dpo, c = beta, l = log 2, pull = beta / 2


def _policy_labels_carry_signal(facts: RouteFacts) -> Iterator[Finding]:
    if facts.labels_by != "policy" or find_loss(facts.loss).unit != "pair":
        return
    if facts.when == "frozen":
        yield from _frozen_labels(facts)
    elif facts.mode == "hard":
        yield warned("hard labels by the policy amplify its own opinion", "Use label_mode: soft or sampled")
    elif facts.sail_coef == 0.0 and facts.mode == "soft":
        yield refused(
            "fresh soft labels by the policy with sail_coef 0: the gradient is exactly zero",
            "Set sail_coef > 0 (beta is the default), or labels by others",
        )
    elif facts.sail_coef == 0.0:
        yield warned(
            "fresh sampled labels by the policy with sail_coef 0: the gradient is noise of mean zero",
            "Set sail_coef > 0 (beta is the default), or labels by others",
        )


def _frozen_labels(facts: RouteFacts) -> Iterator[Finding]:
    if facts.policy_is_reference:
        yield refused(
            "frozen labels by a policy that equals its reference: every log-ratio is 0, so every pair is a tie",
            "Use label_when: fresh, or start from a policy that has been trained against this reference",
        )
    yield warned(
        "frozen labels by the policy are another algorithm than SAIL-PP and SAIL-DP (gradient cosine .58)",
        "Use label_when: fresh, unless this is the ablation",
    )


def _has_label_term(facts: RouteFacts) -> bool:
    return facts.labels_by == "policy" and facts.when == "fresh" and facts.mode != "hard"


RULES: tuple[Rule, ...] = (
    _loss_and_labels_fit,
    _single_responses_have_what_they_need,
    _features_can_be_read,
    _coefficient_means_something,
    _coefficient_fits_the_loss,
    _policy_labels_carry_signal,
    *SAMPLE_RULES,
)
