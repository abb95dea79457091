"""The study of every method leaves none out, and its page shows what it ran."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loops.ablation import load_ablation
from loops.documents import preset_names, read_document
from sail.core.artifacts import leaf
from sail.policy.autoencoder import SaeSource, load_sae

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "ablations"


def shown(name: str) -> list[str]:
    """The arms of the first table of that part of docs/results.md."""
    part = (ROOT / "docs" / "results.md").read_text().partition(f"<!-- {name}: written by")[2]
    table = part.partition("| Arm |")[2].partition("\n\n")[0]
    return re.findall(r"^\| (\w[\w.-]*) \|", table, re.MULTILINE)


def test_every_preset_is_an_arm() -> None:
    runs = load_ablation(str(CONFIGS / "methods.yaml")).runs
    assert {run.settings.phases[-1].preset for run in runs} == set(preset_names())
    assert {run.seed for run in runs} == {1, 2, 3}


@pytest.mark.parametrize("name", ["methods", "thumbs", "labeling"])
def test_the_results_page_shows_every_arm(name: str) -> None:
    assert shown(name) == list(read_document(CONFIGS / f"{name}.yaml")["arms"])


def test_an_autoencoder_of_a_model_s_own_responses_is_written_for_a_run_to_read(testbed: Path, tmp_path: Path) -> None:
    script, out = ROOT / "scripts" / "autoencoder", tmp_path / "sae.safetensors"
    asked = [str(testbed / "sft"), str(testbed / "prefs_heldout.jsonl"), str(out)]
    asked += ["--layer", "1", "--width", "32", "--steps", "20"]
    done = subprocess.run([sys.executable, str(script), *asked], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (testbed / "prefs_heldout.jsonl").read_text().splitlines()]
    words = sum(len(row[side][-1]["content"].split()) + 1 for row in rows for side in ("chosen", "rejected"))
    (states,) = re.findall(r"states ([\d.e+]+)", done.stdout)
    assert float(states) == pytest.approx(words, rel=0.01), "one for each token of a response, EOS included"
    assert load_sae(SaeSource(leaf(out), layer=1, k=4)).weight.shape == (64, 32)
