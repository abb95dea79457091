"""Linear Alignment in a run: evaluated without training, a sampler of pairs, refused where it cannot be right."""

from pathlib import Path
from typing import Any

import pytest
import torch

from loops.documents import merge
from sail import load_run
from sail.core.artifacts import leaf
from sail.core.records import SampleGroup
from sail.policy.loading import load_policy
from sail.policy.logprobs import sequence_logps
from sail.policy.rows import Row
from sail.results import Round
from tests.loops.running import NO_EVALUATION, Zygote, committed, linked, small_config, store_of, write_config

STEERED = {"principle": "paris", "rho": 2.0, "top_p": 0.9}
"""the testbed's template writes every turn that is not the assistant's: 'paris film in london ...'"""


def only_evaluates(testbed: Path) -> dict[str, Any]:
    return {
        "preset": "linear-alignment",
        "model_name_or_path": str(testbed / "sft"),
        "data": {"prompts": {"path": str(testbed / "prompts.jsonl")}},
        "labelers": {"gold": {"kind": "callable", "path": "sail.testbed.gold:hump"}},
        "prompts": {"from": "prompts"},
        "generation": {"max_completion_length": 24, "linear_alignment": STEERED},
        "evaluation": {"num_prompts": 12, "scorers": ["gold"]},
    }


def texts(evaluated: Round) -> list[str]:
    return [sample.text for group in groups(evaluated) for sample in group.samples]


def groups(evaluated: Round) -> list[SampleGroup]:
    folder = (evaluated.folder / "evaluation_samples").resolve()
    (artifact,) = (found for found in committed(folder.parent).values() if found.path == folder)
    return [group for path in sorted(folder.glob("groups-*")) for group in artifact.read(SampleGroup, path.stem)]


def test_a_run_without_routes_compares_the_steered_policy_with_the_plain_one(
    testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    config, out = write_config(tmp_path / "c.yaml", only_evaluates(testbed)), tmp_path / "runs" / "r"
    done = sail.run("run", config, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.err
    assert "checkpoint" not in {artifact.stage for artifact in committed(store_of(out)).values()}
    run = load_run(out)
    assert run.num_rounds == 1
    assert texts(run.start) != texts(run.round(0))
    assert "eval/win_rate" in run.round(0).metrics() and "eval/win_rate" not in run.start.metrics()
    assert run.round(0).metrics()["objective/kl"] == 0.0  # of the weights, which have not moved
    assert "nothing to do" in sail.run("run", config, "--out", out, cwd=tmp_path).out
    assert "nothing is trained" in sail.run("plan", config, "--out", out, cwd=tmp_path).out
    other = sail.run("run", config, "generation.linear_alignment.rho=0.5", "--out", out, cwd=tmp_path)
    assert other.announced[1] == {"samples": 1, "scores": 1, "logps": 1, "evaluation": 1}, "the start is reused"


def test_a_phase_trains_on_steered_samples_and_evaluates_the_policy_itself(
    testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    settings = small_config(
        testbed, preset="iterative-dpo", num_rounds=1, routes={"online": {"num_generations": 2, "labels": "gold"}}
    )
    generation = settings["generation"]
    changes: dict[str, dict[str, Any]] = {"plain": {}, "steered": {"linear_alignment": STEERED}}
    outs = {}
    for name, change in changes.items():
        config = write_config(tmp_path / f"{name}.yaml", settings | {"generation": generation | change})
        outs[name] = tmp_path / "runs" / name
        done = sail.run("run", config, "--out", outs[name], cwd=tmp_path)
        assert done.returncode == 0, done.err
    plain, steered = (linked(out) for out in outs.values())
    assert plain["rounds/000/samples/online"] != steered["rounds/000/samples/online"]
    trained = load_run(outs["steered"]).round(0)
    for group in groups(trained):
        for sample in group.samples:
            with torch.no_grad():
                row = Row(group.prompt.token_ids, sample.token_ids)
                (expected,) = sequence_logps(load_policy(leaf(trained.checkpoint)), [row])
            assert sum(sample.logprobs) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize(
    ("change", "where", "what", "cure"),
    [
        ({"generation": {"engine": "vllm"}}, "generation.linear_alignment", "two together", "engine: transformers"),
        ({}, "routes.online", "linear_alignment with sail_coef > 0", "or set sail_coef: 0"),
        (
            {"routes": {"online": {"sail_coef": 0}}, "importance_sampling": {"mode": "truncate"}},
            "importance_sampling.mode", "cannot repair samples of Linear Alignment", "Set it to none",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(
    change: dict[str, Any], where: str, what: str, cure: str, testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    settings = merge(small_config(testbed), {"generation": {"linear_alignment": STEERED}})
    settings = merge(settings, {"importance_sampling": {"mode": "none"}})
    done = sail.run("plan", write_config(tmp_path / "c.yaml", merge(settings, change)), cwd=tmp_path)
    assert done.returncode == 2
    assert where in done.error and what in done.error and cure in done.error


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        ({"num_rounds": 2}, "num_rounds", "2 rounds without routes"),
        ({"evaluation": NO_EVALUATION}, "routes", "neither routes nor evaluation"),
    ],
)
def test_a_phase_without_routes_only_evaluates(
    change: dict[str, Any], where: str, what: str, testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "c.yaml", merge(only_evaluates(testbed), change))
    done = sail.run("run", config, cwd=tmp_path)
    assert done.returncode == 2
    assert where in done.error and what in done.error
