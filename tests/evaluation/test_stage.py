"""The stage as a whole, on real two-layer models and a real store."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sail.core.artifacts import Artifact
from sail.core.metrics import METRICS
from sail.core.records import DatasetVerdict
from sail.core.store import Build, Recipe, Store
from sail.evaluation.inputs import EvaluationInputs, HeldOutPairs
from sail.evaluation.stage import evaluate
from sail.policy.loading import Checkpoint
from sail.policy.scoring import score_logps

from .doubles import group, model_leaf, random_groups, scores, stored_groups, stored_pairs, stored_scores

BETA = 0.1


def make_inputs(store: Store, policy: Checkpoint, reference: Checkpoint, **changes: Any) -> EvaluationInputs:
    samples = stored_groups(store, "held-out", random_groups(6, 2, seed=3))
    inputs = EvaluationInputs(
        policy=policy,
        reference=reference,
        samples=samples,
        policy_logps=score_logps(store, samples, policy),
        reference_logps=score_logps(store, samples, reference),
    )
    return dataclasses.replace(inputs, **changes)


def by_index(store: Store, name: str, sign: float) -> Artifact:
    return stored_scores(store, name, [scores(str(index), sign * index, sign * (index + 1)) for index in range(6)])


def held_out_pairs(store: Store, policy: Checkpoint, reference: Checkpoint) -> HeldOutPairs:
    groups = [group("d", [(3, 4, 2), (5, 2)])]
    data = stored_pairs(store, "prefs", groups, [DatasetVerdict("p-d", "p-d-1", "p-d-0", None, None)])
    return HeldOutPairs(data, score_logps(store, data, policy), score_logps(store, data, reference))


def test_a_trained_policy_gets_every_metric(store: Store, tmp_path: Path) -> None:
    policy, reference = model_leaf(tmp_path / "policy", 0), model_leaf(tmp_path / "reference", 1)
    headline, other = by_index(store, "gold", 1.0), by_index(store, "rm", -1.0)
    inputs = make_inputs(
        store, policy, reference, pairs=held_out_pairs(store, policy, reference),
        scores={"gold": headline, "rm": other}, start_scores={"gold": other, "rm": other},
    )  # fmt: skip
    artifact = evaluate(store, inputs, beta=BETA, seed=0)
    metrics = artifact.result()
    assert metrics == json.loads((artifact.path / "metrics.json").read_text())
    expected = {name for name in METRICS if name.startswith(("eval/", "objective/kl", "completions/"))}
    expected |= {f"rewards/{kind}_{where}" for kind in ("accuracies", "margins") for where in ("offline", "online")}
    expected -= {"eval/reward/<scorer>", "eval/reward_se/<scorer>", "eval/win_rate/<scorer>"}
    expected |= {f"eval/{kind}/{scorer}" for kind in ("reward", "reward_se", "win_rate") for scorer in ("gold", "rm")}
    assert set(metrics) == expected
    assert metrics["eval/reward"] == metrics["eval/reward/gold"] == pytest.approx(3.0)
    assert metrics["eval/win_rate/rm"] == 0.5
    # prompt 0: scores 0, 1 against 0, -1 is one tie in four pairs, the other five prompts win every pair
    assert metrics["eval/win_rate"] == pytest.approx((0.875 + 5) / 6)
    assert metrics["eval/win_rate_low"] <= metrics["eval/win_rate"] <= metrics["eval/win_rate_high"]
    assert metrics["objective/kl"] > 0
    examples = json.loads((artifact.path / "examples.json").read_text())
    assert len(examples) == 6
    assert set(examples[0]["responses"][0]["scores"]) == {"gold", "rm"}


def test_the_starting_policy_is_its_own_reference(store: Store, tmp_path: Path) -> None:
    start = model_leaf(tmp_path / "start", 0)
    inputs = make_inputs(
        store, start, start, scores={"gold": by_index(store, "gold", 1.0)}, pairs=held_out_pairs(store, start, start)
    )
    metrics = evaluate(store, inputs, beta=BETA, seed=0).result()
    assert metrics["objective/kl"] == metrics["objective/kl_log_ratio"] == 0.0
    assert metrics["rewards/accuracies_online"] == metrics["rewards/accuracies_offline"] == 0.5
    assert not any(name.startswith("eval/win_rate") for name in metrics)


def test_without_scorers_rewards_are_absent(store: Store, tmp_path: Path) -> None:
    start = model_leaf(tmp_path / "start", 0)
    metrics = evaluate(store, make_inputs(store, start, start), beta=BETA, seed=0).result()
    assert "completions/eos_rate" in metrics
    assert not any(name.startswith(("eval/", "rewards/")) for name in metrics)


class Notebook:
    """A builder that only writes down, as a plan does."""

    def build(self, recipe: Recipe, run: Build) -> Artifact:
        return Artifact(recipe.stage, recipe.key, Path("/not/yet"))


def future(name: str) -> Artifact:
    return Artifact("any", name, Path("/not/yet"))


def planned(**changes: Any) -> EvaluationInputs:
    inputs = EvaluationInputs(*(future(name) for name in ("policy", "reference", "samples", "logps", "ref_logps")))
    return dataclasses.replace(inputs, **changes)


def test_a_plan_reads_nothing_and_the_first_scorer_counts() -> None:
    gold, rm = future("gold"), future("rm")
    keys = {
        evaluate(Notebook(), planned(scores=chosen), beta=BETA, seed=0).key
        for chosen in ({}, {"gold": gold, "rm": rm}, {"rm": rm, "gold": gold}, {"gold": rm, "rm": gold})
    }
    assert len(keys) == 4


def test_a_token_budget_changes_no_key() -> None:
    keys = {evaluate(Notebook(), planned(), beta=BETA, seed=0, max_tokens=budget).key for budget in (64, 4096)}
    assert len(keys) == 1


def test_start_scores_of_another_scorer_are_refused() -> None:
    with pytest.raises(ValueError, match="gold"):
        planned(start_scores={"gold": future("gold")})
