"""steps_per_generation: the sampler refreshed within a round; killed and resumed it ends byte-identical."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from sail import load_run
from sail.core.records import PreferencePair, SampleGroup
from sail.policy.scoring import read_logps
from tests.loops.running import (
    NO_EVALUATION,
    Zygote,
    committed,
    digests,
    kill_at,
    linked,
    planned,
    small_config,
    stamps,
    store_of,
    weights,
    write_config,
)


def one_round(testbed: Path, **changes: Any) -> dict[str, Any]:
    return small_config(testbed, evaluation=NO_EVALUATION, num_rounds=1, **changes)


def run(sail: Zygote, settings: dict[str, Any], out: Path, *overrides: str) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    done = sail.run("run", write_config(out.parent / "c.yaml", settings), *overrides, "--out", out, cwd=out.parent)
    assert done.returncode == 0, done.err
    return out


def assert_each_segment_is_its_own_policys(out: Path) -> None:
    """What the sampler says of its draws is what the trainer says of them, at the version they carry."""
    for segment in sorted((out / "rounds/000/checkpoint/segments").iterdir()):
        inside = committed(segment).values()
        [samples] = [artifact for artifact in inside if artifact.stage == "samples"]
        drawn = [sample for group in samples.read(SampleGroup, "groups") for sample in group.samples]
        recorded = {sample.response_id: sum(sample.logprobs) for sample in drawn}
        version = drawn[0].policy_version
        by_it = [artifact for artifact in inside if artifact.manifest()["inputs"].get("checkpoint") == version]
        assert [read_logps(logps) for logps in by_it] == [pytest.approx(recorded, abs=1e-4)]


@pytest.fixture(scope="module")
def refreshed(testbed: Path, sail: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round of four steps, each on samples of its own policy."""
    return run(sail, one_round(testbed, steps_per_generation=1), tmp_path_factory.mktemp("refreshed") / "run")


@pytest.fixture(scope="module")
def ordinary(testbed: Path, sail: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same round, all samples drawn before its first step."""
    return run(sail, one_round(testbed), tmp_path_factory.mktemp("ordinary") / "run")


def test_a_single_refresh_is_the_ordinary_round_bit_for_bit(
    ordinary: Path, testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    at_once = run(sail, one_round(testbed, steps_per_generation=4), tmp_path / "run")
    assert weights(at_once) == weights(ordinary)


def test_a_sampler_sees_neither_an_adapters_dropout_nor_autocast(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    settings = one_round(testbed, lora={"r": 4, "dropout": 0.1})
    in_bf16 = settings | {"update": settings["update"] | {"bf16": True}}
    outs = [run(sail, in_bf16 | {"steps_per_generation": k}, tmp_path / str(k) / "run") for k in (None, 4)]
    adapters = [load_run(out).round(0).checkpoint / "adapter_model.safetensors" for out in outs]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert_each_segment_is_its_own_policys(run(sail, settings | {"steps_per_generation": 2}, tmp_path / "2" / "run"))


def test_every_step_learns_from_samples_of_its_own_policy(refreshed: Path, ordinary: Path) -> None:
    runs = (ordinary, refreshed)
    stale, fresh = ([line for line in load_run(out).metrics() if line["kind"] == "step"] for out in runs)
    assert [line["sail/importance_ess"] for line in fresh] == pytest.approx([1.0] * 4, abs=1e-9)
    assert min(line["sail/importance_ess"] for line in stale[1:]) < 1 - 1e-4
    assert weights(refreshed) != weights(ordinary)
    assert_each_segment_is_its_own_policys(refreshed)


def test_the_segments_are_gathered_into_what_a_round_leaves(refreshed: Path, sail: Zygote, tmp_path: Path) -> None:
    last, store = load_run(refreshed).round(0), committed(store_of(refreshed))
    samples, pairs = (store[linked(refreshed)[f"rounds/000/{kind}/online"]] for kind in ("samples", "pairs"))
    groups = samples.read(SampleGroup, "groups")
    versions = [sample.policy_version for group in groups for sample in group.samples]
    assert len(groups) == 16 and len(dict.fromkeys(versions)) == 4, "four prompts a step"
    assert samples.result()["samples"] == 32 and samples.result()["tokens"] == sum(
        len(sample.token_ids) for group in groups for sample in group.samples
    )
    assert len(last.pairs("online")) == pairs.result()["labels/pairs"] == len(pairs.read(PreferencePair, "pairs"))
    told = sail.run("show", refreshed, pairs.read(PreferencePair, "pairs")[-1].pair_id, cwd=tmp_path)
    assert told.returncode == 0 and f"policy {versions[-1]}" in told.out
    assert sail.run("verify", refreshed, cwd=tmp_path).returncode == 0


KILLED = (
    "os.rename .*/segments/00001/.*groups-00000.parquet",  # sampling
    "os.rename .*/segments/00001/pairs-.*.partial",  # labelled, not committed
    "open .*/scratch/tmp/position.json w",  # a step checkpoint, half written
    "os.rename .*/segments/00003/.*segment.json",  # two segments after the last step checkpoint
    "open .*.partial/model/config.json w",  # the final weights, half written
)


def test_a_round_killed_between_its_refreshes_ends_byte_identical(
    refreshed: Path, testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    settings = one_round(testbed, steps_per_generation=1)
    settings["update"] |= {"save_steps": 2}
    config, out = write_config(tmp_path / "c.yaml", settings), tmp_path / "killed" / "run"
    [checkpoint] = [artifact for artifact in planned(config, [], out) if artifact.stage == "checkpoint"]
    segments = checkpoint.path.with_name(f"{checkpoint.id}.partial") / "segments"
    for pattern in KILLED:
        whole = {folder: stamps(folder) for folder in segments.glob("*") if (folder / "segment.json").exists()}
        done = sail.run("run", config, "--out", out, cwd=tmp_path, at=kill_at(pattern))
        assert done.returncode == -signal.SIGKILL, f"{pattern}: {done.out[-1000:]} {done.err[-2000:]}"
        assert all(stamps(folder) == was for folder, was in whole.items()), f"{pattern}: a segment was written again"
    assert len(list(segments.glob("*/segment.json"))) == 4
    done = sail.run("run", config, "--out", out, cwd=tmp_path)
    assert done.returncode == 0 and "resuming at step 2" in done.out, done.err
    assert digests(store_of(out)) == digests(store_of(refreshed))
    assert (out / "metrics.jsonl").read_bytes() == (refreshed / "metrics.jsonl").read_bytes()


_CURES = {
    "no route that samples": ({"routes": {"online": {"share": 0}}}, "no route samples from the policy"),
    "epochs": ({"update": {"steps": None}}, "Set update.steps"),
    "too few prompts": ({"prompts": {"per_round": 3}}, "Give it 4 or more"),
    "earlier rounds": ({"round": {"data": "all"}}, "Set it to new"),
    "several processes": ({"launch": {"num_processes": 2}}, "Leave launch out"),
    "merged adapters": (
        {"lora": {"r": 4}, "vllm": {"lora": "merge"}, "generation": {"engine": "vllm"}}, "Set it to load"
    ),
    "whole weights to another machine": (
        {"generation": {"engine": "vllm"}, "vllm": {"mode": "external", "server_urls": ["http://10.0.0.5:8000"]}},
        "Train a LoRA adapter",
    ),
    "samples of the reference": ({"routes": {"online": {"responses": ["policy", "reference"]}}}, "responses: policy"),
    "an audit": ({"routes": {"online": {"labels": {"by": "rm", "audit": ["gold"]}}}}, "Leave it out"),
    "an ensemble": (
        {"labelers": {"both": {"kind": "ensemble", "of": ["rm", "gold"]}}, "routes": {"online": {"labels": "both"}}},
        "reward_model, callable, rule",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _CURES)
def test_what_cannot_be_refreshed_is_refused_with_a_cure(name: str, testbed: Path) -> None:
    from loops.checks import check_run
    from loops.config import resolve
    from loops.documents import merge
    from sail.core.errors import UserError

    change, cure = _CURES[name]
    good = one_round(testbed, steps_per_generation=1)
    assert check_run(resolve(good), ["vllm", "transformers"]) is not None
    with pytest.raises(UserError, match="steps_per_generation") as refused:
        check_run(resolve(merge(good, change)), ["vllm", "transformers"])
    assert cure in str(refused.value)


def test_fresh_samples_are_not_called_stale(testbed: Path) -> None:
    from loops.checks import check_run
    from loops.config import resolve

    settings = one_round(testbed, importance_sampling={"mode": "none"})
    warned = {k: check_run(resolve(settings | {"steps_per_generation": k}), ["transformers"]) for k in (1, 2)}
    assert not [line for line in warned[1] if "stale" in line] and [line for line in warned[2] if "stale" in line]


def test_the_manifest_counts_the_refreshes(refreshed: Path) -> None:
    result = json.loads((refreshed / "rounds/000/checkpoint/manifest.json").read_text())["result"]
    assert result["refreshes"] == 4 and result["rows/offline"] == 48 and "rows/online" not in result
