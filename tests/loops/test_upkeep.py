"""`sail verify` finds every changed byte; `sail prune` removes what no run needs, and nothing else."""

import fcntl
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.loops.running import (
    NO_EVALUATION,
    Zygote,
    committed,
    copied,
    digests,
    kill_at,
    linked,
    planned,
    small_config,
    stamps,
    store_of,
    write_config,
)


@pytest.fixture(scope="module")
def config(testbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = small_config(testbed, num_rounds=1, evaluation=NO_EVALUATION)
    return write_config(tmp_path_factory.mktemp("config") / "small.yaml", settings)


@pytest.fixture(scope="module")
def finished(config: Path, sail: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upkeep")
    assert sail.run("run", config, cwd=folder).returncode == 0
    return folder / "runs"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, in an output root of its own."""
    return copied(finished, tmp_path / "runs") / "small"


# ---- verify ----------------------------------------------------------------------------------------------------------


def test_an_untouched_run_verifies(out: Path, sail: Zygote) -> None:
    done = sail.run("verify", out, cwd=out)
    assert done.returncode == 0
    assert f"{len(committed(store_of(out)))} artifacts verified, 0 damaged" in done.out


@pytest.mark.parametrize("harm", ["one byte", "gone"])
def test_one_changed_byte_or_a_missing_file_is_found_and_mended_by_the_same_command(
    harm: str, config: Path, out: Path, sail: Zygote
) -> None:
    whole = digests(store_of(out))
    checkpoint = committed(store_of(out))[linked(out)["rounds/000/checkpoint"]]
    weights = checkpoint.path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.unlink() if harm == "gone" else weights.write_bytes(content)
    done = sail.run("verify", out, cwd=out)
    assert done.returncode == 1
    assert f"damaged: {checkpoint.id}: model/model.safetensors" in done.out
    shutil.rmtree(checkpoint.path)
    after = sail.run("verify", out, cwd=out)
    assert after.returncode == 1 and f"missing: {checkpoint.id}" in after.out and "1 missing" in after.out
    assert sail.run("run", config, "--out", out, cwd=out).returncode == 0
    assert digests(store_of(out)) == whole


def test_what_no_link_shows_is_verified_too(out: Path, sail: Zygote) -> None:
    """The reference's log-probs stand behind the update, in no round's folder."""
    shown = set(linked(out).values())
    hidden = next(one for one in committed(store_of(out)).values() if one.stage == "logps" and one.id not in shown)
    (hidden.path / "logps.parquet").write_bytes(b"")
    assert sail.run("verify", out, cwd=out).returncode == 1


def test_what_was_made_and_is_gone_is_missing_what_never_was_is_not(out: Path, sail: Zygote) -> None:
    """An alarm ends a run before it has made all it planned."""
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps(plan | {"artifacts": [*plan["artifacts"], "checkpoint-0123"]}))
    stopped = sail.run("verify", out, cwd=out)
    assert stopped.returncode == 0 and "0 damaged, 1 not made yet" in stopped.out
    (out / "plan.json").write_text(json.dumps(plan))
    shown = set(linked(out).values())
    hidden = next(one for one in committed(store_of(out)).values() if one.stage == "logps" and one.id not in shown)
    shutil.rmtree(hidden.path)
    done = sail.run("verify", out, cwd=out)
    assert done.returncode == 1 and f"missing: {hidden.id}" in done.out


def test_a_manifest_that_cannot_be_read_is_damage(out: Path, sail: Zygote) -> None:
    checkpoint = committed(store_of(out))[linked(out)["rounds/000/checkpoint"]]
    os.truncate(checkpoint.path / "manifest.json", 100)
    done = sail.run("verify", out, cwd=out)
    assert done.returncode == 1 and f"damaged: {checkpoint.id}: manifest.json" in done.out
    before = stamps(store_of(out))
    for command in (["prune", out.parent], ["show", out, checkpoint.id]):
        refused = sail.run(*command, cwd=out)
        assert refused.returncode == 2 and f"manifest of {checkpoint.id} cannot be read" in refused.error
    assert stamps(store_of(out)) == before


def test_a_run_that_was_copied_without_its_store_is_told_so(out: Path, sail: Zygote, tmp_path: Path) -> None:
    alone, id = copied(out, tmp_path / "elsewhere" / "small"), linked(out)["rounds/000/checkpoint"]
    for command in (["status", alone], ["report", alone], ["show", alone, id]):
        refused = sail.run(*command, cwd=tmp_path)
        assert refused.returncode == 2 and "of its artifacts are not in" in refused.error
    done = sail.run("verify", alone, cwd=tmp_path)
    assert done.returncode == 1 and f"missing: {id}" in done.out and "0 artifacts verified" in done.out


def test_a_folder_that_is_no_run_is_refused(out: Path, sail: Zygote) -> None:
    assert "is no run" in sail.run("verify", out / "logs", cwd=out).error


# ---- prune -----------------------------------------------------------------------------------------------------------


def test_nothing_that_a_run_needs_is_pruned(out: Path, config: Path, sail: Zygote) -> None:
    before = stamps(store_of(out))
    done = sail.run("prune", out.parent, cwd=out)
    assert done.returncode == 0 and "0 removed" in done.out
    assert stamps(store_of(out)) == before


def test_a_run_that_is_gone_leaves_nothing_but_what_others_share(out: Path, config: Path, sail: Zygote) -> None:
    first = set(committed(store_of(out)))
    assert sail.run("run", config, "loss.beta=0.4", "--out", out.parent / "other", cwd=out).returncode == 0
    second = {artifact.id for artifact in planned(config, ["loss.beta=0.4"], out.parent / "other")}
    assert first & second and first - second and second - first
    shutil.rmtree(out)

    dry = sail.run("prune", out.parent, "--dry", cwd=out.parent)
    assert dry.returncode == 0 and set(committed(store_of(out))) == first | second
    assert {line.split()[2] for line in dry.out.splitlines() if line.startswith("would go")} == first - second

    assert sail.run("prune", out.parent, cwd=out.parent).returncode == 0
    assert set(committed(store_of(out))) == second
    assert sail.run("verify", out.parent / "other", cwd=out.parent).returncode == 0


def test_a_killed_run_keeps_its_half_built_work(testbed: Path, config: Path, sail: Zygote, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "small"
    (samples,) = [artifact for artifact in planned(config, [], out) if artifact.stage == "samples"]
    at = kill_at(f"os.rename .*/{samples.id}.partial/.*groups-00001.parquet")
    assert sail.run("run", config, cwd=tmp_path, at=at).returncode == -signal.SIGKILL
    verified = sail.run("verify", out, cwd=tmp_path)
    assert verified.returncode == 0 and "not made yet" in verified.out and "missing" not in verified.out
    stray = store_of(out) / "samples-0123.partial"
    stray.mkdir()
    before = stamps(store_of(out))
    assert sail.run("prune", cwd=tmp_path).returncode == 0
    assert stamps(store_of(out)) == before and not stray.exists()
    assert "reusing 8 samples" in sail.run("run", config, cwd=tmp_path).out


def test_a_prune_that_is_killed_leaves_whole_artifacts_or_none(out: Path, sail: Zygote) -> None:
    shutil.rmtree(out)
    at = kill_at("os.remove", nth=2)
    assert sail.run("prune", out.parent, cwd=out.parent, at=at).returncode == -signal.SIGKILL
    assert not [id for id, artifact in committed(store_of(out)).items() if artifact.damaged_files()]
    assert sail.run("prune", out.parent, cwd=out.parent).returncode == 0
    assert [path.name for path in store_of(out).iterdir()] == ["locks"]


def test_what_another_process_builds_stays(out: Path, sail: Zygote) -> None:
    stray = store_of(out) / "samples-0123.partial"
    stray.mkdir()
    with (store_of(out) / "locks" / "samples-0123.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = sail.run("prune", out.parent, cwd=out)
        assert "in use: samples-0123.partial" in done.out and stray.exists()
    sail.run("prune", out.parent, cwd=out)
    assert not stray.exists()


def test_a_root_without_a_store_is_refused(sail: Zygote, tmp_path: Path) -> None:
    refused = sail.run("prune", tmp_path, cwd=tmp_path)
    assert refused.returncode == 2 and "has no store" in refused.error


# ---- one folder, one config ------------------------------------------------------------------------------------------


def test_two_configs_of_one_name_do_not_take_turns_in_a_folder(config: Path, finished: Path, sail: Zygote) -> None:
    work = finished.parent
    (work / "elsewhere").mkdir()
    twin = Path(shutil.copy(config, work / "elsewhere" / "small.yaml"))
    for command in ("run", "plan"):
        refused = sail.run(command, twin, cwd=work)
        assert refused.returncode == 2
        assert f"belongs to '{config}', not to '{twin}'" in refused.error and "--out" in refused.error
    assert sail.run("run", twin, "--out", work / "runs" / "twin", cwd=work).returncode == 0
    assert sail.run("run", config, cwd=work).returncode == 0, "its own config is not refused"


def test_a_config_that_has_moved_keeps_its_folder(config: Path, sail: Zygote, tmp_path: Path) -> None:
    here = Path(shutil.copy(config, tmp_path / "small.yaml"))
    assert sail.run("run", here, cwd=tmp_path).returncode == 0
    (tmp_path / "configs").mkdir()
    os.rename(here, tmp_path / "configs" / "small.yaml")
    again = sail.run("run", tmp_path / "configs" / "small.yaml", cwd=tmp_path)
    assert again.returncode == 0 and "nothing to do" in again.out
