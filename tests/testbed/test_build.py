"""Whole or not at all, the same bytes for the same settings, and not twice."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sail.core.atomic import tree_files
from sail.core.errors import UserError
from sail.testbed.build import CONTENTS, build_testbed, is_current
from sail.testbed.settings import BuildSettings


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in tree_files(folder)}


def quiet(_: str) -> None:
    """Builds in tests say nothing."""


def test_equal_settings_give_equal_bytes_and_another_seed_gives_others(tmp_path: Path, tiny: BuildSettings):
    for name, settings in (("a", tiny), ("b", tiny), ("other", tiny.replace(seed=1))):
        assert build_testbed(tmp_path / name, settings, quiet)
    a, b, other = (contents(tmp_path / name) for name in ("a", "b", "other"))
    assert a == b
    assert {path.split("/")[0] for path in a} == CONTENTS
    differing = {"sft/model.safetensors", "prompts.jsonl", "prefs.jsonl", "prefs_heldout.jsonl", "sft.jsonl"}
    assert all(a[path] != other[path] for path in differing)


def test_neither_reward_nor_number_of_labels_changes_the_policy(tmp_path: Path, tiny: BuildSettings):
    weights = set()
    for index, settings in enumerate((tiny, tiny.replace(reward="linear"), tiny.replace(num_labels=9))):
        build_testbed(tmp_path / str(index), settings, quiet)
        weights.add((tmp_path / str(index) / "sft/model.safetensors").read_bytes())
    assert len(weights) == 1


def test_a_current_testbed_is_left_alone(tmp_path: Path, tiny: BuildSettings):
    out = tmp_path / "bed"
    assert build_testbed(out, tiny, quiet)
    stamps = {path: path.stat().st_mtime_ns for path in tree_files(out)}
    assert not build_testbed(out, tiny, quiet)
    assert {path: path.stat().st_mtime_ns for path in tree_files(out)} == stamps


def test_other_settings_and_damaged_files_are_built_again(tmp_path: Path, tiny: BuildSettings):
    out = tmp_path / "bed"
    build_testbed(out, tiny, quiet)
    whole = contents(out)
    (out / "prefs.jsonl").write_text("{}\n", encoding="utf-8")
    assert build_testbed(out, tiny, quiet)
    assert contents(out) == whole
    (out / "recipe.json").write_text("{", encoding="utf-8")
    assert build_testbed(out, tiny, quiet)
    assert contents(out) == whole
    assert build_testbed(out, tiny.replace(seed=1), quiet)
    assert contents(out) != whole


def test_a_killed_build_leaves_nothing_and_the_next_one_is_whole(tmp_path: Path, tiny: BuildSettings):
    out, building = tmp_path / "bed", tmp_path / ".bed.building"
    build = subprocess.Popen([sys.executable, "-m", "sail.testbed", str(out)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (building / "sft").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    build.send_signal(signal.SIGKILL)
    build.wait()
    assert building.exists()
    assert not out.exists()
    assert build_testbed(out, tiny, quiet)
    assert is_current(out, tiny)
    assert not building.exists()


def test_a_half_written_folder_is_replaced(tmp_path: Path, tiny: BuildSettings):
    (tmp_path / "bed/sft").mkdir(parents=True)
    (tmp_path / "bed/prefs.jsonl").write_text("", encoding="utf-8")
    assert build_testbed(tmp_path / "bed", tiny, quiet)
    assert is_current(tmp_path / "bed", tiny)


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path: Path, tiny: BuildSettings):
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        build_testbed(tmp_path, tiny, quiet)
    assert (tmp_path / "thesis.tex").read_text(encoding="utf-8") == "years of work"


def test_the_second_call_of_the_command_is_quick_and_needs_no_torch(testbed: Path):
    code = (
        "import sys; from pathlib import Path; from sail.testbed.build import build_testbed; "
        "from sail.testbed.settings import BuildSettings; "
        f"built = build_testbed(Path({str(testbed)!r}), BuildSettings()); "
        "sys.exit(built or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    command = [sys.executable, "-m", "sail.testbed", str(testbed)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"{testbed} is all there, nothing to do\n"


def test_a_wrong_setting_is_told_in_one_line(tmp_path: Path):
    command = [sys.executable, "-m", "sail.testbed", str(tmp_path / "bed"), "--num-labels", "5000"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "num_labels" in done.stderr
    assert "4380" in done.stderr
    assert done.stderr.count("\n") == 1
