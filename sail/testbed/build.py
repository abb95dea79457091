"""Building a testbed folder once: whole or not at all, and not again while it is current."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sail.core.atomic import file_sha256, sync_folder, sync_tree, tree_files, write_json
from sail.core.errors import UserError
from sail.testbed.settings import BuildSettings

RECIPE = "recipe.json"
RECIPE_VERSION = 1  # bump when the code changes what equal settings give
CONTENTS = {"sft", "prompts.jsonl", "prefs.jsonl", "prefs_heldout.jsonl", "sft.jsonl", "README.md", RECIPE}


def build_testbed(out: Path, settings: BuildSettings, say: Callable[[str], None] = print) -> bool:
    """Make `out` the testbed of these settings; False when it already is.

    It is built in a folder beside `out` and renamed into place, so a kill leaves `out` as it was. One build of `out`
    runs at a time. A testbed of other settings, or a damaged one, is replaced; UserError where `out` holds anything
    that is no part of a testbed.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out.with_name(f".{out.name}.lock")):
        if is_current(out, settings):
            return False
        _refuse_strangers(out)
        building = out.with_name(f".{out.name}.building")
        _remove(building)
        building.mkdir()
        # Imported here because torch and transformers cost seconds, and a current testbed needs neither.
        from sail.testbed.contents import write_contents

        write_contents(building, settings, say)
        write_json(building / RECIPE, _recipe(settings) | {"files": _digests(building)})
        sync_tree(building)
        _remove(out)
        os.rename(building, out)
        sync_folder(out.parent)
    return True


def is_current(out: Path, settings: BuildSettings) -> bool:
    """`out` was built from these settings by this version, and every file is as it was written."""
    recipe = _recipe(settings) | {"files": _digests(out)}
    return _read_recipe(out / RECIPE) == recipe


def _read_recipe(path: Path) -> Any:
    """None where there is none, or a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        return None


def _recipe(settings: BuildSettings) -> dict[str, Any]:
    return {"version": RECIPE_VERSION, "settings": settings.recipe()}


def _digests(folder: Path) -> dict[str, str]:
    paths = [path for path in tree_files(folder) if path.relative_to(folder).parts[0] in CONTENTS - {RECIPE}]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}


def _refuse_strangers(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError("is a file, a folder was expected", where=str(out), cure="Name another folder")
    strangers = sorted({path.name for path in out.glob("*")} - CONTENTS)
    if strangers:
        raise UserError(
            f"holds {', '.join(strangers[:3])}, which is no part of a testbed, and would be replaced",
            where=str(out),
            cure="Name a new folder, or move these files away",
        )


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held until the end of the block, or of the process; a second builder waits."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
