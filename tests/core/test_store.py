"""The store builds once, commits whole, resumes parts, and keeps keys apart exactly where results can differ."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from sail.core.artifacts import MANIFEST, Leaf, leaf
from sail.core.errors import UserError
from sail.core.records import ResponseLogps
from sail.core.store import Recipe, StageEvent, Store, Workspace
from tests.loops.zygote import SignalAt

ROWS = [ResponseLogps("a", -1.5, 3), ResponseLogps("b", -2.25, 4)]


def recipe(**settings: Any) -> Recipe:
    return Recipe("logps", 1, {"bf16": False, **settings}, {})


def write_rows(workspace: Workspace) -> dict[str, int]:
    workspace.write("logps", ROWS, ResponseLogps)
    return {"rows": len(ROWS)}


def test_an_artifact_is_built_once_and_then_reused(tmp_path: Path) -> None:
    events: list[StageEvent] = []
    store = Store(tmp_path, events.append)
    first = store.build(recipe(), write_rows)
    again = store.build(recipe(), lambda workspace: pytest.fail("built twice"))
    assert again == first
    assert first.read(ResponseLogps, "logps") == ROWS
    assert first.result() == {"rows": 2}
    assert [event.kind for event in events] == ["started", "built", "reused"]


def test_the_key_follows_stage_version_settings_and_inputs() -> None:
    keys = {
        recipe().key,
        recipe(bf16=True).key,
        Recipe("logps", 2, {"bf16": False}, {}).key,
        Recipe("other", 1, {"bf16": False}, {}).key,
        Recipe("logps", 1, {"bf16": False}, {"responses": Leaf(Path("x"), "k1")}).key,
        Recipe("logps", 1, {"bf16": False}, {"responses": Leaf(Path("x"), "k2")}).key,
    }
    assert len(keys) == 6
    moved = Recipe("logps", 1, {"bf16": False}, {"responses": Leaf(Path("elsewhere"), "k1")})
    assert moved.key in keys  # the content of an input counts, not where it lies


def test_a_failed_build_keeps_its_parts_and_leaves_no_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail_after_a_shard(workspace: Workspace) -> dict[str, int]:
        workspace.write("logps-00000", ROWS, ResponseLogps)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.build(recipe(), fail_after_a_shard)
    assert not store.artifact("logps", recipe().key).committed

    def finish(workspace: Workspace) -> dict[str, int]:
        assert workspace.read("logps-00000", ResponseLogps) == ROWS
        workspace.write("logps-00001", ROWS, ResponseLogps)
        return {}

    artifact = store.build(recipe(), finish)
    assert artifact.read(ResponseLogps, "logps") == [*ROWS, *ROWS]


def test_scratch_and_temporary_files_are_gone_after_the_commit(tmp_path: Path) -> None:
    def run(workspace: Workspace) -> dict[str, int]:
        (workspace.scratch / "step").write_text("x")
        (workspace.path / ".shard.parquet.tmp").write_text("half")
        return write_rows(workspace)

    artifact = Store(tmp_path).build(recipe(), run)
    assert sorted(path.name for path in artifact.path.iterdir()) == ["logps.parquet", MANIFEST]


def train_and_die(root: Path, at: str) -> None:
    def run(workspace: Workspace) -> dict[str, int]:
        (workspace.scratch / "step-1").mkdir()
        (workspace.scratch / "step-1" / "weights").write_text("trained")
        return write_rows(workspace)

    sys.addaudithook(SignalAt(at, signal.SIGKILL))
    Store(root).build(recipe(), run)


@pytest.mark.parametrize(
    ("at", "again"),
    [
        ("open .*/logps.parquet r", True),  # flushing or hashing: minutes where models are large
        ("os.rename .*/.manifest.json.tmp", True),
        ("os.remove weights", False),
        ("os.rename .*.partial .*", False),
    ],
)
def test_a_commit_that_is_killed_goes_on_and_loses_no_step_checkpoint(at: str, again: bool, tmp_path: Path) -> None:
    whole = Store(tmp_path / "whole").build(recipe(), write_rows)
    process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=(tmp_path, at))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    found = []

    def go_on(workspace: Workspace) -> dict[str, int]:
        found.append((workspace.scratch / "step-1" / "weights").read_text())
        return write_rows(workspace)

    artifact = Store(tmp_path).build(recipe(), go_on)
    assert found == (["trained"] if again else [])  # or all is there but the rename
    assert {path.name: path.read_bytes() for path in artifact.path.iterdir()} == {
        path.name: path.read_bytes() for path in whole.path.iterdir()
    }


def test_half_a_copy_of_a_folder_about_to_be_committed_is_not_taken_for_whole(tmp_path: Path) -> None:
    whole = Store(tmp_path / "whole").build(recipe(), write_rows)
    partial = shutil.copytree(whole.path, tmp_path / f"{whole.id}.partial")
    os.truncate(partial / "logps.parquet", 100)
    assert Store(tmp_path).build(recipe(), write_rows).damaged_files() == []


def test_the_manifest_hashes_every_file_and_holds_no_clock(tmp_path: Path) -> None:
    one = Store(tmp_path / "one").build(recipe(), write_rows)
    two = Store(tmp_path / "two").build(recipe(), write_rows)
    assert (one.path / MANIFEST).read_bytes() == (two.path / MANIFEST).read_bytes()
    assert one.damaged_files() == []
    (one.path / "logps.parquet").write_bytes(b"damaged")
    assert one.damaged_files() == ["logps.parquet"]


def test_a_folder_that_lost_its_manifest_is_set_aside_and_made_anew(tmp_path: Path) -> None:
    events: list[StageEvent] = []
    store = Store(tmp_path, events.append)
    for _ in range(2):  # what was set aside before gives way
        (store.build(recipe(), write_rows).path / MANIFEST).unlink()
    again = store.build(recipe(), write_rows)
    assert again.committed and again.damaged_files() == []
    assert (tmp_path / f"{again.id}.pruned" / "logps.parquet").exists()
    assert [event.text for event in events if "no manifest" in event.text]


def hold_lock(root: Path, started: Any, release: Any) -> None:
    def run(workspace: Workspace) -> dict[str, int]:
        started.set()
        release.wait(30)
        return {}

    Store(root).build(recipe(), run)


def test_a_second_process_at_the_same_artifact_is_told_so(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started, release = context.Event(), context.Event()
    process = context.Process(target=hold_lock, args=(tmp_path, started, release))
    process.start()
    assert started.wait(60)
    with pytest.raises(UserError, match="another process is building"):
        Store(tmp_path).build(recipe(), write_rows)
    release.set()
    process.join(30)
    assert Store(tmp_path).artifact("logps", recipe().key).committed


def test_a_leaf_is_known_by_its_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.jsonl").write_text("{}")
    assert leaf(tmp_path / "one").key == leaf(tmp_path / "two").key
    before = leaf(tmp_path / "one").key
    (tmp_path / "one" / "data.jsonl").write_text("[]")
    os.utime(tmp_path / "one" / "data.jsonl", ns=(1, 1))
    assert leaf(tmp_path / "one").key != before


def test_a_missing_leaf_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.prefs\.path: no such file or folder"):
        leaf(tmp_path / "nothing", "data.prefs.path")


def test_the_recipe_stands_in_the_manifest(tmp_path: Path) -> None:
    artifact = Store(tmp_path).build(recipe(bf16=True), write_rows)
    manifest = json.loads((artifact.path / MANIFEST).read_text())
    assert (manifest["stage"], manifest["key"], manifest["recipe"]) == ("logps", artifact.key, {"bf16": True})
