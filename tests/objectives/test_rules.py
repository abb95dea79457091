"""Every refusal and every warning, by the smallest route that earns it, and the presets that earn none."""

from dataclasses import replace

import pytest

from sail.objectives import LOSSES
from sail.objectives.route_facts import RouteFacts
from sail.objectives.rules import RULES, check_route

OFFLINE = RouteFacts("dpo", responses_from_policy=False, labels_by="others")
PR = RouteFacts("dpo", responses_from_policy=True, labels_by="others", mode="soft", sail_coef=0.1)
PP = RouteFacts("dpo", responses_from_policy=True, labels_by="policy", mode="soft", sail_coef=0.1)
DP = replace(PP, responses_from_policy=False)
ITERATIVE = replace(PR, sail_coef=0.0, num_generations=8, keep="best_worst", mode="hard")
PPO = RouteFacts(
    "ppo", responses_from_policy=True, labels_by="others", labels_as="score", has_value=True, importance_mode="none"
)
SFT = RouteFacts("sft", responses_from_policy=False, labels_by="none")
SCORED = replace(SFT, loss="rwr", labels_by="others", labels_as="score")
RLOO = replace(SCORED, loss="rloo", responses_from_policy=True)
KL = replace(SFT, loss="kl_policy_ref", responses_from_policy=True)
KL_FROM_REFERENCE = replace(SFT, loss="kl_ref_policy", responses_from_reference=True)
OPTIMISM = replace(SFT, loss="optimism", responses_from_reference=True)


@pytest.mark.parametrize(
    "route",
    [
        OFFLINE,
        PR,
        PP,
        DP,
        ITERATIVE,
        SFT,
        PPO,
        replace(PPO, num_generations=1),
        replace(OFFLINE, loss="sigmoid"),
        replace(OFFLINE, loss="slic"),
        replace(OFFLINE, loss="fpo", has_sae=True),
        replace(PR, mode="sampled"),
        replace(PP, mode="sampled", loss="ipo", sail_coef=0.8),
        replace(PR, mode="hard", loss="exo_pair"),
        replace(PR, loss="sppo_hard", sail_coef=0.004),
        replace(PR, loss="simpo", loss_params={"beta": 2.0}, sail_coef=0.009),
        replace(PR, mode="sampled", loss="dpo_pro"),
        *(replace(PR, loss=name, has_sae=True, sail_coef=1e-4) for name in LOSSES if LOSSES[name].soft_labels),
        *(replace(PP, loss=name, sail_coef=1e-4) for name in LOSSES if LOSSES[name].link),
        replace(PR, num_generations=4, keep="random"),
        replace(PR, temperature=0.9),
        replace(PR, stale=True),
        replace(
            ITERATIVE, temperature=0.7, top_p=0.9, top_k=40, linear_alignment=True, filters=True, importance_mode="none"
        ),
        replace(DP, top_p=0.9, keep="best_worst", filters=True, temperature=0.5, importance_mode="none"),
        replace(OFFLINE, greedy=True, sources=2, keep="best_worst"),
        replace(SFT, loss="optimism", greedy=True),
    ],
)
def test_a_sound_route_has_no_findings(route):
    assert check_route(route) == []


@pytest.mark.parametrize(
    "route",
    [
        SCORED,
        replace(SCORED, loss="nll", filtered=True),
        replace(SCORED, loss="sft", has_prompt_tag=True),
        replace(SCORED, loss="dro_v", has_value=True),
        replace(SCORED, loss="kto", labels_as="thumbs"),
        replace(OFFLINE, labels_by="order", sources=2),
        KL,
        replace(KL, stale=True, temperature=0.7),  # which the weights repair
        RLOO,
        replace(RLOO, stale=True, temperature=0.7, importance_apply_to="score"),
        replace(PPO, stale=True),  # its ratios are its weights
        KL_FROM_REFERENCE,
        replace(KL_FROM_REFERENCE, stale=True, importance_mode="none"),
        replace(KL_FROM_REFERENCE, responses_from_reference=False, temperature=0.7, top_p=0.9),  # of a dataset
        replace(OPTIMISM, temperature=0.7, top_p=0.9, filters=True, importance_mode="none", stale=True),
    ],
)
def test_a_sound_route_of_single_responses_has_no_findings(route):
    assert check_route(route) == []


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        (replace(PPO, has_value=False), "needs a value network"),
        (replace(PPO, labels_as="thumbs"), "needs labels as score of single responses, and they come as thumbs"),
        (replace(PPO, labels_by="none", labels_as=""), "and nobody gives any"),
        (replace(PPO, responses_from_policy=False), "samples of the policy alone"),
        (replace(PPO, sources=2), "samples of the policy alone"),
        (replace(PPO, responses_from_policy=False, greedy=True), "samples of the policy alone"),
        (replace(PPO, own_samples=False), "starts from the policy that drew its samples"),
        (replace(PPO, importance_mode="truncate"), "weighs every token itself"),
        (replace(PPO, temperature=0.7), "temperature 0.7: the samples are not those"),
        (replace(PPO, top_p=0.9), "top_p 0.9: the samples are not those"),
        *((replace(route, responses_from_policy=False), "samples of the policy alone") for route in (RLOO, KL)),
        *((replace(route, sources=2), "samples of the policy alone") for route in (RLOO, KL)),
        *((replace(route, top_p=0.9), "top_p 0.9 under ") for route in (RLOO, KL, KL_FROM_REFERENCE)),
        (replace(RLOO, linear_alignment=True), "linear_alignment under rloo"),
        *((replace(route, temperature=0.7, importance_mode="none"), "no importance weights") for route in (RLOO, KL)),
        (
            replace(KL_FROM_REFERENCE, temperature=0.7),
            "temperature 0.7 under kl_ref_policy: the samples are not the ref",
        ),
        *(
            (replace(route, responses_from_policy=True), "zero in expectation")
            for route in (KL_FROM_REFERENCE, OPTIMISM)
        ),
        (replace(KL_FROM_REFERENCE, greedy=True), "greedy responses are none"),
        (replace(OFFLINE, loss="fpo"), "needs a sparse autoencoder"),
        (replace(OFFLINE, loss="dpoo"), "no loss named 'dpoo'"),
        (replace(PP, loss="slic"), "preference link"),
        (replace(PP, loss="slic", when="frozen", sail_coef=0.0), "preference link"),
        (replace(SFT, loss="dpo"), "labels: none"),
        (replace(PP, loss="hinge"), "preference link"),
        (replace(PR, loss="exo"), "exo takes no soft labels: they would stand inside its KL"),
        (replace(PR, loss="dpo_pro"), "takes no soft labels: its radius"),
        (replace(SFT, mode="soft"), "takes no soft labels: a single response"),
        (replace(PR, sail_coef=-0.1), "sail_coef is -0.1"),
        (replace(PR, sail_coef=float("nan")), "sail_coef is nan"),
        (replace(PR, sail_coef=float("inf")), "sail_coef is inf"),
        (replace(SFT, sail_coef=0.1), "labelled pairs"),
        (replace(OFFLINE, sail_coef=0.1), "does nothing"),
        (replace(DP, mode="hard"), "does nothing"),
        (replace(DP, when="frozen"), "does nothing"),
        (replace(PR, num_generations=4, keep="best_worst"), "best of 4 against worst"),
        (replace(PR, top_p=0.95), "top_p 0.95"),
        (replace(PR, top_k=50), "top_k 50"),
        (replace(PR, min_p=0.05), "min_p 0.05"),
        (replace(PR, min_tokens=8), "min_tokens 8"),
        (replace(PR, linear_alignment=True), "linear_alignment"),
        (replace(PR, greedy=True, sources=2), "they jump with the policy"),
        (replace(OFFLINE, greedy=True, sources=2, sail_coef=0.1), "they jump with the policy"),
        (replace(OFFLINE, greedy=True), "a prompt has one greedy one"),
        (replace(SFT, loss="kl_policy_ref", greedy=True, responses_from_policy=True), "compares draws of a prompt"),
        (replace(PP, temperature=0.9, importance_mode="none"), "temperature 0.9"),
        (replace(PP, sail_coef=0.0), "exactly zero"),
        (replace(PP, when="frozen", policy_is_reference=True), "every pair is a tie"),
        (replace(PP, when="frozen", policy_is_reference=True, sail_coef=0.0), "every pair is a tie"),
        (replace(SFT, loss="rwr"), "rwr needs labels as score of single responses, and nobody gives any"),
        (replace(SCORED, loss="kto"), "kto needs labels as thumbs of single responses, and they come as score"),
        (replace(SFT, loss="sppo"), "sppo needs labels as win_rate"),
        (replace(SCORED, loss="dro_v"), "needs a value network"),
        (replace(SFT, loss="nll", filtered=True), "a filter needs scores"),
        (replace(SFT, has_prompt_tag=True), "this route has no scores"),
        (replace(SFT, loss="kl_policy_ref", responses_from_policy=True, num_generations=1), "num_generations is 1"),
        (replace(SCORED, keep="best_worst"), "keep: best_worst chooses pairs, and rwr learns from single responses"),
        (replace(SFT, loss="kl_policy_ref", responses_from_policy=True, keep="random"), "keep: random chooses pairs"),
        (replace(SFT, labels_by="order"), "which of two is better"),
        (replace(SCORED, labels_by="policy"), "the policy labels pairs"),
        (replace(OFFLINE, labels_by="order"), "list of sources"),
        (replace(OFFLINE, labels_by="order", sources=2, mode="soft"), "names winners, no probabilities"),
        (replace(OFFLINE, labels_as="thumbs"), "compares pairs and cannot use labels as thumbs"),
        (replace(OFFLINE, filtered=True), "filter keeps single responses"),
    ],
)
def test_what_cannot_be_right_is_refused(route, problem):
    refusals = [finding for finding in check_route(route) if finding.level == "refused"]
    assert len(refusals) == 1 and problem in refusals[0].problem and refusals[0].cure


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        (replace(PP, mode="sampled", sail_coef=0.0), "noise of mean zero"),
        (replace(PP, mode="hard"), "amplify"),
        (replace(PP, mode="hard", sail_coef=0.0), "amplify"),
        (replace(PP, when="frozen"), "another algorithm"),
        (replace(PR, importance_apply_to="score"), "leaves an error"),
        (replace(PR, filters=True), "filtered"),
        (replace(PR, labels_may_lack=True), "errors and abstentions of the labeler leave pairs out"),
        (replace(PR, stale=True, importance_mode="none"), "stale samples"),
        (replace(PR, sail_coef=0.3, loss_params={"beta": 0.1}), "sail_coef 0.3 is 3.0 times 0.1"),
        (replace(PR, sail_coef=2.0, loss="simpo", num_tokens=200.0), "sail_coef 2 is 259.2 times 0.0077"),
        (replace(PR, sail_coef=1.2, loss="ipo"), "sail_coef 1.2 is 2.2 times 0.55"),
        (replace(PR, sail_coef=0.1, loss="sppo_hard"), "sail_coef 0.1 is 36.1 times 0.0028"),
        *((replace(route, stale=True, importance_mode="none"), "stale samples") for route in (RLOO, KL)),
        *(
            (replace(route, filters=True), "responses are filtered under ")
            for route in (RLOO, KL, KL_FROM_REFERENCE, PPO)
        ),
        (replace(RLOO, filtered=True), "responses are filtered under rloo"),
        *((replace(route, labels_may_lack=True), "of the labeler leave responses out") for route in (RLOO, PPO)),
    ],
)
def test_what_is_allowed_but_biased_is_warned_about(route, problem):
    (finding,) = check_route(route)
    assert finding.level == "warned" and problem in finding.problem and finding.cure


def test_all_findings_of_a_route_come_at_once_refusals_first():
    route = replace(PP, loss="slic", mode="hard", sail_coef=0.5, keep="best_worst", top_p=0.9, filters=True)
    levels = [finding.level for finding in check_route(route)]
    assert levels == ["refused"] * 3 + ["warned"] * 2
    assert len(RULES) == 12
