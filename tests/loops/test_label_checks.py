"""What is refused and warned of in labelers and regulations, before anything runs."""

from typing import Any

import pytest

from loops.checks import check_run
from loops.config import resolve
from loops.documents import merge
from loops.estimates import judge_questions
from sail.core.errors import UserError

BASE: dict[str, Any] = {
    "preset": "oaif",
    "model_name_or_path": "m",
    "data": {"prompts": {"path": "p.jsonl"}, "prefs": {"path": "q.jsonl"}},
    "prompts": {"from": "prompts", "per_round": 8},
    "labelers": {
        "judge": {"kind": "judge", "url": "http://localhost:1", "model": "m"},
        "points": {"kind": "judge", "url": "http://localhost:1", "model": "m", "question": "rubric"},
        "own": {"kind": "judge", "url": "policy"},
        "rm": {"kind": "reward_model", "path": "rm"},
        "gold": {"kind": "callable", "path": "sail.testbed.gold:hump"},
        "people": {"kind": "human"},
    },
    "update": {"lr_scheduler_type": "constant"},
}


def check(change: dict[str, Any]) -> list[str]:
    return check_run(resolve(merge(BASE, change)), ["vllm", "transformers"])


def labels(**changes: Any) -> dict[str, Any]:
    return {"routes": {"online": {"labels": {"by": "judge", "mode": "soft", **changes}}}}


def offline(preset: str, by: str) -> dict[str, Any]:
    return {"preset": preset, "labelers": NOISE, "routes": {"offline": {"responses": "prefs", "labels": by}}}


NOISE = {"n": {"kind": "noise", "of": "people", "rate": 0.1}}
TEMPER = {"step": "temper", "temperature": 2}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an ensemble of a stranger": (
        {"labelers": {"all": {"kind": "ensemble", "of": ["rm", "nobody"]}}},
        r"labelers\.all\.of: 'nobody' is not a labeler that scores responses",
    ),
    "an ensemble of those who compare": (
        {"labelers": {"all": {"kind": "ensemble", "of": ["rm", "judge"]}}}, r"'judge' is not a labeler that scores",
    ),
    "an ensemble of one": ({"labelers": {"all": {"kind": "ensemble", "of": ["rm"]}}}, "at least 2 items"),
    "a fit on nothing": (
        {"labelers": {"own_rm": {"kind": "reward_model", "fit": {"data": "pref"}}}},
        r"labelers\.own_rm\.fit\.data: 'pref' is not a data source.*'prefs'",
    ),
    "one name for two": ({"labelers": {"prefs": {"kind": "human"}}}, r"labelers: \['prefs'\] name both"),
    "noise over nobody": ({"labelers": {"n": {"kind": "noise", "of": "x", "rate": 0.1}}}, "'x' is not a labeler"),
    "a judge that scores the evaluation": (
        {"evaluation": {"scorers": ["points"]}}, r"evaluation\.scorers: 'points' is not a scorer that never fails",
    ),
    "people who score the evaluation": ({"evaluation": {"scorers": ["people"]}}, "'people' is not a scorer"),
    "a temperature for probabilities": (labels(temperature=2.0), r"gives probabilities, no scores.*step: temper"),
    "tempered hard labels": (labels(mode="hard", regulation=[TEMPER]), "temper does nothing to hard labels"),
    "an unknown step": (labels(regulation=[{"step": "tempr"}]), r"needs step: .*'temper'"),
    "a step without its setting": (labels(regulation=[{"step": "smooth"}]), r"epsilon: Field required"),
    "an unknown key of a step": (labels(regulation=[TEMPER | {"tau": 1}]), "unknown key 'tau'"),
    "disagreement with nobody": (
        labels(regulation=[{"step": "disagreement", "with": "gole"}]), r"labels: 'gole' is not.*Did you mean 'gold'",
    ),
    "an audit by another dataset": (labels(audit=["prefs"]), "'prefs' is not a labeler, or the route's own"),
    "an audit of groups": (
        {"preset": "rloo", "routes": {"online": {"labels": {"by": "rm", "audit": ["gold"]}}}},
        r"routes\.online\.labels: rloo learns from single responses, there are no pairs to regulate or audit",
    ),
    "scores turned round": (
        {"preset": "sppo", "labelers": NOISE, "routes": {"online": {"labels": "n"}}},
        r"online\.labels: 'n' turns labels round, and labels as win_rate, which sppo reads, have no other side",
    ),
    "noise over another data source": (
        labels(by="n", mode="hard") | {"labelers": {"n": {"kind": "noise", "of": "prefs", "rate": 0.1}}},
        r"routes\.online\.labels: data source 'prefs' has verdicts on its own pairs only",
    ),
    "verdicts of pairs for the rows of a dataset": (
        offline("kto", "judge"), r"offline\.labels: 'judge' compares samples.* as thumbs of the responses of 'prefs'",
    ),
    "people's verdicts, turned round, for the same": (offline("kto", "n"), "'n' compares samples of a prompt"),
    "people for rows that want scores": (offline("rwr", "people"), "rwr needs labels as score of.*who scores"),
    "a comparison of one sample": (
        {"preset": "ppo", "routes": {"online": {"labels": "judge"}}},
        "ppo needs labels as score of one sample a prompt.*or draw two or more: num_generations: 2",
    ),
    "the best and the worst of single responses": (
        {"preset": "sppo", "routes": {"online": {"labels": "rm", "keep": "best_worst"}}},
        r"routes\.online: keep: best_worst chooses pairs, and sppo learns.*Set keep: all",
    ),
    "changed labels of the policy": (
        labels(by="policy", regulation=[TEMPER]) | {"routes": {"online": {"labels": {"by": "policy", "mode": "soft",
        "regulation": [TEMPER]}, "sail_coef": 0.1}}}, "temper changes labels that the update makes anew",
    ),
    "soft labels for a loss of hard ones": (
        labels(mode="hard", regulation=[{"step": "smooth", "epsilon": 0.1}]) | {"loss": {"type": "exo"}},
        "smooth makes soft labels, and exo takes none",
    ),
    "the policy's own server where there is none": (
        labels(by="own") | {"generation": {"engine": "transformers"}}, r"labelers\.own\.url: url: policy needs",
    ),
    "the policy's own server where it is no server": (
        labels(by="own") | {"vllm": {"mode": "colocate"}}, r"labelers\.own\.url: .*mode colocate has none",
    ),
    "a hidden judge where there is no server": (
        labels(by="n") | {"labelers": {"n": {"kind": "noise", "of": "own", "rate": 0.1}},
                          "generation": {"engine": "transformers"}}, r"labelers\.own\.url",
    ),
    "an expression that is none": ({"labelers": {"r": {"kind": "rule", "regex": "("}}}, "no regular expression"),
}  # fmt: skip


def penalty(preset: str, **route: Any) -> dict[str, Any]:
    """A penalty beside one route of samples."""
    keep = {"truncated": "keep", "missing_eos_penalty": 1.0}
    return {"preset": preset, "hygiene": keep, "routes": {"online": {"responses": "policy", **route}}}


@pytest.mark.parametrize(
    "change",
    [
        penalty("oaif", labels="judge"),
        penalty("oaif", labels="n") | {"labelers": NOISE},
        penalty("osp", labels="own"),
        penalty("oaif", labels="rm", responses="prefs") | {"num_rounds": 0},
        penalty("oaif", labels="rm", loss={"type": "sft"}),  # reads no label
    ],
)
def test_a_penalty_that_meets_no_score_of_a_sample_is_warned_of(change: dict[str, Any]) -> None:
    """Not refused: the control arm of an ablation has none, and the base of all arms is one."""
    assert any(
        "missing_eos_penalty does nothing: no route labels its samples by scores" in line for line in check(change)
    )


def test_a_penalty_that_meets_a_score_in_one_phase_may_stand_for_all() -> None:
    for by in ("rm", "points", "n"):
        assert check(penalty("oaif", labels=by) | {"labelers": {"n": {**NOISE["n"], "of": "gold"}}}) == []
    offline = {"name": "first", "preset": "dpo", "routes": {"offline": {"responses": "prefs", "labels": "prefs"}}}
    shared = {key: value for key, value in BASE.items() if key != "preset"}
    phases = [offline, {"name": "then", "preset": "oaif", "routes": {"online": {"labels": "gold"}}}]
    document = merge(shared, {"hygiene": penalty("oaif")["hygiene"], "phases": phases})
    assert check_run(resolve(document), ["vllm", "transformers"]) == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused(name: str) -> None:
    change, told = REFUSED[name]
    with pytest.raises(UserError, match=told):
        check(change)


@pytest.mark.parametrize(
    "change",
    [
        {},
        labels(regulation=[TEMPER, {"step": "deduplicate"}], audit=["gold", "people"]),
        labels(by="own"),
        labels(by="n") | {"labelers": {"n": {"kind": "noise", "of": "rm", "rate": 0.1}}},
        {"preset": "sppo", "routes": {"online": {"labels": "judge"}}},
        {"preset": "osp", "routes": {"online": {"labels": "own"}}},
        {"preset": "self-rewarding", "routes": {"online": {"labels": "points"}}},
        {"labelers": {"all": {"kind": "ensemble", "of": ["rm", "gold"]}}, "evaluation": {"scorers": ["all"]}},
    ],
)
def test_what_can_work_is_let_through_without_a_word(change: dict[str, Any]) -> None:
    assert check(change) == []


def test_a_plan_knows_what_judges_will_be_asked() -> None:
    """8 prompts, 3 rounds; 6 pairs in two orders, 4 responses in three answers each, 1 pair in one order."""
    questions = {"osp": 3 * 8 * 6 * 2, "self-rewarding": 3 * 8 * 4 * 3, "oaif": 3 * 8}
    points = {"points": {"temperature": 0.7, "num_answers": 3}, "judge": {"both_orders": False}}
    for preset, by in (("osp", "own"), ("self-rewarding", "points"), ("oaif", "judge")):
        change = {"preset": preset, "labelers": points, "routes": {"online": {"labels": by}}}
        settings = resolve(merge(BASE, change))
        assert judge_questions(settings.phases[0], settings) == questions[preset]


KEEP_ALL = {"truncated": "keep", "empty": "keep", "identical": "keep", "ties": "keep"}


@pytest.mark.parametrize(
    ("step", "warned"),
    [
        (TEMPER, False),
        ({"step": "cap", "confidence": 0.9}, False),
        ({"step": "drop_near_ties", "margin": 0.1}, True),
        ({"step": "length_matched", "ratio": 2}, True),
        ({"step": "deduplicate"}, True),
        ({"step": "disagreement", "with": "gold"}, True),
        ({"step": "disagreement", "with": "gold", "do": "soften"}, False),
    ],
)
def test_steps_that_leave_pairs_out_are_warned_of_beside_the_score_term(step: dict[str, Any], warned: bool) -> None:
    exact = {"importance_sampling": {"mode": "truncate"}, "hygiene": KEEP_ALL}
    with_score = merge(labels(by="rm", regulation=[step]), {"routes": {"online": {"sail_coef": 0.1}}} | exact)
    assert [("pairs are filtered" in line) for line in check(with_score)] == ([True] if warned else [])
    assert check(merge(labels(by="rm", regulation=[step]), exact)) == []


@pytest.mark.parametrize(
    ("by", "coefficient", "warned"),
    [("judge", 0.1, True), ("people", 0.1, True), ("n", 0.1, True), ("judge", 0, False), ("rm", 0.1, False)],
)
def test_labelers_that_may_leave_pairs_without_a_label_are_warned_of_beside_the_score_term(
    by: str, coefficient: float, warned: bool
) -> None:
    change = merge(labels(by=by), {
        "labelers": {
            "n": {"kind": "noise", "of": "both", "rate": 0.1}, "both": {"kind": "ensemble", "of": ["rm", "points"]},
        },
        "routes": {"online": {"sail_coef": coefficient}},
        "importance_sampling": {"mode": "truncate"}, "hygiene": KEEP_ALL,
    })  # fmt: skip
    assert [("errors and abstentions" in line) for line in check(change)] == ([True] if warned else [])
