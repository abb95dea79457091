"""Looking after a store: `sail verify` (are the bytes those that were written?), `sail prune` (what nobody needs)."""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from loops.estimates import size
from loops.run_folder import ABLATION, PLAN, RECORD, STORE, RunFolder
from sail.core.artifacts import Artifact
from sail.core.atomic import sync_folder, tree_files
from sail.core.errors import UserError
from sail.core.store import GOING, PARTIAL, Store


def verify_run(path: Path, console: Console) -> bool:
    """Hash every file of every artifact the run has or will have; False if one differs or is gone that was made."""
    runs = list(_runs_in(path))
    if not runs:
        raise UserError(f"{str(path)!r} is no run", where="sail verify", cure="Give a folder such as runs/quickstart")
    store = Store(runs[0].store_root)
    promised = {id for run in runs for id in run.promised()}
    needed = promised | {id for run in runs for id in wanted(run, store)}
    there = [artifact for id in sorted(needed) if (artifact := _artifact(store, id)).committed]
    absent = needed - {artifact.id for artifact in there}
    damaged = {artifact.id: files for artifact in there if (files := artifact.damaged_files())}
    missing = sorted(absent & promised)
    for id, files in damaged.items():
        console.print(f"damaged: {id}: {', '.join(files)}", soft_wrap=True, highlight=False)
    for id in missing:
        console.print(f"missing: {id}", soft_wrap=True, highlight=False)
    others = {"missing": len(missing), "not made yet": len(absent) - len(missing)}
    told = "".join(f", {count} {what}" for what, count in others.items() if count)
    console.print(f"{len(there)} artifacts verified, {len(damaged)} damaged{told}", highlight=False)
    if damaged:
        console.print(f"Remove what is damaged from {store.root}: the same command makes it anew", soft_wrap=True)
    if missing:
        console.print(f"Not in {store.root}: the same command makes what is missing anew", soft_wrap=True)
    return not damaged and not missing


def prune_root(root: Path, console: Console, *, dry: bool) -> None:
    """Remove what no run of the root links or plans; artifacts that a process is building stay."""
    store = Store(root / STORE)
    if not store.root.is_dir():
        raise UserError(f"{str(root)!r} has no store", where="sail prune", cure="Give an output root, such as runs")
    runs = [run for folder in sorted(root.iterdir()) if folder.is_dir() for run in _runs_in(folder)]
    kept = {id for run in runs for id in wanted(run, store)}
    _refuse_unreadable(kept, store)
    count, freed = 0, 0
    for folder in _entries(store):
        if folder.name.removesuffix(PARTIAL) in kept:
            continue
        taken = sum(file.stat().st_size for file in tree_files(folder))
        if dry:
            console.print(f"would go: {folder.name} ({size(taken)})", highlight=False)
        elif not _removed(folder, store):
            console.print(f"in use: {folder.name}", highlight=False)
            continue
        count, freed = count + 1, freed + taken
    told = "would be removed" if dry else "removed"
    console.print(f"{len(runs)} runs need {len(kept)} artifacts; {count} {told}, {size(freed)}", highlight=False)


def wanted(run: RunFolder, store: Store) -> set[str]:
    """What the run plans, what its rounds link, and all that the linked were made from."""
    links = [path for path in (run.path / "rounds").rglob("*") if path.is_symlink()]
    return set(run.planned()) | _with_inputs({Path(os.readlink(link)).name for link in links}, store)


def _with_inputs(ids: Iterable[str], store: Store) -> set[str]:
    found: set[str] = set()
    open_ids = list(ids)
    while open_ids:
        artifact = _artifact(store, open_ids.pop())
        if artifact.id not in found and artifact.committed:
            found.add(artifact.id)
            open_ids += _inputs(artifact)
    return found


def _inputs(artifact: Artifact) -> list[str]:
    try:
        return list(artifact.manifest()["inputs"].values())
    except UserError:  # it cannot be read: `sail verify` says so, `sail prune` stops there
        return []


def _refuse_unreadable(kept: Iterable[str], store: Store) -> None:
    """What was an artifact made from, that its manifest does not tell?"""
    for id in sorted(kept):
        artifact = _artifact(store, id)
        if artifact.committed:
            artifact.manifest()


def _runs_in(folder: Path) -> Iterator[RunFolder]:
    """The run itself, or the runs of an ablation."""
    if (folder / ABLATION).exists():
        for inner in sorted(folder.iterdir()):
            yield from _runs_in(inner)
    elif (folder / PLAN).exists() or (folder / RECORD).exists():
        yield RunFolder(folder)


def _entries(store: Store) -> list[Path]:
    """Artifacts, whole, half built or half removed."""
    return sorted(path for path in store.root.iterdir() if path.is_dir() and path.name != "locks")


def _removed(folder: Path, store: Store) -> bool:
    """Gone at once or not at all: renamed first, so that a kill leaves no artifact with half its files."""
    id = folder.name.removesuffix(PARTIAL).removesuffix(GOING)
    with store.locked(id) as free:
        if not free:
            return False
        going = folder.with_name(f"{id}{GOING}")
        if going != folder:
            shutil.rmtree(going, ignore_errors=True)
            os.rename(folder, going)
            sync_folder(store.root)
        shutil.rmtree(going)
    return True


def _artifact(store: Store, id: str) -> Artifact:
    stage, _, key = id.rpartition("-")
    return store.artifact(stage, key)
