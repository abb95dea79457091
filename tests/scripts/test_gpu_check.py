"""scripts/gpu_check: its sections on the CPU, tiny, and what it makes of a failure."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/gpu_check", "--dry", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_dry_run_of_the_kernels_passes_and_tells_what_it_could_not_measure(tmp_path: Path) -> None:
    done = _check("--only", "attention", "head", "--json", str(tmp_path / "told.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    sections = json.loads((tmp_path / "told.json").read_text())["sections"]
    assert [section["name"] for section in sections] == ["attention", "head"]
    verdicts = [finding["verdict"] for section in sections for finding in section["findings"]]
    assert verdicts.count("passed") == 15
    assert verdicts.count("not measured") == 2
    assert done.stdout.rstrip().endswith("15 passed, 0 failed, 2 not measured")


@pytest.mark.slow
def test_a_dry_run_of_everything_passes() -> None:
    done = _check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gold reward after" in done.stdout
    assert "step, gradient error, ours / " in done.stdout


def test_a_section_that_dies_is_told_with_its_last_words() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "gpu_check"))
    section = script["run_section"]("nowhere", 5.0, dry=True)
    assert "No module named scripts.gpu.nowhere" in section.died
    assert "died:" in script["table"](section)


def test_a_figure_beyond_its_limit_or_no_number_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    from scripts.gpu.findings import MARK, at_most

    for figure in (1.0, 1.1, float("nan")):
        at_most("error", figure, 1.0)
    told = [json.loads(line.removeprefix(MARK))["verdict"] for line in capsys.readouterr().out.splitlines()]
    assert told == ["passed", "failed", "failed"]
