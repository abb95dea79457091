"""PPO by `sail run`: two rounds end to end, the same bytes after kills, estimates that are those of the samples."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sail.core.artifacts import Artifact
from sail.core.records import ResponseRow, RolloutTokens, SampleGroup, index_responses
from tests.loops.running import (
    NO_EVALUATION,
    Zygote,
    committed,
    digests,
    kill_at,
    linked,
    planned,
    small_config,
    store_of,
    write_config,
)


def ppo_config(testbed: Path, **changes: Any) -> dict[str, Any]:
    """Two rounds of two epochs; the gold reward labels."""
    small = small_config(testbed, evaluation=NO_EVALUATION)
    return small | {
        "preset": "ppo",
        "labelers": {"rm": {"kind": "callable", "path": "sail.testbed.gold:hump"}},
        "update": {"epochs": 2, "train_batch_size": 8, "learning_rate": 5e-4, "save_steps": 1},
        "components": {"value": {"learning_rate": 1e-2}},
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def config(testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config") / "ppo.yaml", ppo_config(testbed))


@pytest.fixture(scope="module")
def whole(config: Path, sail: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    done = sail.run("run", config, "--out", out, cwd=out.parent)
    assert done.returncode == 0, done.err
    return out


def of_rounds(run: Path) -> list[tuple[Artifact, Artifact, Artifact]]:
    """(rollouts, rows, responses) of both rounds."""
    stored, links = committed(store_of(run)), linked(run)
    found = []
    for turn in ("000", "001"):
        update = stored[links[f"rounds/{turn}/checkpoint"]].manifest()["inputs"]
        found.append(tuple(stored[update[f"online/0/{part}"]] for part in ("rollouts", "rows", "responses")))
    return found  # type: ignore[return-value]


def steps(run: Path, turn: int) -> list[dict[str, float]]:
    lines = (run / f"rounds/{turn:03d}/checkpoint/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_round_starts_where_its_estimates_were_made_and_moves_away(whole: Path) -> None:
    for turn in (0, 1):
        made = steps(whole, turn)
        assert len(made) == 4, "two epochs over 16 samples, 8 a step"
        assert made[0]["policy/approxkl_avg"] < 1e-9 and made[0]["policy/clipfrac_avg"] == 0.0
        assert made[-1]["policy/approxkl_avg"] > 1e-6
        assert made[0]["value/loss"] > 0
    first, second = (
        {x.response_id: x for x in round_[0].read(RolloutTokens, "rollouts")} for round_ in of_rounds(whole)
    )
    assert all(value == 0.0 for x in first.values() for value in x.values), "a new value network says 0"
    assert any(value != 0.0 for x in second.values() for value in x.values), "round 0's value network goes on"
    assert all(x.old_logps == x.ref_logps for x in first.values()), "the base policy is the reference"
    assert all(x.old_logps != x.ref_logps for x in second.values())


def test_the_estimates_are_those_of_the_samples(whole: Path) -> None:
    """By id: log-probs are the sampler's, returns are reward and KL penalty to go, advantages are whitened."""
    for rollouts, rows, responses in of_rounds(whole):
        index = index_responses(responses.read(SampleGroup, "groups"))
        targets = {row.response_id: row.target for row in rows.read(ResponseRow, "rows")}
        found = rollouts.read(RolloutTokens, "rollouts")
        assert {each.response_id for each in found} == set(targets) and len(found) == 16
        for each in found:
            np.testing.assert_allclose(each.old_logps, index[each.response_id][1].logprobs, atol=1e-4)
            kl = np.array(each.old_logps) - np.array(each.ref_logps)
            advantages, following = [], 0.0
            for k in reversed(range(len(kl))):
                last = k == len(kl) - 1
                reward = -0.05 * kl[k] + (targets[each.response_id] if last else 0.0)
                error = reward + (0.0 if last else each.values[k + 1]) - each.values[k]
                following = error + 0.95 * following
                advantages.insert(0, following)
            np.testing.assert_allclose(np.array(each.returns) - each.values, advantages, atol=1e-9)
        whitened = np.concatenate([each.advantages for each in found])
        assert abs(whitened.mean()) < 1e-9 and abs(whitened.std() - 1.0) < 1e-6


_KILLS = {
    "rollouts": ["os.rename .*/rollouts.parquet"],
    "checkpoint": ["os.rename .*/scratch/step-00000002", "open .*/components/value/config.json w"],
}


def test_a_run_killed_in_its_estimates_and_its_updates_ends_byte_identical(
    config: Path, whole: Path, sail: Zygote, tmp_path: Path
) -> None:
    out, killed = tmp_path / "run", 0
    for artifact in planned(config, [], out):
        for pattern in _KILLS.get(artifact.stage, []):
            inside = f"{artifact.id}.partial"
            at = kill_at(pattern.replace(".*", f".*/{inside}.*", 1))
            done = sail.run("run", config, "--out", out, cwd=tmp_path, at=at)
            assert done.returncode == -signal.SIGKILL, f"{artifact.id} {pattern}: {done.err[-2000:]}"
            killed += 1
    assert killed == 6
    done = sail.run("run", config, "--out", out, cwd=tmp_path)
    assert done.returncode == 0 and done.announced[1]["checkpoint"] == 1 and "rollouts" not in done.announced[1]
    assert digests(store_of(out)) == digests(store_of(whole))


def test_another_clip_range_reuses_the_estimates_and_another_lambda_does_not(config: Path, whole: Path) -> None:
    stored = set(committed(store_of(whole)))
    for override, reused in (("loss.cliprange=0.1", True), ("loss.lam=0.5", False), ("loss.whiten=0", False)):
        rollouts = [artifact for artifact in planned(config, [override], whole) if artifact.stage == "rollouts"]
        assert (rollouts[0].id in stored) is reused


@pytest.mark.parametrize(("changes", "problem"), [
    ({"components": {"value": None}}, "needs a value network"),
    ({"routes": {"online": {"labels": {"by": "rm", "as": "thumbs"}}}}, "needs labels as score"),
    ({"routes": {"online": {"responses": "prefs"}}}, "samples of the policy alone"),
    ({"round": {"data": "all"}}, "starts from the policy that drew its samples"),
    ({"round": {"init_from": "base"}}, "starts from the policy that drew its samples"),
    ({"generation": {"engine": "transformers", "temperature": 0.7}}, "temperature 0.7"),
])  # fmt: skip
def test_what_ppo_lacks_is_refused_before_anything_runs(
    changes: dict[str, Any], problem: str, testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "c.yaml", ppo_config(testbed, **changes))
    done = sail.run("run", config, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2 and problem in done.error
    assert not (tmp_path / "run").exists()


def test_rloo_runs_end_to_end(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    settings = ppo_config(testbed, preset="rloo", components={})
    config = write_config(tmp_path / "c.yaml", settings)
    done = sail.run("run", config, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.err
    assert steps(tmp_path / "run", 1)[0]["sail/importance_ess"] == pytest.approx(1.0, abs=1e-4)
