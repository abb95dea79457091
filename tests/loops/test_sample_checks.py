"""Whose samples a gradient needs, drawn how: asked of whole settings, before anything runs."""

from typing import Any

import pytest

from loops.checks import check_run
from loops.config import resolve
from loops.documents import merge
from sail.core.errors import UserError

BASE: dict[str, Any] = {
    "model_name_or_path": "m",
    "data": {"prefs": {"path": "q.jsonl"}},
    "prompts": {"from": "prefs", "per_round": 8},
    "labelers": {"rm": {"kind": "reward_model", "path": "rm"}, "judge": {"kind": "judge", "url": "http://localhost:1",
                                                                          "model": "m", "question": "rubric"}},
}  # fmt: skip


def check(preset: str, change: dict[str, Any]) -> list[str]:
    warnings = check_run(resolve(merge(BASE, {"preset": preset} | change)), ["vllm", "transformers"])
    return [line for line in warnings if not line.startswith("loss ")]  # names that mean something else elsewhere


def route(name: str, **changes: Any) -> dict[str, Any]:
    return {"routes": {name: changes}}


WARM = {"generation": {"temperature": 0.7}}
CUT = {"generation": {"top_p": 0.9}}
UNWEIGHTED = {"importance_sampling": {"mode": "none"}}


@pytest.mark.parametrize(
    ("preset", "change", "told"),
    [
        ("rloo", CUT, r"routes\.online: top_p 0.9 under rloo"),
        ("hypo", CUT, r"routes\.kl: top_p 0.9 under kl_policy_ref"),
        ("sail-revkl", merge(CUT, route("online", sail_coef=0)), r"routes\.kl: top_p 0.9 under kl_ref_policy"),
        ("rloo", WARM | UNWEIGHTED, "temperature 0.7 under rloo and no importance weights"),
        ("sail-revkl", WARM, r"routes\.kl: temperature 0.7 under kl_ref_policy: the samples are not the reference's"),
        ("rloo", route("online", responses="prefs"), "rloo learns from samples of the policy alone"),
        ("rloo", route("online", responses=["policy", "reference"]), "rloo learns from samples of the policy alone"),
        ("hypo", route("kl", responses="reference"), "kl_policy_ref learns from samples of the policy alone"),
        ("hypo", route("kl", responses="prefs"), "kl_policy_ref learns from samples of the policy alone"),
        ("sail-revkl", route("kl", responses="policy"), "kl_ref_policy on samples of the policy: .* zero"),
        ("vpo", route("optimism", responses="policy"), "optimism on samples of the policy: .* zero"),
    ],
)
def test_samples_that_a_gradient_is_no_expectation_over_are_refused(
    preset: str, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        check(preset, change)


@pytest.mark.parametrize("preset", ["rloo", "ppo"])
def test_samples_that_are_left_out_are_warned_of(preset: str) -> None:
    assert check(preset, {}) == check(preset, {"hygiene": {"identical": "drop", "min_margin": 1}}) == []  # of pairs
    for change in ({"hygiene": {"truncated": "drop"}}, route("online", filter={"top_k": 1})):
        (warning,) = check(preset, change)
        assert f"responses are filtered under {preset}" in warning
    (warning,) = check(preset, route("online", labels="judge"))
    assert "errors and abstentions of the labeler leave responses out" in warning


def test_stale_samples_without_weights_are_warned_of() -> None:
    (warning,) = check("rloo", UNWEIGHTED)
    assert "stale samples without importance weights under rloo" in warning
    assert check("hypo", UNWEIGHTED | {"steps_per_generation": 1, "update": {"steps": 2}}) == []
    assert check("rloo", WARM) == []
