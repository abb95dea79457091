"""round.staleness: a round learns from samples of the policy one round before."""

from pathlib import Path
from typing import Any

import pytest

from loops.checks import check_run
from loops.config import resolve
from loops.documents import merge
from sail import load_run
from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.records import SampleGroup
from sail.policy.scoring import read_logps
from tests.loops.running import NO_EVALUATION, Zygote, committed, planned, small_config, store_of, write_config

ENGINES = ["vllm", "transformers"]


def stale(testbed: Path, **changes: Any) -> dict[str, Any]:
    return small_config(testbed, evaluation=NO_EVALUATION, num_rounds=3, round={"staleness": 1}, **changes)


def artifacts(out: Path, name: str) -> list[Artifact]:
    """Of each round, in order."""
    store = committed(store_of(out))
    return [store[path.resolve().name] for path in sorted(out.glob(f"rounds/*/{name}"))]


@pytest.fixture(scope="module")
def run(testbed: Path, sail: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stale") / "run"
    done = sail.run("run", write_config(out.parent / "c.yaml", stale(testbed)), "--out", out, cwd=out.parent)
    assert done.returncode == 0, done.err
    assert "saves no time" in done.out, "the engine is the process that trains"
    return out


def test_a_round_learns_from_samples_of_the_policy_before_it(run: Path) -> None:
    checkpoints = artifacts(run, "checkpoint")
    start = checkpoints[0].manifest()["inputs"]["start"]
    drawn_by = [samples.manifest()["inputs"]["policy"] for samples in artifacts(run, "samples/online")]
    assert drawn_by == [start, start, checkpoints[0].id], "the second round, too, has nobody older to ask"
    assert [one.manifest()["inputs"]["start"] for one in checkpoints] == [start, checkpoints[0].id, checkpoints[1].id]


def test_behaviour_log_probs_are_those_of_the_policy_that_drew(run: Path) -> None:
    store = committed(store_of(run))
    for samples, checkpoint in zip(artifacts(run, "samples/online"), artifacts(run, "checkpoint"), strict=True):
        groups = samples.read(SampleGroup, "groups")
        recorded = {one.response_id: sum(one.logprobs) for group in groups for one in group.samples}
        behavior = store[checkpoint.manifest()["inputs"]["online/0/behavior"]]
        assert behavior.manifest()["inputs"]["checkpoint"] == samples.manifest()["inputs"]["policy"]
        assert read_logps(behavior) == pytest.approx(recorded, abs=1e-4)


def test_the_weights_of_a_stale_rounds_first_step_differ_from_one(run: Path) -> None:
    first = [line for line in load_run(run).metrics() if line["kind"] == "step" and line["step"] == 1]
    shares = [line["sail/importance_ess"] for line in first]
    assert shares[0] == pytest.approx(1.0, abs=1e-9)
    assert max(shares[1:]) < 1 - 1e-4


def test_the_first_round_is_that_of_a_run_without_it_and_nothing_else_moved(testbed: Path, tmp_path: Path) -> None:
    config, out = write_config(tmp_path / "c.yaml", stale(testbed)), tmp_path / "run"
    keys = {age: planned(config, overrides, out) for age, overrides in ((1, []), (0, ["round.staleness=0"]))}
    unset = planned(write_config(tmp_path / "u.yaml", stale(testbed) | {"round": {}}), [], out)
    assert unset == keys[0], "the default enters no key"
    until = [one.stage for one in keys[0]].index("checkpoint") + 1
    assert keys[0][:until] == keys[1][:until]
    assert not {one.id for one in keys[0] if one.stage == "checkpoint"} & {one.id for one in keys[1][until:]}


_REFUSED = {
    "nobody samples": ({"routes": {"online": {"share": 0}, "offline": {"share": 1}}}, "no route samples", "Leave it"),
    "refreshed within the round": ({"steps_per_generation": 2}, "steps_per_generation 2 draws", "Leave one"),
    "tags": ({"components": {"prompt_tag": {"target": "max"}}}, "seen older ones", "Leave one of them out"),
    "a moving reference": (
        {"routes": {"online": {"responses": ["policy", "reference"]}}, "round": {"reference": "previous"}},
        "newer policy than the policy itself", "round.reference: base",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _REFUSED)
def test_what_cannot_be_a_round_older_is_refused_with_a_cure(name: str, testbed: Path) -> None:
    change, problem, cure = _REFUSED[name]
    with pytest.raises(UserError, match=r"round\.staleness 1") as refused:
        check_run(resolve(merge(stale(testbed), change)), ENGINES)
    assert problem in str(refused.value) and cure in str(refused.value)


def test_ppo_does_not_start_from_the_policy_that_drew(testbed: Path) -> None:
    changes: dict[str, Any] = {"preset": "ppo", "routes": {"online": {"labels": "gold"}}}
    ppo = small_config(testbed, **changes) | {"round": {"staleness": 0}}
    check_run(resolve(ppo), ENGINES)
    with pytest.raises(UserError, match=r"drew its samples.*staleness: 0"):
        check_run(resolve(ppo | {"round": {"staleness": 1}}), ENGINES)


def test_a_run_is_warned_where_nothing_is_drawn_meanwhile(testbed: Path) -> None:
    def warned(**vllm: Any) -> list[str]:
        settings = merge(stale(testbed), {"generation": {"engine": "vllm"}, "vllm": vllm})
        return [line for line in check_run(resolve(settings), ENGINES) if "saves no time" in line]

    assert "vllm.during_update is stop" in warned(during_update="stop")[0]
    assert not warned(during_update="keep") and not warned(mode="external", server_urls=["http://127.0.0.1:1"])


def test_stale_samples_without_weights_are_warned_of(testbed: Path) -> None:
    bare = stale(testbed, importance_sampling={"mode": "none"})
    assert [line for line in check_run(resolve(bare), ENGINES) if "stale samples without importance weights" in line]
