"""A run's folder shows its last form and nothing of earlier ones, and leaves alone what a user keeps in it."""

from pathlib import Path

import pytest

from loops.config import resolve
from loops.iterate import START, RoundRecord
from loops.run_folder import RunFolder
from sail.core.run_settings import RunSettings
from sail.core.store import Recipe, Store
from tests.loops.running import linked, small_config


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "small")


@pytest.fixture(scope="module")
def settings() -> RunSettings:
    return resolve(small_config(Path("testbed")))


def record(folder: RunFolder, round_index: int, *names: str) -> RoundRecord:
    """A round with committed artifacts of these names."""
    store = Store(folder.store_root)
    recipes = {name: Recipe(name.partition("/")[0], 1, {"name": name, "round": round_index}, {}) for name in names}
    made = {name: store.build(recipe, lambda workspace: {}) for name, recipe in recipes.items()}
    return RoundRecord(round_index, "main", made)


def test_what_an_earlier_form_of_the_run_linked_goes(folder: RunFolder, settings: RunSettings) -> None:
    """A route was renamed, one is gone, the round is no longer evaluated, and there is one round less."""
    before = [
        record(folder, START, "evaluation"),
        record(folder, 0, "pairs/online", "pairs/offline", "scores/online", "evaluation"),
        record(folder, 1, "pairs/online"),
    ]
    folder.write_records(before, settings, finished=True)
    after = [record(folder, 0, "pairs/mine", "pairs/offline")]

    folder.write_records(after, settings, finished=False)
    of_round_0 = {"rounds/000/pairs/mine", "rounds/000/pairs/offline"}
    assert set(linked(folder.path)) == of_round_0 | {"rounds/start/evaluation", "rounds/001/pairs/online"}
    folder.write_records(after, settings, finished=True)
    assert set(linked(folder.path)) == of_round_0
    assert {path.name for path in folder.path.glob("rounds/**/*")} == {"000", "pairs", "mine", "offline"}


def test_what_a_user_keeps_among_the_rounds_stays(folder: RunFolder, settings: RunSettings, tmp_path: Path) -> None:
    rounds = folder.path / "rounds"
    (rounds / "analysis").mkdir(parents=True)
    (rounds / "001").mkdir()
    (rounds / "analysis" / "link").symlink_to(tmp_path / "runs" / ".store" / "samples-0")
    (rounds / "001" / "mine").symlink_to(tmp_path)
    kept = [rounds / ".DS_Store", rounds / "analysis" / "plot.svg", rounds / "001" / "notes.txt"]
    for path in kept:
        path.write_text("mine")
    folder.write_records([record(folder, 0, "pairs/online"), record(folder, 1, "scores/x")], settings, finished=True)
    folder.write_records([record(folder, 0, "pairs/online")], settings, finished=True)
    assert all(path.read_text() == "mine" for path in kept)
    assert set(linked(folder.path)) == {"rounds/000/pairs/online", "rounds/001/mine", "rounds/analysis/link"}


def test_attempts_are_numbered_on_whatever_was_removed(folder: RunFolder) -> None:
    first, _ = folder.new_attempt(), folder.new_attempt()
    first.rmdir()
    assert folder.new_attempt().name == "attempt-3"
